"""A loss that is no number: the run stops, and its folder says whose step it was."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.runs import execution
from recbole_idiomoe.training import trainer as trainer_module
from recbole_idiomoe.training.loss_watch import FILE_NAME
from recbole_idiomoe.training.trainer import IdiomoeTrainer
from recbole_idiomoe.tuning import tune
from tests.helpers import write_dataset
from tests.training.cycle import TINY

USERS, LENGTH = 40, 9
SMALL = TINY | {"train_batch_size": 5, "epochs": 3, "MAX_ITEM_LIST_LENGTH": 4}


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    """Nobody has another's items, so that items tell the user."""
    items = {user: [f"u{user}-{n}" for n in range(LENGTH)] for user in range(USERS)}
    rows = [(f"u{u}", item, float(n)) for u in items for n, item in enumerate(items[u])]
    described = [(item, f"thing {item}", "c") for _, item, _ in rows]
    return write_dataset(tmp_path / "data" / "own", rows, described)


@pytest.fixture
def nan_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """SASRec's loss is no number."""
    trained = get_model("SASRec")
    calculate_loss = trained.calculate_loss
    monkeypatch.setattr(trained, "calculate_loss", lambda *args: calculate_loss(*args) * math.nan)


def kept(said: str, file: Path) -> None:
    """The message names ``file``, which is there, and nothing that is not."""
    assert f"precision: fp32 (the step's users: {file})" in said and "\n" not in said
    content = json.loads(file.read_text())
    assert content["users"] and set(content["users"]) <= {f"u{user}" for user in range(USERS)}
    assert not list(Path("saved").iterdir())


def of_a_table(path: Path, **more: Any) -> dict[str, Any]:
    sizes = {"model": "SASRec", "hidden_size": 16, "n_layers": 1, "n_heads": 2}
    own = {"data_path": str(path), "checkpoint_dir": "saved", "variants": {"row": sizes}}
    return SMALL | own | more


def failed(**options: Any) -> str:
    """What a table said whose only run fails."""
    with pytest.raises(IdiomoeError, match="1 of 1 runs failed: ") as error:
        api.run(datasets="own", **options)
    return str(error.value)


@pytest.mark.usefixtures("nan_at_once")
def test_a_grid_keeps_the_users_beside_its_runs(
    data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = failed(settings=of_a_table(data_path), result_file="grid.json")
    (file,) = Path("grid.json.runs").iterdir()
    kept(said, file)

    def other(plan: Any) -> Any:
        raise IdiomoeError("no luck")

    monkeypatch.setattr(execution, "execute", other)
    failed(settings=of_a_table(data_path), result_file="grid.json")
    assert not file.exists()  # it was of an earlier try


@pytest.mark.usefixtures("nan_at_once")
def test_a_grid_that_keeps_nothing_names_no_file(data_path: Path) -> None:
    said = failed(settings=of_a_table(data_path))
    assert said.endswith("max_norm: 1.0} or precision: fp32.")
    assert not list(Path("saved").iterdir()) and not list(Path().rglob(FILE_NAME))


@pytest.mark.usefixtures("nan_at_once")
def test_a_leaderboard_keeps_the_users_beside_its_runs(data_path: Path) -> None:
    said = failed(settings=of_a_table(data_path), leaderboard="board")
    (file,) = Path("board/runs").iterdir()
    kept(said, file)


@pytest.mark.slow
def test_a_process_keeps_the_users_beside_its_log(data_path: Path) -> None:
    """At such a rate the weights overflow, in a process that no test can reach into."""
    settings = of_a_table(data_path, learning_rate=1e30)
    said = failed(settings=settings, result_file="grid.json", jobs=2)
    (log,) = Path("grid.json.runs").glob("*.log")
    (file,) = Path("grid.json.runs").glob(f"*.{FILE_NAME}")
    kept(said, file)
    assert str(file) in log.read_text().splitlines()[-1]
    said = failed(settings=settings, jobs=2)
    assert said.endswith("max_norm: 1.0} or precision: fp32.")


@pytest.mark.usefixtures("nan_at_once")
def test_a_search_keeps_the_users_beside_its_trials(data_path: Path) -> None:
    pytest.importorskip("optuna")
    searched = {"search_space": {"n_layers": {"choices": [1, 2]}}}
    settings = SMALL | searched | {"data_path": str(data_path), "checkpoint_dir": "saved"}
    with pytest.raises(IdiomoeError, match="became nan") as error:
        tune("SASRec", "own", settings=settings, trials=2)
    kept(str(error.value), Path("tuned") / f"SASRec_own.trial-1.{FILE_NAME}")


def stopped(model: str, path: Path, **settings: Any) -> tuple[str, dict[str, Any]]:
    """What a run said that was stopped, and the file that it names."""
    options = SMALL | settings | {"data_path": str(path), "checkpoint_dir": "saved"}
    with pytest.raises(IdiomoeError) as error:
        api.run(model, "own", settings=options)
    assert "became" in str(error.value), error.value
    (file,) = Path("saved").rglob(FILE_NAME)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    return str(error.value), json.loads(file.read_text())


@pytest.mark.parametrize(
    ("looks", "bad", "at"), [(1, "inf", 7), (4, "-inf", 12), (4, "nan", 1), (1000, "nan", 25)]
)
def test_ours_names_the_users_of_the_first_bad_step(
    looks: int, bad: str, at: int, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_module, "LOSS_EVERY", looks)
    train, steps = IdiomoeTrainer._backward, []

    def spoilt(self: IdiomoeTrainer, batch: Any) -> torch.Tensor:
        first_item = self.catalog_lm.lm.config.item_token_offset
        rows = batch.input_ids[batch.input_ids >= first_item] - first_item
        ids = [self.catalog_lm.catalog.item_ids[row] for row in rows]
        steps.append({item.split("-")[0] for item in ids})
        return torch.tensor(float(bad)) if len(steps) == at else train(self, batch)

    monkeypatch.setattr(IdiomoeTrainer, "_backward", spoilt)
    message, file = stopped("IDIOMoE", data_path)
    epoch_steps = 16  # two windows a user, five windows a step
    epoch, step = divmod(at - 1, epoch_steps)
    assert file["epoch"] == epoch and f"in epoch {epoch};" in message
    assert file["loss"] in ("nan", "inf", "-inf") and f"became {file['loss']}" in message
    assert len(file["users"]) == len(set(file["users"]))
    assert set(file["users"]) == steps[at - 1]
    assert set(file["users_before"]) == (steps[at - 2] if step else set())


@pytest.mark.parametrize("bad", ["nan", "inf"])
@pytest.mark.parametrize("model", ["SASRec", "SASRecCE", "TIGER", "S3Rec", "E4SRec"])
def test_recboles_trainers_stop_too_in_every_stage(
    model: str, bad: str, data_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3Rec and E4SRec begin with a stage of RecBole's."""
    trained = get_model({"E4SRec": "SASRecCE"}.get(model, model))
    calculate_loss, batches = trained.calculate_loss, []

    def spoilt(self: Any, interaction: Any) -> torch.Tensor:
        batches.append({f"u{int(item) // LENGTH}" for item in interaction["item_id"] - 1})
        return calculate_loss(self, interaction) * (float(bad) if len(batches) == 3 else 1)

    monkeypatch.setattr(trained, "calculate_loss", spoilt)
    sizes = {"hidden_size": 16, "n_layers": 1, "n_heads": 2}
    own = {
        "S3Rec": sizes | {"pretrain_epochs": 1, "item_attribute": "categories"},
        "TIGER": sizes | {"semantic_codebook_size": 8, "head_size": 8},
        "E4SRec": {"id_encoder": {"train_batch_size": 5}},
    }.get(model, sizes)
    message, file = stopped(model, data_path, **own)
    assert file["epoch"] == 0 and f"became {bad} in epoch 0;" in message
    assert set(file["users"]) == batches[2] and set(file["users_before"]) == batches[1]
