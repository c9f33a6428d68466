"""Scores that hold nan are refused, whichever model gives them and however it is evaluated."""

from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.models.registry import get_model
from tests.models.tiny_baselines import SMALL
from tests.training.cycle import TINY, write_cycle


def refused(model: str, place: Path, **settings: Any) -> str:
    path = write_cycle(place / "cycle")
    options = TINY | SMALL.get(model, {}) | {"epochs": 1, "eval_batch_size": 7} | settings
    with pytest.raises(IdiomoeError) as error:
        api.run(model, "cycle", settings=options | {"data_path": str(path)})
    assert "\n" not in str(error.value)
    return str(error.value)


def spoil(monkeypatch: pytest.MonkeyPatch, model: str, users: set[int], after: int = 0) -> None:
    """Have ``model`` score one item nan for ``users``, from call ``after`` on."""
    cls = get_model(model)
    original, calls = cls.full_sort_predict, 0

    def spoilt(self: Any, interaction: Any) -> torch.Tensor:
        nonlocal calls
        scores = original(self, interaction).clone().view(len(interaction), -1)
        for row, user in enumerate(interaction["user_id"].tolist()):
            if user in users and calls >= after:
                scores[row, 3] = torch.nan
        calls += 1
        return scores

    monkeypatch.setattr(cls, "full_sort_predict", spoilt)


@pytest.mark.parametrize("model", ["IDIOMoE", "TitleLLM", "SASRec", "GRU4Rec", *SMALL])
def test_every_model_is_refused_by_name_and_user(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, model, {12})
    # RecBole numbers users as they come: u0 is 1.
    assert refused(model, tmp_path).startswith(f"{model} scores items nan for user u11: ")


@pytest.mark.parametrize("settings", [{}, {"mix": "TransitionCounter"}, {"cold_start": 0.1}])
def test_the_test_is_refused_too(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, "SASRecCE", {12, 30, 40}, after=9)  # 60 users, 7 at once, are validated
    said = refused("SASRecCE", tmp_path, **settings)
    assert said.startswith("SASRecCE scores items nan for user u11 and 2 more: ")


@pytest.mark.parametrize("model", ["IDIOMoE", "SASRec"])
def test_sampled_candidates_are_looked_at_too(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cls = get_model(model)
    predict = cls.predict

    def spoilt(self: Any, interaction: Any) -> torch.Tensor:
        scores = predict(self, interaction)
        return torch.where(interaction["user_id"] == 12, torch.nan, scores)

    monkeypatch.setattr(cls, "predict", spoilt)
    sampled = {"eval_args": {"mode": "uni20"}, "mask_seen": False, "eval_batch_size": 512}
    assert f"{model} scores items nan for user u11: " in refused(model, tmp_path, **sampled)


def test_what_is_masked_is_no_nan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = get_model("SASRec")
    original = cls.full_sort_predict

    def extreme(self: Any, interaction: Any) -> torch.Tensor:
        scores = original(self, interaction)
        scores[:, 1::2] = -torch.inf
        scores[:, 4] = torch.inf
        return scores

    monkeypatch.setattr(cls, "full_sort_predict", extreme)
    path = write_cycle(tmp_path / "cycle")
    settings = TINY | {"epochs": 1, "data_path": str(path)}
    (result,) = api.run("SASRec", "cycle", settings=settings)
    assert 0 < result["test_result"]["hit@5"] < 1
