"""HSTU against loops that follow its equations."""

import logging
import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_idiomoe import api, load
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.hstu.model import time_buckets
from recbole_idiomoe.models.registry import get_model
from tests.helpers import DATASET_SETTINGS, write_dataset
from tests.models.tiny_baselines import LONGEST, SMALL, build, interaction

HISTORY = [3, 9, 4, 9, 1]


def silu(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / (1 + np.exp(-x)))


def normed(x: np.ndarray) -> np.ndarray:
    return np.asarray((x - x.mean()) / math.sqrt(x.var() + 1e-6))


def unit(x: np.ndarray) -> np.ndarray:
    return np.asarray(x / np.linalg.norm(x))


def by_hand(model: Any, history: list[int], times: list[float] | None) -> np.ndarray:
    """Logits of all items after ``history``, one number at a time."""
    weights = {name: value.double().numpy() for name, value in model.state_dict().items()}
    width, heads = weights["items.weight"].shape[1], model.layers[0].heads
    size, length = width // heads, len(history)
    hidden = [
        weights["items.weight"][item] * math.sqrt(width) + weights["positions.weight"][place]
        for place, item in enumerate(history)
    ]
    for layer in range(len(model.layers)):
        own = {k.split(".", 2)[2]: v for k, v in weights.items() if k.startswith(f"layers.{layer}")}
        parts = [silu(own["uvqk.weight"] @ normed(x)) for x in hidden]
        u, v, q, k = ([part[n * width : (n + 1) * width] for part in parts] for n in range(4))
        following = []
        for i in range(length):
            mixed = np.zeros(width)
            for head in range(heads):
                at = slice(head * size, (head + 1) * size)
                for j in range(i + 1):
                    score = q[i][at] @ k[j][at] + own["position_bias"][i - j]
                    if times is not None:
                        elapsed = max(times[i] - times[j], 1)
                        score += own["time_bias"][min(int(math.log(elapsed) / 0.301), 128)]
                    mixed[at] += silu(score) / LONGEST * v[j][at]
            gated = u[i] * normed(mixed)
            following.append(hidden[i] + own["output.weight"] @ gated + own["output.bias"])
        hidden = following
    items = weights["items.weight"]
    lengths = np.linalg.norm(items, axis=1, keepdims=True)
    cosines = items / np.where(lengths > 0, lengths, 1) @ unit(hidden[-1])
    return np.asarray(cosines / model.temperature)


def loud(model: Any) -> Any:
    """Weights large enough that every part matters."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "items.weight":
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)
    return model


@pytest.mark.parametrize("use_time", [True, False])
def test_scores_are_those_of_the_equations(use_time: bool, tmp_path: Path) -> None:
    model = loud(build("HSTU", tmp_path, use_time=use_time))
    rows = interaction([HISTORY, [7, 2]])
    times = rows["timestamp_list"][0][:5].tolist() if use_time else None
    wanted = by_hand(model, HISTORY, times)
    found = model.full_sort_predict(rows)[0].detach().numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    assert np.std(wanted[1:]) > 1


def test_times_matter_only_where_they_are_used(tmp_path: Path) -> None:
    early, late = interaction([HISTORY]), interaction([HISTORY])
    late["timestamp_list"][0, 3:5] += 1e5
    for use_time in (True, False):
        model = loud(build("HSTU", tmp_path / str(use_time), use_time=use_time))
        same = torch.equal(model.full_sort_predict(early), model.full_sort_predict(late))
        assert same is not use_time


def test_the_targets_time_is_not_known(tmp_path: Path) -> None:
    """It would say when the user comes back; no other model is told."""
    model = build("HSTU", tmp_path, use_time=True)
    rows = interaction([HISTORY])
    before = model.full_sort_predict(rows)
    rows["timestamp"] = torch.tensor([9e8])
    rows["timestamp_list"][0, len(HISTORY) :] = 9e8
    assert torch.equal(model.full_sort_predict(rows), before)


def test_a_history_without_times_is_ranked_by_its_order(tmp_path: Path) -> None:
    model = build("HSTU", tmp_path, use_time=True)
    rows = interaction([HISTORY])
    del rows.interaction["timestamp_list"]
    with pytest.warns(UserWarning, match="no times"):
        found = model.full_sort_predict(rows)[0].detach().numpy()
    np.testing.assert_allclose(found, by_hand(model, HISTORY, None), atol=1e-4)
    without = build("HSTU", tmp_path / "without", use_time=False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        without.full_sort_predict(rows)


SHOP = DATASET_SETTINGS | SMALL["HSTU"] | {"topk": [5], "valid_metric": "NDCG@5", "epochs": 1}


def write_shop(place: Path, step: float, start: float) -> str:
    rows = [
        (f"u{user}", f"i{(user + n) % 12}", start + step * n)
        for user in range(30)
        for n in range(6)
    ]
    titles = [(f"i{n}", f"title {n}", "a") for n in range(12)]
    return str(write_dataset(place / "shop", rows, titles))


@pytest.mark.parametrize(
    ("step", "start", "has_times"),
    [(1.0, 0.0, False), (1.0, 1.0, False), (60.0, 9e8, True), (1.0, 9e8, True)],
)
def test_positions_are_not_read_as_times(
    step: float, start: float, has_times: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_shop(tmp_path, step, start)
    for given in (None, True, False):
        config = RunConfig("HSTU", "shop", settings=SHOP | {"data_path": path, "use_time": given})
        dataset = load_dataset(config).build()[0]
        caplog.clear()
        with caplog.at_level(logging.INFO):
            model = get_model("HSTU")(config, dataset)
        assert model.use_time is (has_times if given is None else given)
        said = [line for line in caplog.messages if line.startswith("HSTU: the timestamps of shop")]
        assert len(said) == (not has_times and given is not False)
        assert config["use_time"] is given


def test_recommendations_are_those_of_the_evaluation_where_times_are_positions(
    tmp_path: Path,
) -> None:
    path = write_shop(tmp_path, 1.0, 0.0)
    (result,) = api.run("HSTU", "shop", settings=SHOP | {"data_path": path})
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        recommender = load(result["folder"])
        lists = recommender.recommend(
            [[f"i{(user + n) % 12}" for n in range(5)] for user in range(30)], k=5
        )
    hits = [f"i{(user + 5) % 12}" in [r.item_id for r in lists[user]] for user in range(30)]
    assert np.mean(hits) == pytest.approx(result["test_result"]["hit@5"], abs=1e-4)


def test_buckets_grow_with_the_logarithm_of_time() -> None:
    times = torch.tensor([[0.0, 1.0, 2.0, 86_400.0, 1e30]])
    last = time_buckets(times)[0, 3].tolist()
    assert last == [37, 37, 37, 0, 0]  # ln 86,400 is 11.37; what is later counts as now
    assert time_buckets(times)[0, 2].tolist() == [2, 0, 0, 0, 0]
    assert time_buckets(times).max() == 128
