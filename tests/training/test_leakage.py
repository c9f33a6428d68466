"""What is to be predicted reaches neither training nor, by its text, its own prediction."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data import data_preparation
from recbole.utils import init_seed

from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.batch import SequenceBatch, collate
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.language.forward import hidden_states
from recbole_idiomoe.models.registry import LANGUAGE_MODELS, MODELS, get_model
from recbole_idiomoe.protocol.clock import Clock
from recbole_idiomoe.training.trainers import Stage, first_stage, get_trainer
from tests.golden.runs import COMMON, OWN
from tests.helpers import NAMES, training_sequence, write_dataset

USERS, ITEMS, LENGTH = 24, 30, 8
TITLES = [f"thing number {n} of many" for n in range(ITEMS)]
Rows = list[tuple[str, str, float]]


def histories(permuted: int | None = None) -> Rows:
    """Rows by position, so that items are numbered alike, two thirds of them before the last.

    Args:
        permuted: position whose items go round among the users, -1 that of the test targets.
    """
    by_position = [
        [(f"u{user}", f"i{(user * 7 + n * 5) % ITEMS}") for user in range(USERS)]
        for n in range(LENGTH)
    ]
    if permuted is not None:
        row = by_position[permuted]
        by_position[permuted] = [(u, row[(n + 1) % USERS][1]) for n, (u, _) in enumerate(row)]
    return [(u, i, float(when)) for when, row in enumerate(by_position) for u, i in row]


def learnt_from(model: str, rows: Rows, place: Path) -> list[Any]:
    """All that two epochs of ``model`` are trained on, and the model before them."""
    items = [(f"i{n}", title, f"cat{n % 3}") for n, title in enumerate(TITLES)]
    path = write_dataset(place / "toy", rows, items, NAMES)
    settings = COMMON | OWN[model] | {"topk": [10], "data_path": str(path), "epochs": 2}
    settings["MAX_ITEM_LIST_LENGTH"] = 4
    if model == "E4SRec":  # its first stage learns too
        settings["id_encoder"] = settings["id_encoder"] | {"epochs": 1}
    config = RunConfig(model, "toy", settings=settings)
    init_seed(config["seed"], config["reproducibility"])
    train, valid, _ = data_preparation(config, load_dataset(config))
    if stage := first_stage(config):
        stage.train(Stage(config, train, valid, place / "stage", Clock()))
    init_seed(config["seed"], config["reproducibility"])
    built = get_model(model)(config, train._dataset)
    trainer = get_trainer(model)(config, built)
    trainer.saved_model_file = str(place / "run" / "model")
    state = [value for value in built.state_dict().values() if isinstance(value, torch.Tensor)]
    return [value.clone() for value in state] + list(batches(trainer, train))


def batches(trainer: Any, train: Any) -> Iterator[Any]:
    """Every tensor and number of every batch of two epochs."""
    if not hasattr(trainer, "_prepare"):
        for _ in range(2):
            for interaction in train:
                yield from (interaction[field] for field in sorted(interaction.interaction))
        return
    trainer._prepare(train)
    for epoch in range(2):
        shares = trainer.curriculum.text_share(epoch), trainer.curriculum.query_share(epoch)
        trainer.loader.set_epoch(epoch, *shares)
        for step in trainer.loader:
            for batch in step:
                yield from (getattr(batch, field.name) for field in fields(batch))


def same(one: list[Any], other: list[Any]) -> bool:
    return len(one) == len(other) and all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize("model", [*MODELS, "SASRec", "GRU4Rec"])
def test_permuted_test_targets_change_nothing_that_is_trained_on(
    model: str, tmp_path: Path
) -> None:
    before = learnt_from(model, histories(), tmp_path / "as they are")
    assert same(learnt_from(model, histories(permuted=-1), tmp_path / "permuted"), before)


@pytest.mark.parametrize("model", ["IDIOMoE", "E4SRec", "TransitionCounter", "SASRecCE", "TIGER"])
def test_what_is_trained_on_would_have_changed_with_it(model: str, tmp_path: Path) -> None:
    before = learnt_from(model, histories(), tmp_path / "as they are")
    assert not same(learnt_from(model, histories(permuted=-3), tmp_path / "permuted"), before)


def language_model(model: str, place: Path) -> Any:
    items = [(f"i{n}", title, f"cat{n % 3}") for n, title in enumerate(TITLES)]
    path = write_dataset(place / "toy", histories(), items, NAMES)
    settings = COMMON | OWN[model] | {"topk": [10], "data_path": str(path)}
    settings["max_item_text_tokens"] = 6
    config = RunConfig(model, "toy", settings=settings)
    init_seed(config["seed"], config["reproducibility"])
    dataset = load_dataset(config)
    if model == "E4SRec":
        train, valid, _ = data_preparation(config, dataset)
        stage = first_stage(config)
        assert stage is not None
        stage.train(Stage(config, train, valid, place / "stage", Clock()))
        dataset = train._dataset
    else:
        dataset = dataset.build()[0]
    catalog_lm = get_model(model)(config, dataset).catalog_lm.eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # far from what it starts as, where much of it does nothing yet
        for parameter in catalog_lm.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(0.3 * noise)
    return catalog_lm


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
def test_a_training_prediction_reads_nothing_of_its_target(model: str, tmp_path: Path) -> None:
    """Whatever stands behind where an item is predicted from, its text or its ID, may change."""
    catalog_lm = language_model(model, tmp_path)
    window = np.array([3, 17, 8, 25, 11])
    batch = collate([training_sequence(catalog_lm.builder, window)], catalog_lm.pad_token_id)
    offset = catalog_lm.lm.config.item_token_offset
    states = _states(catalog_lm, batch)
    for at in batch.predict_at.tolist():
        behind = torch.arange(batch.input_ids.shape[1]) > at
        other = torch.where(  # of the same types, on which masks and experts may depend
            batch.token_types == 1, (batch.input_ids - offset + 5) % ITEMS + offset, 321
        )
        changed = replace(batch, input_ids=torch.where(behind, other, batch.input_ids))
        after = _states(catalog_lm, changed)
        torch.testing.assert_close(after[at], states[at], rtol=1e-4, atol=1e-4)
        if at + 1 < len(states):
            assert not torch.allclose(after[at + 1], states[at + 1], rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("model", LANGUAGE_MODELS)
def test_the_text_of_no_item_outside_the_history_reaches_a_ranking(
    model: str, tmp_path: Path
) -> None:
    catalog_lm = language_model(model, tmp_path)
    history, target = np.array([3, 17, 8]), 25
    before = catalog_lm.scores([history])
    assert torch.equal(_retitled(catalog_lm, target).scores([history]), before)
    if catalog_lm.settings.use_text:
        assert not torch.equal(_retitled(catalog_lm, 17).scores([history]), before)


@torch.no_grad()
def _states(catalog_lm: Any, batch: SequenceBatch) -> torch.Tensor:
    states: torch.Tensor = hidden_states(catalog_lm.lm, batch)
    return states


def _retitled(catalog_lm: Any, item: int) -> Any:
    """The same weights and item tokens, and another text of ``item`` in sequences."""
    texts = list(catalog_lm.catalog.texts)
    texts[item] = "title: quite another"
    catalog_lm.set_catalog(replace(catalog_lm.catalog, texts=texts), catalog_lm.item_codes)
    return catalog_lm
