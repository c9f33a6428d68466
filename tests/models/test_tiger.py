"""TIGER against T5 itself, one code at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import T5Config, T5ForConditionalGeneration

import recbole_idiomoe
from recbole_idiomoe import api
from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.lm.prefix_tree import PrefixTree
from recbole_idiomoe.models import registry
from recbole_idiomoe.models.tiger import t5_ranking
from recbole_idiomoe.models.tiger.model import TIGER, CodeTable
from recbole_idiomoe.models.tiger.t5_packing import encode, pack
from recbole_idiomoe.models.tiger.t5_ranking import code_tree, rank_leaves
from tests.models.tiny_baselines import ITEMS, SMALL, build, interaction
from tests.training.cycle import TINY, write_cycle

HISTORIES = [[3, 9, 4, 9, 1], [7], [2, 5, 6, 8, 1, 2, 3]]
USERS = [4, 15, 30]


def loud(model: Any) -> Any:
    """Weights with which every layer and every bias matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.t5.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.dim() > 1 else 0.1))
    return model


def spelt(model: Any, item: int) -> list[int]:
    return [token for token in model.item_tokens[item].tolist() if token]


def alone(model: Any, history: list[int], user: int | None, item: int) -> float:
    """An item's log-probability by T5, its user and history without any padding."""
    read = [] if user is None else [model.first_user_token + user % model.user_tokens]
    read += [token for item in history for token in spelt(model, item)]
    code = spelt(model, item)
    with torch.no_grad():
        logits = model.t5(
            input_ids=torch.tensor([read]), decoder_input_ids=torch.tensor([[0, *code[:-1]]])
        ).logits[0]
    return logits.double().log_softmax(-1)[range(len(code)), code].sum().item()


def without_ties(place: Path, **options: Any) -> Any:
    """A model in which histories have no gaps, so that T5 reads them alike without padding."""
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 8))
    np.savez(place / "vectors.npz", item_ids=[f"i{n}" for n in range(ITEMS)], vectors=vectors)
    options["text_encoder"] = str(place / "vectors.npz")
    model = loud(build("TIGER", place, semantic_codebook_size=12, **options))
    assert (model.item_tokens[:, -1] == 0).all()
    model.item_tokens = model.item_tokens[:, :-1].contiguous()
    return model


@pytest.mark.parametrize("layers", [1, 3])
def test_scores_are_t5s_log_probabilities(layers: int, tmp_path: Path) -> None:
    model = without_ties(tmp_path, n_layers=layers)
    found = model.full_sort_predict(interaction(HISTORIES, users=USERS))
    assert (found[:, 0] == -torch.inf).all()
    wanted = [
        [alone(model, history, user, item) for item in range(1, ITEMS + 1)]
        for history, user in zip(HISTORIES, USERS, strict=True)
    ]
    torch.testing.assert_close(found[:, 1:], torch.tensor(wanted), atol=1e-5, rtol=1e-5)
    assert found[:, 1:].std(dim=1).min() > 0.5
    assert (found[0] - found[1])[1:].abs().max() > 0.1


@pytest.mark.parametrize("piece_size", [1, 7, 128])
def test_every_item_scores_as_when_it_is_spelt_out(piece_size: int, tmp_path: Path) -> None:
    """Full ranking against the one forward pass that training has, items with ties among them."""
    model = loud(build("TIGER", tmp_path, n_layers=2, semantic_codebook_size=3))
    lengths = (model.item_tokens[1:] > 0).sum(dim=1)
    assert set(lengths.tolist()) == {3, 4}
    codes = [np.array([0, *spelt(model, item)]) for item in range(1, ITEMS + 1)]
    model._tree = PrefixTree(codes, piece_size=piece_size)
    found = model.full_sort_predict(interaction(HISTORIES, users=USERS))
    assert (len(model._tree.pieces) > 1) == (piece_size < 128)
    for item in range(1, ITEMS + 1):
        rows = interaction(HISTORIES, [item] * 3, USERS)
        with torch.no_grad():
            one = model.predict(rows)
        torch.testing.assert_close(found[:, item], one, atol=1e-5, rtol=1e-5)


def test_histories_in_parts_score_as_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = loud(build("TIGER", tmp_path))
    rows = interaction(HISTORIES, users=USERS)
    together = model.full_sort_predict(rows)
    monkeypatch.setattr(t5_ranking, "STATES", 1)
    assert t5_ranking.rows_at_once(model.t5, model._tree, 5) == 1
    torch.testing.assert_close(model.full_sort_predict(rows), together, atol=1e-5, rtol=1e-5)
    for row, (history, user) in enumerate(zip(HISTORIES, USERS, strict=True)):
        single = model.full_sort_predict(interaction([history], users=[user]))
        torch.testing.assert_close(single[0], together[row], atol=1e-5, rtol=1e-5)


def test_memory_bounds_how_many_rank_together(tmp_path: Path) -> None:
    model = build("TIGER", tmp_path)
    model.full_sort_predict(interaction(HISTORIES))
    many = t5_ranking.rows_at_once(model.t5, model._tree, 21)
    widest = max(len(piece.nodes) for piece in model._tree.pieces)
    assert 1 < many * widest * model.t5.config.d_ff <= t5_ranking.STATES
    assert t5_ranking.rows_at_once(model.t5, model._tree, 10_000) == 1


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_probabilities_of_a_complete_tree_add_up_to_one(attention: str) -> None:
    """Those of fewer items are the same, and what the others had is no item's."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=6, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2, dropout_rate=0.0
    )
    config.decoder_start_token_id = 0
    t5 = T5ForConditionalGeneration(config).eval()
    t5.set_attn_implementation(attention)
    pairs = [np.array([one, other]) for one in range(6) for other in range(6)]
    ids, mask = torch.tensor([[1, 2, 3], [4, 5, 0]]), torch.tensor([[1, 1, 1], [1, 1, 0]]).bool()
    scores = rank_leaves(t5, code_tree(pairs, 0, torch.device("cpu")), ids, mask)
    torch.testing.assert_close(scores.exp().sum(dim=1), torch.ones(2), atol=1e-5, rtol=0)
    some = rank_leaves(t5, code_tree(pairs[::3], 0, torch.device("cpu")), ids, mask)
    torch.testing.assert_close(some, scores[:, ::3], atol=1e-5, rtol=1e-5)
    assert (some.exp().sum(dim=1) < 0.9).all()


def test_loss_is_the_mean_over_the_tokens_of_the_targets(tmp_path: Path) -> None:
    model = without_ties(tmp_path)
    targets = [8, 2, 40]
    rows = zip(HISTORIES, USERS, targets, strict=True)
    wanted = -sum(alone(model, *row) for row in rows) / 9
    with torch.no_grad():
        loss = model.calculate_loss(interaction(HISTORIES, targets, USERS))
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_rows_learn_as_padded_ones(attention: str, tmp_path: Path) -> None:
    """Loss and gradients, rows of all lengths and items with gaps among them."""
    model = loud(
        build(
            "TIGER", tmp_path, n_layers=2, semantic_codebook_size=3, attn_implementation=attention
        )
    )
    histories = [list(range(first, first + 1 + first % 9)) for first in range(1, 31)]
    rows = interaction(histories, targets=list(range(1, 31)), users=list(range(30)))
    packed = model.calculate_loss(rows)
    parameters = list(model.t5.parameters())
    found = torch.autograd.grad(packed, parameters)
    tokens, mask = model.encoder_input(rows)
    labels = model.item_tokens[rows["item_id"]]
    plain = model.t5(
        input_ids=tokens, attention_mask=mask, labels=labels.masked_fill(labels == 0, -100)
    ).loss
    torch.testing.assert_close(packed, plain, atol=0, rtol=1e-6)
    for one, other in zip(found, torch.autograd.grad(plain, parameters), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-4)
        assert other.abs().max() > 1e-4


def test_fused_layers_compute_what_t5s_do(tmp_path: Path) -> None:
    model = loud(build("TIGER", tmp_path, n_layers=2))
    plain = T5ForConditionalGeneration(model.t5.config).eval()
    plain.load_state_dict(model.t5.state_dict())
    rows = interaction(HISTORIES, users=USERS)
    wanted = model.predict(rows), model.full_sort_predict(rows)
    kinds = {type(module) for module in plain.modules()} - {type(m) for m in model.t5.modules()}
    assert {kind.__name__ for kind in kinds} == {"T5LayerNorm", "T5DenseActDense"}
    model.t5 = plain
    for one, other in zip(
        wanted, (model.predict(rows), model.full_sort_predict(rows)), strict=True
    ):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_few_sequences_hold_all_rows(tmp_path: Path) -> None:
    lengths = [5, 9, 21, 5, 13, 17, 5, 9, 1]
    starts, count = pack(lengths, 21)
    taken = [
        place
        for start, length in zip(starts, lengths, strict=True)
        for place in range(start, start + length)
    ]
    assert len(set(taken)) == len(taken) == sum(lengths) and max(taken) < 21 * count
    assert all(
        start // 21 == (start + length - 1) // 21
        for start, length in zip(starts, lengths, strict=True)
    )
    assert count == 5  # as few as can be: 85 places are taken

    model = build("TIGER", tmp_path)
    read: list[tuple[int, ...]] = []
    model.t5.encoder.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    tokens, mask = model.encoder_input(interaction([[1] * 8, [2] * 3, [3] * 2, [4]]))
    encode(model.t5, tokens, mask)
    assert len(read) == 1 and read[0][0] < len(mask)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_items_rank_in_the_precision_of_training(attention: str, tmp_path: Path) -> None:
    options = {"n_layers": 2, "attn_implementation": attention}
    exact, half = (
        loud(build("TIGER", tmp_path / str(amp), enable_amp=amp, **options))
        for amp in (False, True)
    )
    rows = interaction(HISTORIES, users=USERS)
    wanted, found = (model.full_sort_predict(rows)[:, 1:] for model in (exact, half))
    assert torch.equal(wanted, rank_leaves(exact.t5, exact._tree, *exact.encoder_input(rows)))
    assert not torch.equal(found, wanted)
    assert found.dtype == torch.float32 and found.isfinite().all()
    # bfloat16 rounds by up to 2**-9: 16 such errors, of states and logits, that all add up.
    torch.testing.assert_close(found, wanted, atol=0, rtol=16 * 2**-9)
    places = torch.stack([scores.argsort().argsort() for scores in (found, wanted)]).double()
    assert all(torch.corrcoef(places[:, row])[0, 1] > 0.99 for row in range(len(HISTORIES)))


def test_places_where_a_code_has_no_token_change_neither_loss_nor_scores(tmp_path: Path) -> None:
    """Whatever stands there is not read, and is no target."""
    model = loud(build("TIGER", tmp_path, semantic_codebook_size=3))
    items = model.item_tokens[1:]
    targets = [int((items[:, -1] > 0).nonzero()[0]) + 1, int((items[:, -1] == 0).nonzero()[0]) + 1]
    with torch.no_grad():
        rows = interaction(HISTORIES[:2], targets)
        loss, own = model.calculate_loss(rows), model.predict(rows)
    assert loss.item() == pytest.approx(-own.sum().item() / 7, rel=1e-5)
    tokens, mask = model.encoder_input(rows)
    states = model.t5.encoder(input_ids=tokens, attention_mask=mask).last_hidden_state
    other = model.t5.encoder(
        input_ids=tokens.masked_fill(~mask, 5), attention_mask=mask
    ).last_hidden_state
    torch.testing.assert_close(states[mask], other[mask])
    assert not mask.all(dim=1).any()


def test_the_last_items_and_the_user_are_what_is_read(tmp_path: Path) -> None:
    model = build("TIGER", tmp_path, history_items=3)
    rows = interaction([[1, 2, 3, 4, 5], [6, 7], list(range(11, 21))], users=[12, 0, 10])
    tokens, mask = model.encoder_input(rows)
    read = [model.item_tokens[torch.tensor(items)].flatten() for items in ([3, 4, 5], [18, 19, 20])]
    assert torch.equal(tokens[0, 1:], read[0]) and torch.equal(tokens[2, 1:], read[1])
    assert torch.equal(tokens[1, 1:9], model.item_tokens[[6, 7]].flatten())
    assert not mask[1, 9:].any() and torch.equal(mask, tokens > 0)
    first = model.first_user_token
    assert tokens[:, 0].tolist() == [first + 2, 0, first]
    assert first == int(model.t5.config.vocab_size) - 10
    far = interaction([[9, 8, 3, 4, 5]], users=[2])
    alike = model.full_sort_predict(far)[0], model.full_sort_predict(rows)[0]
    torch.testing.assert_close(*alike)


def test_without_user_tokens_users_are_alike(tmp_path: Path) -> None:
    rows, others = interaction(HISTORIES, users=USERS), interaction(HISTORIES, users=[5, 6, 7])
    for count in (10, 0):
        model = loud(build("TIGER", tmp_path / str(count), user_tokens=count))
        alike = torch.allclose(model.full_sort_predict(rows), model.full_sort_predict(others))
        assert alike == (count == 0)


def test_order_is_read(tmp_path: Path) -> None:
    model = loud(build("TIGER", tmp_path))
    one, other = model.full_sort_predict(interaction([[3, 9, 4], [9, 3, 4]]))[:, 1:]
    assert (one - other).abs().max() > 1e-3


def test_every_training_interaction_but_a_users_first_is_a_target_once(tmp_path: Path) -> None:
    settings = TINY | SMALL["TIGER"] | {"data_path": str(write_cycle(tmp_path / "cycle", length=7))}
    train = load_dataset(RunConfig("TIGER", "cycle", settings=settings)).build()[0]
    lengths = train[np.arange(len(train))]["item_length"].numpy()
    assert np.bincount(lengths).tolist() == [0, 60, 60, 60, 60]


def test_new_items_have_codes_but_no_part_in_what_codes_mean(tmp_path: Path) -> None:
    path = write_cycle(tmp_path / "cycle")
    settings = TINY | SMALL["TIGER"] | {"epochs": 1, "data_path": str(path), "cold_start": 0.2}
    (result,) = api.run("TIGER", "cycle", settings=settings | {"cold_start_epsilon": 1.0})
    cold = result["cold_start"]
    assert cold["unseen_targets"] > 0 and set(cold["unseen"]) == set(cold["seen"])


def test_items_without_text_are_refused(tmp_path: Path) -> None:
    path = write_cycle(tmp_path / "cycle", titles=["!"] * 40)
    settings = TINY | SMALL["TIGER"] | {"data_path": str(path), "item_text_fields": None}
    with pytest.raises(DataError, match=r"^TIGER: no item has text; name its columns") as caught:
        api.run("TIGER", "cycle", settings=settings)
    assert "\n" not in str(caught.value)


def test_text_vectors_are_those_that_text_encoder_says(tmp_path: Path) -> None:
    names = [f"i{n}" for n in range(ITEMS)]
    groups = np.eye(4, dtype=np.float32)[np.arange(ITEMS) % 4]
    np.savez(tmp_path / "vectors.npz", item_ids=names, vectors=groups)
    model = build("TIGER", tmp_path, text_encoder=str(tmp_path / "vectors.npz"))
    assert len(model.item_tokens[1:, :3].unique(dim=0)) == 4


class OwnCodes(TIGER):
    """Codes of one to four tokens, which items have in another order in every model."""

    drawn = np.random.default_rng(0)

    def item_codes(self, config: Any, dataset: Any) -> CodeTable:
        codes = [[1], [2], *([3, n] for n in range(4, 12)), *([12, n, 3] for n in range(4, 12))]
        codes += [[13 + n // 6, 4 + n % 6, 5, 1] for n in range(ITEMS - len(codes))]
        return CodeTable.of([[], *(codes[n] for n in self.drawn.permutation(ITEMS))])


@pytest.fixture
def own_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = registry.MODELS["TIGER"]._replace(model=f"{__name__}:OwnCodes")
    monkeypatch.setitem(registry.MODELS, "TIGER", entry)
    monkeypatch.setattr(OwnCodes, "drawn", np.random.default_rng(0))


@pytest.mark.usefixtures("own_codes")
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_codes_of_other_lengths_rank_as_they_are_spelt_out(attention: str, tmp_path: Path) -> None:
    model = loud(build("TIGER", tmp_path, n_layers=2, attn_implementation=attention))
    assert {len(spelt(model, item)) for item in range(1, ITEMS + 1)} == {1, 2, 3, 4}
    found = model.full_sort_predict(interaction(HISTORIES, users=USERS))
    assert found.shape == (3, ITEMS + 1) and (found[:, 0] == -torch.inf).all()
    for item in range(1, ITEMS + 1):
        rows = interaction(HISTORIES, [item] * 3, USERS)
        with torch.no_grad():
            one = model.predict(rows)
        torch.testing.assert_close(found[:, item], one, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("own_codes")
def test_weights_bring_their_codes(tmp_path: Path) -> None:
    rows = interaction(HISTORIES, users=USERS)
    saved, loaded = (loud(build("TIGER", tmp_path / name)) for name in ("one", "two"))
    wanted, before = saved.full_sort_predict(rows), loaded.full_sort_predict(rows)
    assert not torch.equal(saved.item_tokens, loaded.item_tokens)
    assert not torch.allclose(before, wanted)
    loaded.load_state_dict(saved.state_dict())
    assert torch.equal(loaded.full_sort_predict(rows), wanted)


@pytest.mark.usefixtures("own_codes")
def test_a_run_learns_codes_of_other_lengths_and_its_folder_recommends(tmp_path: Path) -> None:
    path = write_cycle(tmp_path / "cycle")
    settings = TINY | SMALL["TIGER"] | {"epochs": 25, "dropout_prob": 0.0, "user_tokens": 0}
    (result,) = api.run("TIGER", "cycle", settings=settings | {"data_path": str(path)})
    assert result["test_result"]["ndcg@10"] > 0.25  # 0.11 by chance
    first, again = (
        recbole_idiomoe.load(result["folder"]).recommend(["i3", "i4"], k=5) for _ in range(2)
    )
    assert first == again and "i5" in {item.item_id for item in first}


@pytest.mark.parametrize(
    ("codes", "problem"),
    [
        ([[], [1], [1, 2]], "begins"),
        ([[], [2, 1], [1], [2, 1, 3]], "begins"),
        ([[], [1], []], "at least one token"),
        ([[1], [2]], "row 0 must be empty"),
        ([[], [1], [0, 2]], "must be between 1 and 2"),
        ([[], [1], [5]], "must be between 1 and 3"),
    ],
)
def test_codes_that_cannot_be_are_one_line(codes: list[list[int]], problem: str) -> None:
    with pytest.raises(DataError, match=problem) as caught:
        CodeTable.of(codes, token_num=4 if codes[-1] == [5] else None)
    assert "\n" not in str(caught.value)


def test_a_code_table_is_padded_and_counts_its_tokens() -> None:
    table = CodeTable.of([[], [3], [1, 2, 2], [3]])
    assert table.tokens.tolist() == [[0, 0, 0], [3, 0, 0], [1, 2, 2], [3, 0, 0]]
    assert table.token_num == 4 and CodeTable.of([[], [3]], token_num=9).token_num == 9
