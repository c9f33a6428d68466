"""E4SRec: its scores written out again, its first stage, and what of it never changes."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recbole_idiomoe import api, load
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.batch import collate
from recbole_idiomoe.lm import load_backbone
from recbole_idiomoe.models.e4srec.first_stage import ID_VECTORS_FILE, id_encoder_config
from recbole_idiomoe.models.e4srec.model import E4SRec
from recbole_idiomoe.models.e4srec.options import E4SRecOptions
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.protocol.evaluation import Evaluation
from tests.helpers import training_sequence
from tests.models.test_catalog_lm import CPU, LOUD, TITLES, make_catalog
from tests.training.cycle import TINY, write_cycle

OPTIONS: dict[str, Any] = E4SRec.forced_settings | {
    "backbone": "untrained",
    "backbone_args": LOUD,
    "lora_rank": 2,
    "lora_alpha": 4,
    "item_embedding_dim": 6,
}
WINDOWS = [np.array(items) for items in ([3, 1, 4, 12, 5], [9, 2], [6, 5, 3])]
ENCODER = {
    "hidden_size": 16,
    "epochs": 15,
    "train_batch_size": 16,
    "learning_rate": 0.01,
    "dropout_prob": 0.0,
}
SMALL: dict[str, Any] = TINY | {
    "MAX_ITEM_LIST_LENGTH": 5,
    "epochs": 8,
    "item_scale": 8.0,
    "id_encoder": ENCODER,
}


def build() -> CatalogLM:
    model = CatalogLM.build(
        make_catalog(),
        E4SRecOptions.from_mapping(OPTIONS),
        seed=0,
        device=CPU,
        architecture="e4srec",
    )
    generator = torch.Generator().manual_seed(1)
    model.lm.item_table.take_vectors(torch.randn(len(TITLES) + 1, 6, generator=generator))
    with torch.no_grad():
        for name, parameter in model.lm.named_parameters():
            if "lora_B" in name or "bias" in name:
                parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def by_hand(model: CatalogLM, history: np.ndarray) -> torch.Tensor:
    """Scores of all items but padding behind each of a history's, adapters in the weights."""
    weights = model.lm.state_dict()
    backbone, tokenizer = load_backbone("untrained", backbone_args=LOUD, seed=0)
    for name, parameter in backbone.named_parameters():
        found = weights.get(f"backbone.{name}")
        if found is None:
            found = weights[f"backbone.{name.rpartition('.')[0]}.base_layer.weight"]
        parameter.data = found.clone()
    for name, module in backbone.named_modules():
        key = f"backbone.{name}.lora_%s.default.weight"
        if key % "A" in weights:
            module.weight.data += 4 / 2 * weights[key % "B"] @ weights[key % "A"]
    instruction = tokenizer("The user has interacted with", return_tensors="pt").input_ids[0]
    vectors = weights["item_table.vectors"][history]
    read = vectors @ weights["item_table.projection.weight"].T
    read = (read + weights["item_table.projection.bias"]) * model.lm.config.item_input_factor
    inputs = torch.cat((backbone.get_input_embeddings()(instruction), read))
    states = backbone.model(inputs_embeds=inputs[None]).last_hidden_state[0, len(instruction) :]
    return states @ weights["item_table.rows"][1:].T


def test_scores_and_loss_are_those_of_the_definition() -> None:
    model = build()
    adapted = {n for n, _ in model.lm.named_parameters() if "lora" in n}
    assert len(adapted) == 2 * 3 * 2 and all(".mlp." in name for name in adapted)
    sequences = [training_sequence(model.builder, w, with_text=False) for w in WINDOWS]
    losses = []
    found = model.scores([window[:-1] for window in WINDOWS])
    for window, row in zip(WINDOWS, found, strict=True):
        logits = by_hand(model, window[:-1])
        torch.testing.assert_close(row[1:], logits[-1], atol=1e-4, rtol=1e-4)
        targets = torch.from_numpy(window[1:]) - 1
        losses.append(torch.nn.functional.cross_entropy(logits, targets, reduction="none"))
        assert logits[-1].std() > 0.1
    loss = model.loss(collate(sequences, model.pad_token_id))
    torch.testing.assert_close(loss, torch.cat(losses).mean(), atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def cycle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("data") / "cycle", users=100)


def run(cycle: Path, **options: Any) -> dict[str, Any]:
    (result,) = api.run("E4SRec", "cycle", settings=SMALL | {"data_path": str(cycle)} | options)
    return result


def stored(folder: str | Path) -> tuple[list[str], np.ndarray]:
    with np.load(Path(folder) / ID_VECTORS_FILE) as archive:
        return archive["item_ids"].tolist(), archive["vectors"]


def test_both_stages_learn_a_rule_and_what_is_frozen_stays(cycle: Path) -> None:
    result = run(cycle)
    assert result["test_result"]["hit@1"] > 0.95
    assert result["best_valid_result"]["ndcg@10"] > 0.95
    recommender = load(result["folder"])
    history = [f"i{n}" for n in range(5, 9)]
    assert recommender.recommend(history, k=1)[0].item_id == "i9"
    with pytest.raises(SettingError, match="E4SRec cannot rank items"):
        recommender.add_items([{"item_id": "new", "title": "new", "category": "toys"}])

    item_ids, vectors = stored(result["folder"])
    model = recommender.catalog_lm
    assert model is not None and item_ids == model.catalog.item_ids[1:]
    table = model.lm.item_table
    assert vectors.shape == (40, 16) and torch.equal(table.vectors[1:], torch.from_numpy(vectors))
    assert not table.vectors[0].any()
    before, _ = load_backbone("untrained", backbone_args=TINY["backbone_args"], seed=result["seed"])
    after = model.lm.backbone.state_dict()
    for name, weight in before.state_dict().items():
        place = name if name in after else name.replace(".weight", ".base_layer.weight")
        assert torch.equal(after[place], weight), name


def test_the_first_stage_is_a_run_of_sasrec(cycle: Path) -> None:
    """The same vectors, to the bit, as the same SASRecCE learns by itself from these splits."""
    options = {"epochs": 1, "seed": 5}
    _, vectors = stored(run(cycle, **options)["folder"])
    alone = {k: v for k, v in TINY.items() if k not in ENCODER} | ENCODER
    alone |= {"MAX_ITEM_LIST_LENGTH": 5, "seed": 5, "data_path": str(cycle)}
    (sasrec,) = api.run("SASRecCE", "cycle", settings=alone)
    checkpoint = torch.load(Path(sasrec["folder"]) / "checkpoint.pth", weights_only=False)
    np.testing.assert_array_equal(vectors, checkpoint["state_dict"]["items.weight"][1:])


def test_what_validates_the_first_stage_is_no_time_of_training(
    cycle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = Evaluation._scores

    def slow(*args: Any, **kwargs: Any) -> Any:
        time.sleep(0.1)
        return scores(*args, **kwargs)

    monkeypatch.setattr(Evaluation, "_scores", slow)
    assert run(cycle, epochs=1)["eval_seconds"] > 0.1 * ENCODER["epochs"]


def test_given_vectors_replace_the_first_stage(cycle: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.npz"
    vectors = np.random.default_rng(0).normal(size=(40, 4)).astype(np.float32)
    np.savez(file, item_ids=[f"i{n}" for n in range(40)], vectors=vectors)
    folder = Path(run(cycle, epochs=1, id_vectors=str(file))["folder"])
    assert not (folder / ID_VECTORS_FILE).exists()
    model = load(folder).catalog_lm
    assert model is not None
    rows = model.catalog.rows([f"i{n}" for n in range(40)])
    np.testing.assert_array_equal(model.lm.item_table.vectors[rows].numpy(), vectors)
    with pytest.raises(SettingError, match=r"^id_vectors='none.npz' cannot be read"):
        run(cycle, id_vectors="none.npz")


def test_a_run_that_is_gone_on_with_keeps_its_vectors(
    cycle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(run(cycle, epochs=2)["folder"])
    before = stored(folder)[1]
    monkeypatch.setattr("recbole_idiomoe.models.e4srec.first_stage._train_id_encoder", None)
    (result,) = api.run(resume=folder, settings={"epochs": 3})
    assert result["epochs"] == 3
    np.testing.assert_array_equal(stored(folder)[1], before)


def test_a_seed_repeats_both_stages(cycle: Path) -> None:
    one, same, other = (run(cycle, epochs=1, seed=seed) for seed in (7, 7, 8))
    assert one["test_result"] == same["test_result"] != other["test_result"]
    np.testing.assert_array_equal(stored(one["folder"])[1], stored(same["folder"])[1])


def test_held_out_items_play_no_part(cycle: Path) -> None:
    result = run(cycle, epochs=1, cold_start=0.2)
    assert result["cold_start"]["unseen_targets"] > 0 and result["cold_start"]["unseen"] is None


def test_the_first_stage_keeps_the_protocol_and_settings_of_its_own() -> None:
    given = {"learning_rate": 0.5, "seed": 3, "mask_seen": False, "MAX_ITEM_LIST_LENGTH": 7}
    config = RunConfig("E4SRec", "ml-100k", settings=given | {"id_encoder": {"n_layers": 2}})
    stage, alone = id_encoder_config(config), RunConfig("SASRecCE", "ml-100k")
    found, wanted = stage.complete_settings(), alone.complete_settings()
    read = wanted.keys() - E4SRec.forced_settings.keys()  # these no SASRec reads
    differs = {key for key in read if found[key] != wanted[key]}
    assert differs == {"n_layers", "seed", "mask_seen", "MAX_ITEM_LIST_LENGTH", "id_encoder"}
    misspelt = RunConfig("E4SRec", "ml-100k", settings={"id_encoder": {"n_layer": 2}})
    with pytest.raises(SettingError, match="n_layer"):
        id_encoder_config(misspelt)
