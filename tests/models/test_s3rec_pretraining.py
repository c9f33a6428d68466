"""S3Rec's first stage: what RecBole's makes, and its losses, from other code."""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.model.sequential_recommender.s3rec import S3Rec

from recbole_idiomoe import api
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.s3rec.pretraining import PretrainingS3Rec, PretrainingTensors
from tests.helpers import write_dataset
from tests.training.cycle import TINY, write_cycle

ITEMS, LONGEST = 45, 10
MASK = ITEMS + 1
SMALL: dict[str, Any] = {"hidden_size": 16, "inner_size": 16, "n_layers": 2, "pretrain_epochs": 2}
CATEGORIES = ("", "a", "b|c", "c|a|d", "d|d", "e|b")
MAKERS = {
    "ours": PretrainingTensors,
    "recbole": lambda m: partial(S3Rec.reconstruct_pretrain_data, m),
}


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """Models of RecBole's, whose items have up to three categories and a title, or none."""
    interactions = [
        (f"u{u}", f"i{(u + n) % ITEMS}", float(n)) for u in range(9) for n in range(ITEMS)
    ]
    items = [(f"i{n}", f"t{n % 7}", CATEGORIES[n % 6]) for n in range(ITEMS)]
    untitled = [
        (item, title if n % 5 else "", names) for n, (item, title, names) in enumerate(items)
    ]
    place = tmp_path_factory.mktemp("data")
    write_dataset(place / "shop", interactions, items)
    write_dataset(place / "untitled", interactions, untitled)

    def built(
        data: str = "shop", attribute: str = "categories", cls: Any = S3Rec, **options: Any
    ) -> Any:
        settings = TINY | SMALL | {"data_path": str(place), "item_attribute": attribute}
        config = RunConfig("S3Rec", data, settings=settings | options)
        torch.manual_seed(0)
        return cls(config, load_dataset(config).build()[0])

    return built


def rows(histories: list[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """A step as RecBole's loaders give it: padded on the right."""
    items = torch.zeros(len(histories), LONGEST, dtype=torch.long)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history)
    return items, torch.tensor([len(history) for history in histories])


def random_rows(number: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, LONGEST + 1, (number,), generator=generator).tolist()
    draw = partial(torch.randint, 1, ITEMS + 1, generator=generator)
    return rows([draw((length,)).tolist() for length in lengths])


def left_padded(history: list[int]) -> list[int]:
    return [0] * (LONGEST - len(history)) + history


@pytest.mark.parametrize("data", ["shop", "untitled"])
@pytest.mark.parametrize("attribute", ["categories", "title"])
def test_nothing_drawn_is_nothing_else(
    build: Callable[..., Any], data: str, attribute: str
) -> None:
    """Features and histories; masked items where none or all are; whole rows of a single item."""
    for ratio in (0.0, 1.0):
        model = build(data, attribute, mask_ratio=ratio)
        for step in (rows([[7], [3, 3], list(range(1, 11)), [45]]), random_rows(50, 1)):
            made = PretrainingTensors(model)(*step)
            wanted = S3Rec.reconstruct_pretrain_data(model, *step)
            assert [(t.shape, t.dtype) for t in made] == [(t.shape, t.dtype) for t in wanted]
            certain = (1, 2, 3) if ratio == 0 else (1, 2)
            assert all(torch.equal(made[i], wanted[i]) for i in certain)
            single = step[1] == 1
            assert all(torch.equal(made[i][single], wanted[i][single]) for i in (4, 5, 6))
            if (data, attribute) == ("untitled", "title"):
                untitled = model.item_feat["title"][made[2]] == 0
                assert torch.equal(made[0][~untitled], wanted[0][~untitled])
                assert made[0][untitled].sum() == 0
                held = untitled & (made[2] > 0)
                assert held.any() and (wanted[0][held][:, -1] == 1).all()  # the last class there is
            else:
                assert torch.equal(made[0], wanted[0])


def test_by_hand(build: Callable[..., Any]) -> None:
    model = build()
    torch.manual_seed(3)
    features, *others = PretrainingTensors(model)(*rows([[2, 5, 4, 9]]))
    assert others[1].tolist() == [left_padded([2, 5, 4, 9])]
    names = model.item_feat["categories"]
    for place, item in enumerate([2, 5, 4, 9], start=LONGEST - 4):
        wanted = {feature - 1 for feature in names[item].tolist() if feature > 0}
        assert set(features[0, place].nonzero().flatten().tolist()) == wanted
    assert features[0, : LONGEST - 4].sum() == 0


@pytest.mark.parametrize("maker", MAKERS)
def test_masked_items_and_negatives(build: Callable[..., Any], maker: str) -> None:
    """RecBole draws alike: what is said of ours here holds for it."""
    make = MAKERS[maker](build(mask_ratio=0.3))
    torch.manual_seed(0)
    history = [4, 9, 4, 17, 30, 31]
    _, masked, items, negatives, *_ = make(*rows([history] * 4000))
    assert torch.equal(items, torch.tensor([left_padded(history)] * 4000))
    at = masked == MASK
    assert torch.equal(masked[~at], items[~at]) and torch.equal(negatives[~at], items[~at])
    assert not at[:, : LONGEST - 6].any()
    # Of each place and of pairs of places: drawn one by one.
    rates = at[:, LONGEST - 6 :].double()
    assert rates.mean(0) == pytest.approx([0.3] * 6, abs=0.035)
    together = (rates.T @ rates / 4000)[~torch.eye(6, dtype=bool)]
    assert together == pytest.approx(torch.full((30,), 0.09), abs=0.022)
    drawn = Counter(negatives[at].tolist())
    allowed = set(range(1, MASK + 1)) - set(history)  # with the mask token, as in RecBole
    assert set(drawn) == allowed
    each = drawn.total() / len(allowed)
    assert all(abs(count - each) < 5 * each**0.5 for count in drawn.values())


@pytest.mark.parametrize("maker", MAKERS)
def test_segments(build: Callable[..., Any], maker: str) -> None:
    """Sizes are drawn first, up to half of the history, then starts, alike for all there are."""
    make = MAKERS[maker](build())
    torch.manual_seed(0)
    history = [4, 9, 4, 17, 30, 31, 8]
    number, empty = 6000, LONGEST - len(history)
    found: Counter[tuple[int, int]] = Counter()
    *_, without, alone, other = make(*rows([history] * number))
    assert not any(t[:, :empty].any() for t in (without, alone, other))
    for row, kept, others in zip(
        *(t[:, empty:].tolist() for t in (without, alone, other)), strict=True
    ):
        size, start = row.count(MASK), row.index(MASK)
        end = start + size
        assert row == history[:start] + [MASK] * size + history[end:]
        around = [MASK] * start, [MASK] * (len(history) - end)
        assert kept == [*around[0], *history[start:end], *around[1]]
        assert [*others[:start], *others[end:]] == around[0] + around[1]
        found[size, start] += 1
    for size in (1, 2, 3):
        for start in range(len(history) - size + 1):
            wanted = number / 3 / (len(history) - size + 1)
            assert abs(found.pop((size, start)) - wanted) < 5 * wanted**0.5
    assert not found


@pytest.mark.parametrize("maker", MAKERS)
def test_other_segments_are_from_all_rows_of_the_step(
    build: Callable[..., Any], maker: str
) -> None:
    """Item n is the n-th of the step, so that a segment says where it starts."""
    make = MAKERS[maker](build())
    torch.manual_seed(0)
    lengths = [1, 2, 3, 4, 5, 6, 7, 10]
    ends = torch.tensor(lengths).cumsum(0).tolist()
    step = rows([list(range(end - n + 1, end + 1)) for n, end in zip(lengths, ends, strict=True)])
    quarters: Counter[int] = Counter()
    starts = set()
    for _ in range(300):
        for row in make(*step)[-1][1:].tolist():  # the first is too short for a segment
            segment = [item for item in row if item not in (0, MASK)]
            assert segment == list(range(segment[0], segment[0] + len(segment)))
            room = ends[-1] - len(segment) + 1
            assert 1 <= segment[0] <= room
            quarters[4 * (segment[0] - 1) // room] += 1
            starts.add((len(segment), segment[0]))
    assert {(size, start) for size in (1, 2) for start in (1, ends[-1] - size + 1)} <= starts
    shares = [quarters[n] / quarters.total() for n in range(4)]
    assert shares == pytest.approx([0.25] * 4, abs=0.05)


def test_a_seed_says_what_is_drawn(build: Callable[..., Any]) -> None:
    make = PretrainingTensors(build())
    step = random_rows(30, 2)

    def made(seed: int) -> list[list[Any]]:
        torch.manual_seed(seed)
        return [tensor.tolist() for tensor in make(*step)]

    assert made(5) == made(5)
    assert all(one != another for one, another in zip(made(5)[3:], made(6)[3:], strict=True))


class DoubleLoss(torch.nn.BCEWithLogitsLoss):
    """RecBole's targets are of float32, and torch would round the losses to it."""

    def forward(self, scores: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return super().forward(scores, targets.double())


@pytest.mark.parametrize("longest", [LONGEST, 40])
def test_without_padding_losses_and_gradients_are_the_same(
    build: Callable[..., Any], longest: int
) -> None:
    """Every weight counts, so that none is told from another by chance."""
    recboles = build(MAX_ITEM_LIST_LENGTH=longest).double().eval()
    for weight in recboles.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    ours = build(MAX_ITEM_LIST_LENGTH=longest, cls=PretrainingS3Rec).double().eval()
    ours.load_state_dict(recboles.state_dict())
    recboles.loss_fct = ours.loss_fct = DoubleLoss(reduction="none")
    computed: list[tuple[int, ...]] = []
    ours.trm_encoder.register_forward_hook(lambda _, args, out: computed.append(args[0].shape[:2]))
    items, lengths = random_rows(60, 4)
    items = torch.nn.functional.pad(items, (0, longest - LONGEST))
    if longest > LONGEST:
        items[:3], lengths[:3] = torch.arange(1, 41), torch.tensor([17, 33, 40])
        items *= torch.arange(longest) < lengths.unsqueeze(1)
    tensors = ours.reconstruct_pretrain_data(items, lengths)
    losses = [model.pretrain(*tensors) for model in (recboles, ours)]
    torch.testing.assert_close(*losses, rtol=1e-12, atol=0)
    for loss in losses:
        loss.backward()
    gradients = dict(ours.named_parameters())
    for name, weight in recboles.named_parameters():
        torch.testing.assert_close(
            gradients[name].grad,
            weight.grad,
            rtol=1e-9,
            atol=1e-9,
            msg=lambda m, n=name: f"{n}: {m}",
        )
    # Four passes over the places of each row, of which at most half are padding.
    assert sum(number for number, _ in computed) == 4 * 60
    assert {width for _, width in computed} == ({8, 10} if longest == LONGEST else {8, 16, 32, 40})


@pytest.mark.parametrize("gpu_id", ["", pytest.param("0", marks=pytest.mark.gpu)])
def test_a_run_takes_them(gpu_id: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And learns: its loss in the first stage falls."""

    def refused(*_: Any) -> None:
        raise AssertionError("RecBole's lists")

    losses: list[float] = []
    pretrain = S3Rec.pretrain

    def noted(self: Any, *tensors: torch.Tensor) -> torch.Tensor:
        loss = pretrain(self, *tensors)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(S3Rec, "reconstruct_pretrain_data", refused)
    monkeypatch.setattr(S3Rec, "pretrain", noted)
    path = write_cycle(tmp_path / "cycle")
    settings = TINY | SMALL | {"item_attribute": "categories", "pretrain_epochs": 6, "epochs": 1}
    settings |= {"data_path": str(path), "gpu_id": gpu_id}
    (result,) = api.run("S3Rec", "cycle", settings=settings)
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert 0 < result["test_result"]["ndcg@10"] <= 1
