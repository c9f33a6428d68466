"""CoVE against its definition, written out again without the package's model."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_idiomoe import api, load
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.data.batch import collate
from recbole_idiomoe.lm import load_backbone
from recbole_idiomoe.models.cove.model import CausalCatalogLM, CoVE
from recbole_idiomoe.models.cove.options import CoVEOptions
from tests.helpers import training_sequence
from tests.models.test_catalog_lm import CPU, LOUD, TITLES, make_catalog, make_loader
from tests.models.test_host_syncs import train_step
from tests.training.cycle import TINY, write_cycle

OPTIONS: dict[str, Any] = CoVE.forced_settings | {
    "backbone": "untrained",
    "backbone_args": LOUD,
    "lora_rank": 2,
    "lora_alpha": 4,
}
WINDOWS = [np.array(items) for items in ([3, 1, 4, 12, 5], [9, 2], [6, 5, 3])]


def build(**options: Any) -> CausalCatalogLM:
    catalog = replace(make_catalog(), texts=["", *(f': "{title}",' for title in TITLES)])
    model = CausalCatalogLM.build(
        catalog,
        CoVEOptions.from_mapping(OPTIONS | options),
        seed=0,
        device=CPU,
        architecture="cove",
    )
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # adapters that do something
        for name, parameter in model.lm.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def by_hand(model: CausalCatalogLM, window: np.ndarray) -> tuple[list[int], torch.Tensor]:
    """Tokens of a whole window as the authors write it, and log probabilities of each next one.

    With adapters put into the weights, and both tables made from rows and codes by hand.
    """
    weights = model.lm.state_dict()
    backbone, tokenizer = load_backbone("untrained", backbone_args=LOUD, seed=0)
    for name, module in backbone.named_modules():
        if f"backbone.{name}.lora_A.default.weight" in weights:
            a, b = (weights[f"backbone.{name}.lora_{part}.default.weight"] for part in "AB")
            module.weight.data += 4 / 2 * b @ a
    offset = backbone.config.vocab_size
    tokens = tokenizer.encode("The user has interacted with")
    for item in window[:-1]:
        title = TITLES[item - 1]
        tokens += [offset + int(item), *tokenizer.encode(f': "{title}",')]
    tokens.append(offset + int(window[-1]))

    codes = weights["item_table.codes"]
    read = weights["item_table.inputs.weight"][codes].mean(1) * model.lm.config.item_input_factor
    scored = weights["item_table.rows"][codes].mean(1)[1:]
    embedding = torch.cat((backbone.get_input_embeddings().weight, read))
    states = backbone.model(inputs_embeds=embedding[tokens[:-1]][None]).last_hidden_state[0]
    padding = torch.full((len(states), 1), -torch.inf)
    logits = torch.cat((backbone.lm_head(states), padding, states @ scored.T), dim=1)
    return tokens, logits.log_softmax(dim=1)


def test_the_loss_is_that_of_every_next_token() -> None:
    model = build()
    batch = collate([training_sequence(model.builder, w) for w in WINDOWS], model.pad_token_id)
    losses = []
    for window in WINDOWS:
        tokens, log_probabilities = by_hand(model, window)
        losses += [-p[token] for p, token in zip(log_probabilities, tokens[1:], strict=True)]
    assert batch.token_count == len(losses)
    wanted = torch.stack(losses).mean()
    torch.testing.assert_close(model.loss(batch), wanted, rtol=1e-4, atol=1e-4)


def test_scores_are_those_behind_the_last_comma() -> None:
    model = build()
    found = model.scores([window[:-1] for window in WINDOWS])
    for row, window in zip(found, WINDOWS, strict=True):
        _, log_probabilities = by_hand(model, window)
        wanted = log_probabilities[-1, -len(TITLES) :]
        torch.testing.assert_close(row[1:].log_softmax(0), wanted.log_softmax(0), atol=1e-4, rtol=0)
        assert wanted.std() > 0.1


def test_a_step_that_is_cut_up_has_the_loss_of_the_whole() -> None:
    model = build()
    losses = []
    for most in (30, 100_000):
        (step,) = make_loader(model, WINDOWS, most)
        losses.append(sum(model.loss(batch) for batch in step))
    assert len(step) == 1
    torch.testing.assert_close(losses[0], losses[1])


def test_a_training_step_never_waits() -> None:
    model = build().train()
    batch = collate([training_sequence(model.builder, w) for w in WINDOWS], model.pad_token_id)
    assert train_step(model, batch).waits == []


def test_items_held_out_are_no_candidates_in_training() -> None:
    model = build()
    batch = collate([training_sequence(model.builder, w) for w in WINDOWS], model.pad_token_id)
    model.untrained = torch.tensor([7, 8])
    model.loss(batch).backward()
    without = model.lm.item_table.rows.grad
    model.zero_grad()
    model.untrained = torch.tensor([], dtype=torch.int64)
    model.loss(batch).backward()
    assert without is not None and not torch.allclose(without, model.lm.item_table.rows.grad)


def test_a_rule_is_learnt_and_the_language_model_stays(tmp_path: Path) -> None:
    write_cycle(tmp_path / "cycle", users=120)
    backbone_args = TINY["backbone_args"] | {"initializer_range": 0.2}
    settings = TINY | {
        "data_path": str(tmp_path),
        "backbone_args": backbone_args,
        "MAX_ITEM_LIST_LENGTH": 5,
        "max_item_text_tokens": 2,
        "item_scale": 8.0,
        "train_batch_size": 8,
        "epochs": 12,
    }
    (result,) = api.run("CoVE", "cycle", settings=settings)
    assert result["best_valid_result"]["ndcg@10"] > 0.8 and result["test_result"]["hit@1"] > 0.7
    recommender = load(result["folder"])
    history = [f"i{n}" for n in range(5, 9)]
    found = [item.item_id for item in recommender.recommend(history, k=3)]
    assert "i9" in found
    session = recommender.session(history[:-1])
    session.add(history[-1])
    assert [item.item_id for item in session.recommend(k=3)] == found
    with pytest.raises(SettingError, match="CoVE cannot rank items"):
        recommender.add_items([{"item_id": "new", "title": "new", "category": "toys"}])

    model = recommender.catalog_lm
    assert model is not None
    catalog, table = model.catalog, model.lm.item_table
    assert catalog.texts[1] == f': "{catalog.titles[1]}",'
    assert table.rows.shape == table.inputs.weight.shape == (20, 32)
    before, _ = load_backbone("untrained", backbone_args=backbone_args, seed=result["seed"])
    after = model.lm.backbone.state_dict()
    for name, weight in before.state_dict().items():
        place = name if name in after else name.replace(".weight", ".base_layer.weight")
        place = place if place in after else place.replace(".bias", ".base_layer.bias")
        assert torch.equal(after[place], weight), name


def test_it_is_made_as_it_is() -> None:
    with pytest.raises(SettingError, match="CoVE is made with segment_order='ID text'"):
        api.run("CoVE", "ml-100k", settings={"segment_order": "text ID"})
