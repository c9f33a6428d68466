"""Soft targets against a softmax over all items with every probability written out."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

from recbole_idiomoe import api, load
from recbole_idiomoe.base.errors import DataError, SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.batch import collate
from recbole_idiomoe.data.loader import WindowLoader
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.data.text_encoder import item_vectors
from recbole_idiomoe.lm import item_loss
from recbole_idiomoe.models.language import soft_targets
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.models.language.forward import hidden_states
from recbole_idiomoe.models.language.soft_targets import Followers, Neighbours, SoftTargets
from recbole_idiomoe.models.registry import get_model
from tests.helpers import DATASET_SETTINGS, TINY_BACKBONE, training_sequence, write_dataset
from tests.models.test_host_syncs import train_step

ITEMS, TEXT_SHARE, TRANSITION_SHARE = 30, 0.2, 0.3
BOTH = {"text_smoothing": TEXT_SHARE, "transition_smoothing": TRANSITION_SHARE}
COLOURS, THINGS = ("red", "green", "blue", "pale blue", "pale red"), ("car", "train", "boat")


def histories(seed: int = 0) -> list[list[int]]:
    """The first user has every item, so that items are numbered alike whatever others have."""
    rng = np.random.default_rng(seed)
    others = [rng.integers(ITEMS, size=4 + user % 7).tolist() for user in range(25)]
    return [[*range(ITEMS), 0, 1], *others]


def write(folder: Path, taken: list[list[int]] | None = None) -> dict[str, Any]:
    rows = [
        (f"u{user}", f"i{item}", float(step))
        for user, items in enumerate(taken or histories())
        for step, item in enumerate(items)
    ]
    titles = [f"{COLOURS[n % 5]} {THINGS[n % 3]} of {n % 7}" for n in range(ITEMS)]
    titles[4] = ""
    items = [(f"i{n}", title, "") for n, title in enumerate(titles)]
    return DATASET_SETTINGS | {
        "data_path": str(write_dataset(folder, rows, items)),
        "item_text_fields": ["title"],
        "item_template": "{title}",
        "backbone": "untrained",
        "backbone_args": TINY_BACKBONE | {"initializer_range": 0.3},
        "topk": [5],
        "valid_metric": "NDCG@5",
        "MAX_ITEM_LIST_LENGTH": 40,
        "dropout": 0.0,
    }


def build(
    path: Path, name: str = "IDIOMoE", taken: list[list[int]] | None = None, **options: Any
) -> tuple[CatalogLM, list[np.ndarray]]:
    """The model, and the training histories that it was built with."""
    config = RunConfig(name, "shop", settings=write(path / "shop", taken) | options)
    train = load_dataset(config).build()[0]
    model = get_model(name)(config, train).catalog_lm
    return model, train.training_windows(40, model.builder.code_lengths, model.builder.room)


def text_table(model: CatalogLM, seed: int = 2020) -> np.ndarray:
    """What each item gives to each other that reads like it, rows of sum 1 or 0."""
    catalog, table = model.catalog, np.zeros((ITEMS + 1, ITEMS + 1))
    vectors = item_vectors(
        catalog,
        "tfidf",
        dim=model.settings.item_embedding_dim or model.lm.config.hidden_size,
        seed=seed,
    ).astype(float)
    known = [i for i in range(1, ITEMS + 1) if vectors[i].any() and i not in catalog.untrained]
    centred = vectors - vectors[known].mean(0)
    for item in known:
        a = centred[item]
        cosine = {
            j: a @ centred[j] / np.linalg.norm(a) / np.linalg.norm(centred[j])
            for j in known
            if j != item
        }
        nearest = sorted(cosine, key=cosine.__getitem__)[-20:]
        table[item, nearest] = [np.exp(cosine[j] / 0.05) for j in nearest]
        table[item] /= table[item].sum()
    return table


def count(windows: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """What stands around each item, not damped; and how often each item was taken."""
    counts, popularity = np.zeros((ITEMS + 1, ITEMS + 1)), np.zeros(ITEMS + 1)
    for window in windows:
        for later, item in enumerate(window):
            popularity[item] += 1
            for step in range(1, min(3, later) + 1):
                counts[window[later - step], item] += 0.7 ** (step - 1)
                counts[item, window[later - step]] += 0.5 * 0.7 ** (step - 1)
    return counts, popularity


def dense_targets(model: CatalogLM, windows: list[np.ndarray]) -> np.ndarray:
    """The probability of every item at every prediction, (N, item_num), from the definition."""
    settings, rows = model.settings, []
    similar = text_table(model) if settings.text_smoothing else np.zeros((ITEMS + 1, ITEMS + 1))
    counts, popularity = count(windows)
    for window in windows:
        for previous, target in pairwise(window):
            row = np.eye(ITEMS + 1)[target]
            if similar[target].any():
                row = (1 - settings.text_smoothing) * row
                row += settings.text_smoothing * similar[target]
            around = counts[previous].copy()
            around[target] = max(0.0, around[target] - 1)
            around /= np.sqrt(popularity.clip(1))
            if around.sum() > 1e-6:
                row = (1 - settings.transition_smoothing) * row
                row += settings.transition_smoothing * around / around.sum()
            rows.append(row)
    return np.array(rows)


def reference(model: CatalogLM, windows: list[np.ndarray], targets: np.ndarray) -> torch.Tensor:
    """Mean cross entropy over the candidates, each with its probability."""
    sequences = [training_sequence(model.builder, w, model.settings.use_text) for w in windows]
    batch = collate(sequences, model.pad_token_id)
    states = hidden_states(model.lm, batch)[batch.predict_at]
    scores = model.lm.item_logits(states)
    scores[:, model.untrained] = -torch.inf
    if model.settings.softmax == "hybrid":
        scores = torch.cat((scores, model.lm.text_logits(states)), dim=1)
    wanted = torch.from_numpy(targets).float()
    logs = scores.log_softmax(dim=1)[:, : ITEMS + 1]
    assert torch.isfinite(logs[wanted > 0]).all()
    return -torch.where(wanted > 0, wanted * logs, 0.0).sum(dim=1).mean()


def loss_and_gradients(model: CatalogLM, losses: Any) -> tuple[float, dict[str, torch.Tensor]]:
    model.zero_grad()
    total = 0.0
    for loss in losses:
        loss.backward()
        total += loss.item()
    return total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_as_written_out(
    model: CatalogLM, windows: list[np.ndarray], max_batch_tokens: int = 100_000
) -> int:
    """Of one optimizer step; returns its number of batches."""
    loader = WindowLoader(
        windows,
        model.builder,
        batch_size=len(windows),
        max_batch_tokens=max_batch_tokens,
        pad_token_id=model.pad_token_id,
        seed=0,
    )
    loader.set_epoch(0, float(model.settings.use_text))
    ((*batches,),) = loader
    loss, gradients = loss_and_gradients(model, (model.loss(batch) for batch in batches))
    targets = dense_targets(model, windows)
    np.testing.assert_allclose(targets.sum(axis=1), 1)
    wanted, wanted_gradients = loss_and_gradients(model, [reference(model, windows, targets)])
    assert loss == pytest.approx(wanted, abs=1e-5)
    assert gradients.keys() == wanted_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(
            gradient, wanted_gradients[name], atol=1e-5, rtol=1e-4, msg=lambda m, n=name: n + m
        )
    hard = np.eye(ITEMS + 1)[np.concatenate([window[1:] for window in windows])]
    assert abs(wanted - reference(model, windows, hard).item()) > 1e-3  # soft targets matter
    return len(batches)


@pytest.mark.parametrize(
    "options",
    [
        BOTH,
        {"text_smoothing": TEXT_SHARE},
        {"transition_smoothing": TRANSITION_SHARE},
        BOTH | {"softmax": "hybrid"},
        BOTH | {"item_embedding_dim": 8, "segment_order": "ID text"},
        BOTH | {"item_text_added": True},
        BOTH | {"item_text_added": True, "item_embedding_dim": 8, "use_text": False},
        BOTH | {"cold_start": 0.2},
        BOTH | {"cold_start": 0.2, "softmax": "hybrid", "item_init": "random"},
    ],
    ids=str,
)
def test_the_loss_is_the_cross_entropy_with_every_probability_written_out(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model, windows = build(tmp_path, **options)
    assert len(model.untrained) == (4 if "cold_start" in options else 0)
    assert assert_as_written_out(model, windows) == 1


def test_chunks_and_micro_batches_leave_it_as_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, windows = build(tmp_path, **BOTH)
    monkeypatch.setattr(item_loss, "SCORE_BYTES", 4 * (ITEMS + 1) * 5)
    monkeypatch.setattr(soft_targets, "CHUNK_BYTES", 4 * (ITEMS + 1) * 7)
    assert assert_as_written_out(model, windows, max_batch_tokens=400) > 2
    again, _ = build(tmp_path / "chunks", **BOTH)
    assert buffers(again).keys() == buffers(model).keys()
    for name, buffer in buffers(again).items():
        torch.testing.assert_close(buffer, buffers(model)[name])


def test_vectors_that_are_not_read_score_too(tmp_path: Path) -> None:
    ids = [f"i{n}" for n in range(ITEMS)]
    vectors = np.random.default_rng(0).normal(size=(ITEMS, 6)).astype(np.float32)
    np.savez(tmp_path / "ids.npz", item_ids=ids, vectors=vectors)
    model, windows = build(tmp_path, "E4SRec", id_vectors=str(tmp_path / "ids.npz"), **BOTH)
    assert_as_written_out(model, windows)


def test_where_all_tokens_are_learnt_those_of_items_are_soft(tmp_path: Path) -> None:
    model, windows = build(tmp_path, "CoVE", **BOTH)
    batch = collate([training_sequence(model.builder, w) for w in windows], model.pad_token_id)
    soft, soft_gradients = loss_and_gradients(model, [model.loss(batch)])
    kept, model.soft_targets = model.soft_targets, None
    hard, hard_gradients = loss_and_gradients(model, [model.loss(batch)])
    model.soft_targets = kept

    def moved() -> torch.Tensor:
        targets = dense_targets(model, windows)
        hard = np.eye(ITEMS + 1)[np.concatenate([window[1:] for window in windows])]
        scores = model.lm.item_logits(hidden_states(model.lm, batch)[batch.predict_at])[:, 1:]
        return -(torch.from_numpy(targets - hard).float()[:, 1:] * scores).sum() / batch.token_count

    wanted, wanted_gradients = loss_and_gradients(model, [moved()])
    assert abs(wanted) > 1e-3 and soft == pytest.approx(hard + wanted, abs=1e-5)
    for name, gradient in wanted_gradients.items():
        found = soft_gradients[name] - hard_gradients[name]
        torch.testing.assert_close(found, gradient, atol=1e-5, rtol=1e-4)


def test_only_the_strongest_followers_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(soft_targets, "MOST_FOLLOWERS", 3)
    model, windows = build(tmp_path, **BOTH)
    counts, popularity = count(windows)
    damped = counts / np.sqrt(popularity.clip(1))
    found = buffers(model)
    assert found["around"].shape == (ITEMS + 1, 3)
    for item in range(ITEMS + 1):
        strongest = sorted(range(ITEMS + 1), key=lambda j: (-damped[item, j], j))[:3]
        kept = [j for j in strongest if damped[item, j] > 0]
        assert found["around"][item].tolist() == kept + [0] * (3 - len(kept))
        weights = damped[item, kept].tolist() + [0.0] * (3 - len(kept))
        assert found["around_weights"][item].tolist() == pytest.approx(weights)


def buffers(model: CatalogLM) -> dict[str, torch.Tensor]:
    assert model.soft_targets is not None
    return dict(model.soft_targets.named_buffers())


def test_held_out_targets_change_no_table(tmp_path: Path) -> None:
    """Nor does a second build; another training item does."""
    taken, rng = histories(), np.random.default_rng(1)
    valid, test = (rng.permutation([items[-k] for items in taken]).tolist() for k in (2, 1))
    permuted = [[*i[:-2], v, t] for i, v, t in zip(taken, valid, test, strict=True)]
    other = [*taken[:1], *([(i[0] + 1) % ITEMS, *i[1:]] for i in taken[1:])]
    assert permuted != taken
    one, same, again, another = (
        buffers(build(tmp_path / str(n), taken=t, **BOTH)[0])
        for n, t in enumerate((taken, permuted, taken, other))
    )
    for name, buffer in one.items():
        assert buffer.any() and torch.equal(buffer, same[name]), name
        assert torch.equal(buffer, again[name]), name
    assert torch.equal(one["similar"], another["similar"])
    assert not torch.equal(one["around_weights"], another["around_weights"])


def test_unseen_items_gain_nothing(tmp_path: Path) -> None:
    model, _ = build(tmp_path, **BOTH, cold_start=0.2)
    assert len(model.untrained) == 4
    found = buffers(model)
    assert not torch.isin(found["similar"], model.untrained).any()
    assert not torch.isin(found["around"], model.untrained).any()


def by_hand() -> SoftTargets:
    """Of 6 items: 1 and 2 read alike, as does 3 to both; around 4 stand 5, once, and 2."""
    similar = Neighbours(torch.zeros(6, 2, dtype=torch.int32), torch.zeros(6, 2))
    for item, others, weights in ((1, [2, 3], [0.75, 0.25]), (2, [1, 3], [0.5, 0.5])):
        similar.items[item], similar.weights[item] = torch.tensor(others), torch.tensor(weights)
    around = Neighbours(torch.zeros(6, 2, dtype=torch.int32), torch.zeros(6, 2))
    single = torch.tensor([1, 0.9, 0.8, 0.7, 0.6, 0.3])
    around.items[4], around.weights[4] = torch.tensor([2, 5]), torch.tensor([2.4, 0.3])
    around.items[3, 0], around.weights[3, 0] = 5, 0.3
    return SoftTargets(0.2, similar, 0.5, Followers(around, single))


@pytest.mark.parametrize(
    ("previous", "target", "wanted"),
    [
        (0, 1, {1: -0.2, 2: 0.15, 3: 0.05}),  # nothing in front, as behind a query
        (5, 1, {1: -0.2, 2: 0.15, 3: 0.05}),  # nothing was counted around it
        (3, 5, {}),  # but this very pair, and nothing reads alike
        (4, 5, {5: -0.5, 2: 0.5}),  # this pair was counted once, the other three times
        (3, 3, {3: -0.5, 5: 0.5}),
        # 2 stays with 0.5 * 0.8 of its own, and is twice as much counted as once: 1.6 to 0.3.
        (4, 2, {2: 0.4 - 1 + 0.5 * 1.6 / 1.9, 1: 0.05, 3: 0.05, 5: 0.5 * 0.3 / 1.9}),
    ],
)
def test_who_gains_from_a_target(previous: int, target: int, wanted: dict[int, float]) -> None:
    items, gained = by_hand()(torch.tensor([target]), torch.tensor([previous]))
    total = torch.zeros(6).index_add(0, items[0].long(), gained[0])
    torch.testing.assert_close(total, torch.tensor([wanted.get(n, 0.0) for n in range(6)]))


def test_a_pair_that_was_seen_once_does_not_name_itself(tmp_path: Path) -> None:
    """To the last bit: rounding must not leave a count, which would then be the only one."""
    model, windows = build(tmp_path, taken=[[*range(ITEMS), 0, 1]], **BOTH)
    found = buffers(model)
    assert windows[0].tolist() == [*range(1, ITEMS + 1)]
    for previous, target in pairwise(windows[0].tolist()):
        own = found["around_weights"][previous][found["around"][previous] == target]
        assert own.tolist() == [found["single"][target].item()]


def test_a_training_step_never_waits(tmp_path: Path) -> None:
    model, windows = build(tmp_path, **BOTH | {"dropout": 0.2})
    batch = collate([training_sequence(model.builder, w) for w in windows], model.pad_token_id)
    assert train_step(model.train(), batch).waits == []


def test_a_run_keeps_no_table(tmp_path: Path) -> None:
    settings = write(tmp_path / "shop") | BOTH | {"epochs": 2, "item_warmup": 0.0}
    (result,) = api.run("IDIOMoE", "shop", settings=settings)
    assert np.isfinite(result["test_result"]["ndcg@5"])
    with safe_open(Path(result["folder"]) / "model.safetensors", "pt") as saved:
        assert not [name for name in saved.keys() if "soft" in name]  # noqa: SIM118
    state = torch.load(Path(result["folder"]) / "training_state.pt", weights_only=True)
    assert not [name for name in state["model"] if "soft" in name]
    assert load(result["folder"]).recommend(["i1", "i2"], k=3)
    (again,) = api.run(resume=result["folder"], settings={"data_path": settings["data_path"]})
    assert again["test_result"] == result["test_result"]


def test_without_smoothing_there_is_nothing(tmp_path: Path) -> None:
    model, _ = build(tmp_path)
    assert model.soft_targets is None


@pytest.mark.parametrize("name", [*BOTH])
def test_refusals(name: str, tmp_path: Path) -> None:
    settings = write(tmp_path / "shop")
    with pytest.raises(SettingError, match=f"item_tokens='semantic' does not go with {name}"):
        RunConfig(
            "IDIOMoE",
            "shop",
            settings=settings | {name: 0.1, "item_tokens": "semantic", "use_text": False},
        )
    with pytest.raises(SettingError, match=f"{name}=1.0 is out of range"):
        RunConfig("IDIOMoE", "shop", settings=settings | {name: 1.0})


def test_items_without_text_cannot_read_alike(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="text_smoothing: no item has text"):
        build(tmp_path, text_smoothing=0.1, item_text_fields=None)
