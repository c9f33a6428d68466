"""A loss that is no number: the run stops, and its folder says whose step it was."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_idiomoe import quick_start
from recbole_idiomoe.errors import IdiomoeError
from recbole_idiomoe.registry import get_model
from recbole_idiomoe.training import trainer as trainer_module
from recbole_idiomoe.training.loss_watch import FILE_NAME
from recbole_idiomoe.training.trainer import IdiomoeTrainer
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


def stopped(model: str, path: Path, **settings: Any) -> tuple[str, dict[str, Any]]:
    """What a run said that was stopped, and the file that it names."""
    options = SMALL | settings | {"data_path": str(path), "checkpoint_dir": "saved"}
    with pytest.raises(IdiomoeError) as error:
        quick_start.run(model, "own", settings=options)
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
def test_recboles_trainers_do_likewise_in_every_stage(
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
