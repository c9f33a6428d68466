"""IDIOMoE among RecBole's models: its interface, what it may look at, and what stays frozen."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.data import data_preparation
from recbole.data.interaction import Interaction

from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.lm import encode_text, load_backbone
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.training.trainer import IdiomoeTrainer
from recbole_idiomoe.training.trainers import get_trainer
from tests.helpers import TINY_BACKBONE
from tests.training.cycle import TINY, write_cycle

# Weights far larger than a new model's, so that whatever reaches the scores shows in them.
LOUD = TINY_BACKBONE | {"initializer_range": 0.3}


def prepare(tmp_path: Path, **settings: Any) -> tuple[Any, ...]:
    """Configuration, the three loaders and an untrained model."""
    path = write_cycle(tmp_path / "cycle")
    settings = TINY | {"backbone_args": LOUD, "data_path": str(path)} | settings
    config = RunConfig("IDIOMoE", "cycle", settings=settings)
    train, valid, test = data_preparation(config, load_dataset(config))
    return config, train, valid, test, get_model("IDIOMoE")(config, train._dataset)


def held_out(test: Any) -> Interaction:
    """All test users as one interaction, with the columns that RecBole gives a model."""
    interaction, *_ = next(iter(test))
    return interaction


def test_full_sort_scores(tmp_path: Path) -> None:
    *_, test, model = prepare(tmp_path)
    interaction = held_out(test)
    scores = model.eval().full_sort_predict(interaction)
    assert scores.shape == (60, 41) == (len(interaction), test._dataset.item_num)
    assert (scores[:, 0] == -torch.inf).all() and torch.isfinite(scores[:, 1:]).all()
    for row in (0, 17, 59):
        items, length = interaction["item_id_list"][row], interaction["item_length"][row]
        alone = model.catalog_lm.scores([items[:length].numpy()])
        torch.testing.assert_close(scores[[row]], alone, atol=1e-5, rtol=1e-5)


def test_predict_is_the_column_of_the_interactions_item(tmp_path: Path) -> None:
    *_, test, model = prepare(tmp_path)
    interaction = held_out(test)
    scores = model.eval().full_sort_predict(interaction)
    wanted = [scores[row, item] for row, item in enumerate(interaction["item_id"].tolist())]
    assert torch.equal(model.predict(interaction), torch.stack(wanted))


def test_the_targets_own_columns_reach_no_score(tmp_path: Path) -> None:
    """RecBole puts the item to be found, and its features, into the same row."""
    *_, test, model = prepare(tmp_path)
    interaction = held_out(test)
    history = {"item_id_list", "item_length"}
    assert {"item_id", "title", "categories"} <= set(interaction.columns)
    permuted = Interaction(
        {
            name: column if name in history else column.flip(0)
            for name, column in interaction.interaction.items()
        }
    )
    assert not torch.equal(permuted["item_id"], interaction["item_id"])
    model.eval()
    assert torch.equal(model.full_sort_predict(permuted), model.full_sort_predict(interaction))


def test_what_stands_behind_the_length_reaches_no_score(tmp_path: Path) -> None:
    *_, test, model = prepare(tmp_path)
    interaction = held_out(test)
    wanted = model.eval().full_sort_predict(interaction)
    width = interaction["item_id_list"].shape[1]
    padding = torch.arange(width) >= interaction["item_length"][:, None]
    assert padding.any()
    interaction["item_id_list"][padding] = 7
    assert torch.equal(model.full_sort_predict(interaction), wanted)


def test_the_sampled_candidates_of_recbole_rank_by_the_same_scores(tmp_path: Path) -> None:
    config, _, valid, _, model = prepare(tmp_path, eval_args={"mode": "uni20"})
    trainer = get_trainer("IDIOMoE")(config, model)
    found = trainer.evaluate(valid, load_best_model=False)
    assert set(found) >= {"hit@10", "ndcg@10"} and 0 < found["hit@10"] < 1


def text_side(lm: Any, tokens: torch.Tensor, vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.no_grad():
        output = lm(tokens, labels=tokens)
    return output.logits[..., :vocab_size], output.loss


@pytest.mark.parametrize("text_loss_weight", [0.0, 0.5])
def test_a_frozen_backbone_speaks_as_before_training(
    text_loss_weight: float, tmp_path: Path
) -> None:
    config, train, valid, _, model = prepare(
        tmp_path,
        freeze="backbone",
        text_loss_weight=text_loss_weight,
        dropout=0.1,
        epochs=3,
        checkpoint_dir=str(tmp_path),
    )
    catalog_lm = model.catalog_lm
    settings, catalog = catalog_lm.settings, catalog_lm.catalog
    untouched, tokenizer = load_backbone(
        "untrained", backbone_args=settings.backbone_args, seed=config["seed"]
    )
    size = untouched.config.vocab_size
    rows = encode_text(tokenizer, [f"{settings.instruction} {text}" for text in catalog.texts[1:9]])
    tokens = torch.tensor([row[:12] for row in rows])
    wanted, wanted_loss = text_side(untouched, tokens, size)

    def assert_untouched() -> None:
        logits, loss = text_side(catalog_lm.lm.eval(), tokens, size)
        assert torch.equal(logits, wanted) and torch.equal(loss, wanted_loss)

    assert_untouched()
    before = {name: p.detach().clone() for name, p in catalog_lm.lm.named_parameters()}
    trainer = IdiomoeTrainer(config, model)
    trainer.saved_model_file = str(tmp_path / "run" / "checkpoint.pth")
    trainer.fit(train, valid)
    assert_untouched()
    trainer.evaluate(valid)  # reads the saved model back
    assert_untouched()

    moved = {n for n, p in catalog_lm.lm.named_parameters() if not torch.equal(p, before[n])}
    ours = {n for n in before if "item_expert" in n or n.startswith("item_table")}
    assert moved == ours


def test_the_padding_row_never_moves(tmp_path: Path) -> None:
    config, train, valid, _, model = prepare(tmp_path, epochs=2, checkpoint_dir=str(tmp_path))
    trainer = IdiomoeTrainer(config, model)
    trainer.saved_model_file = str(tmp_path / "run" / "checkpoint.pth")
    trainer.fit(train, valid)
    assert not model.catalog_lm.lm.item_table.rows[0].any()


def test_a_history_longer_than_the_model_reads_keeps_its_end(tmp_path: Path) -> None:
    *_, model = prepare(tmp_path, max_tokens=24)
    most = model.catalog_lm.builder.room
    items = np.arange(1, 41)
    assert most < 40
    model.eval()
    whole, end = model.catalog_lm.scores([items]), model.catalog_lm.scores([items[-most:]])
    assert torch.equal(whole, end)
