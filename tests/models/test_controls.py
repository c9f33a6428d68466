"""The paper's controls among RecBole's models: they train, are kept, and recommend."""

import sys
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import recbole_idiomoe
from recbole_idiomoe import api
from recbole_idiomoe.base.errors import MissingLibraryError, SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.batch import collate
from recbole_idiomoe.lm import load_backbone
from recbole_idiomoe.models import registry
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.models.language.options import IDIOMoEOptions
from recbole_idiomoe.models.language.recommender import IDIOMoE
from recbole_idiomoe.models.registry import LANGUAGE_MODELS, get_model
from recbole_idiomoe.training.trainer import IdiomoeTrainer
from tests.helpers import TINY_IDIOMOE, options_of, training_sequence
from tests.models.test_catalog_lm import CPU, HISTORIES, LOUD, make_catalog
from tests.words import few_words

CONTROLS = [name for name in LANGUAGE_MODELS if IDIOMoE in get_model(name).__mro__[1:]]
# 32 users with 20 interactions each: four seconds become one.
FEWER = TINY_IDIOMOE | {
    "user_inter_num_interval": "[20,20]",
    "expert_width": 1.0,
    "train_batch_size": 8,
    "learning_rate": 0.01,
    "warmup_steps": 1,
}
# Every token of every title costs each user a forward pass, and a softmax over all words.
SHORT_TITLES = {"TitleLLM": {"max_item_text_tokens": 2}}


def recorded_losses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A list to which every epoch that is trained adds its loss."""
    losses: list[float] = []
    train_epoch = IdiomoeTrainer._train_epoch

    def recorded(*args: Any, **options: Any) -> float:
        losses.append(train_epoch(*args, **options))
        return losses[-1]

    monkeypatch.setattr(IdiomoeTrainer, "_train_epoch", recorded)
    return losses


@pytest.mark.parametrize("model", CONTROLS)
def test_a_run_learns_and_its_folder_recommends(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = recorded_losses(monkeypatch)
    monkeypatch.chdir(tmp_path)
    settings = FEWER | SHORT_TITLES.get(model, {})
    with few_words(tmp_path) if model in SHORT_TITLES else nullcontext():
        (result,) = api.run(model, "ml-100k", settings=settings)
    assert (result["model"], len(losses)) == (model, 2) and losses[1] < losses[0] - 0.02
    total, trainable = (result["parameters"][name] for name in ("total", "trainable"))
    assert (trainable < total / 2) == (model == "LoRALLM")
    recommender = recbole_idiomoe.load(result["folder"])
    assert isinstance(recommender.scorer.__self__, CatalogLM)  # type: ignore[attr-defined]
    found = recommender.recommend(["1", "50", "181"], k=5)
    assert len({item.item_id for item in found} - {"1", "50", "181"}) == 5
    assert all(item.title for item in found)


def test_every_control_has_idiomoes_settings_but_for_what_it_is() -> None:
    differs = {"LoRALLM": {"freeze"}, "IDTransformer": {"use_text", "item_init"}}
    differs |= {"TextAttrLLM": {"use_text", "item_init", "item_text_added"}, "IAM": {"attention"}}
    differs |= {"TitleLLM": {"item_tokens", "use_text", "item_init", "eval_step"}}
    differs["TitleLLM"] |= {"max_tokens", "max_item_text_tokens"}  # of TitleLLM_ml-100k.yaml
    wanted = RunConfig("IDIOMoE", "ml-100k").complete_settings()
    assert wanted["item_warmup"] == 0.6  # of IDIOMoE_ml-100k.yaml, not a default
    for model in CONTROLS:
        found = RunConfig(model, "ml-100k").complete_settings()
        assert found.keys() == wanted.keys()
        assert {k for k in found if found[k] != wanted[k]} == differs.get(model, set()), model


def test_a_control_can_have_settings_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "properties"
    for name, text in {
        "overall.yaml": "eval_args: {split: {LS: valid_and_test}, order: TO, mode: full}",
        "quick_start_config/IDIOMoE_ml-100k.yaml": "dropout: 0.2\nexpert_width: 0.5",
        "quick_start_config/MoA_ml-100k.yaml": "expert_width: 0.25",
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    monkeypatch.setattr("recbole_idiomoe.base.yaml_files.properties_path", lambda: folder)
    recipe = {"learner": "adamw", "epochs": 3, "dropout": 0.1}
    monkeypatch.setattr(IDIOMoEOptions, "recipe", recipe)

    class MoAOptions(IDIOMoEOptions):
        recipe: ClassVar[Mapping[str, Any]] = {"epochs": 4}

    own = registry.MODELS["MoA"]._replace(options=MoAOptions)
    monkeypatch.setitem(registry.MODELS, "MoA", own)
    names = ("epochs", "dropout", "expert_width")
    found = {
        model: [RunConfig(model, "ml-100k")[name] for name in names] for model in ("MoA", "MoT")
    }
    assert found == {"MoA": [4, 0.2, 0.25], "MoT": [3, 0.2, 0.5]}


def test_what_a_model_is_made_of_cannot_be_changed() -> None:
    with pytest.raises(SettingError, match="IDTransformer is made with use_text=False") as error:
        RunConfig("IDTransformer", "ml-100k", settings={"use_text": True})
    assert "\n" not in str(error.value)
    beside = {"settings": {"use_text": True}, "beside": ("IDTransformer", "ItemLLM")}
    assert RunConfig("IDTransformer", "ml-100k", **beside)["use_text"] is False
    assert RunConfig("ItemLLM", "ml-100k", **beside)["use_text"] is True
    from_text = RunConfig("IDTransformer", "ml-100k", settings={"item_init": "text"})
    assert from_text["item_init"] == "text"  # a start that it has not, but may be given
    again = RunConfig("IDTransformer", "ml-100k").complete_settings()
    assert RunConfig("IDTransformer", "ml-100k", settings=again)["use_text"] is False


def build(architecture: str, pretrained: bool = True, **options: Any) -> CatalogLM:
    settings = {"backbone": "untrained", "backbone_args": LOUD, "item_init": "random"}
    return CatalogLM.build(
        make_catalog(),
        options_of(architecture).from_mapping(settings | options),
        seed=0,
        device=CPU,
        architecture=architecture,
        pretrained=pretrained,
    ).eval()


def test_a_transformer_of_ids_has_the_backbones_sizes_and_nothing_that_it_learnt() -> None:
    pretrained, _ = load_backbone("bundled")
    options: dict[str, Any] = {"backbone": "bundled", "backbone_args": None, "use_text": False}
    one, again, other = (
        build("dense", pretrained=False, **options).lm.backbone,
        build("dense", pretrained=False, **options).lm.backbone,
        load_backbone("untrained", seed=0)[0],
    )
    weights, learnt = one.state_dict(), pretrained.state_dict()
    assert {n: w.shape for n, w in weights.items()} == {n: w.shape for n, w in learnt.items()}
    name = "model.layers.3.mlp.up_proj.weight"
    assert not torch.equal(weights[name], learnt[name])
    assert torch.equal(weights[name], again.state_dict()[name])
    assert torch.equal(weights[name], other.state_dict()[name])
    model = get_model("IDTransformer")
    assert not model.pretrained and model.forced_settings["use_text"] is False


def test_the_balancing_loss_reaches_what_is_trained_on() -> None:
    losses, in_use = {}, {}
    for weight in (0.0, 1.0):
        model = build("switch", load_balancing=weight).train()
        windows = [history[:5] for history in HISTORIES if len(history) > 1]
        sequences = [training_sequence(model.builder, window) for window in windows]
        batch = collate(sequences, model.pad_token_id)
        losses[weight] = model.loss(batch).item()
        in_use[weight] = model.eval().loss(batch).item()
    # Two layers, each 1 when balanced and 2 when all tokens go one way.
    assert 1.9 < losses[1.0] - losses[0.0] < 4.0
    assert in_use[0.0] == in_use[1.0]


def test_the_load_of_each_expert_is_reported(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    api.run("SwitchRouting", "ml-100k", settings=FEWER | {"epochs": 1})
    (log,) = tmp_path.glob("log/SwitchRouting/*.log")
    lines = [line for line in log.read_text().splitlines() if ", by layer: " in line]
    loads = {}
    for line in lines:
        name, numbers = line.split("load/")[1].split(", by layer: ")
        loads[name] = [float(number) for number in numbers.split()]
    assert {len(load) for load in loads.values()} == {2}
    for kind in ("text", "items"):
        both = zip(loads[f"{kind}/expert_0"], loads[f"{kind}/expert_1"], strict=True)
        assert all(sum(pair) == pytest.approx(1, abs=0.002) for pair in both)


def test_adapters_without_peft_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build("lora")
    model.save(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    for attempt in (lambda: build("lora"), lambda: CatalogLM.load(tmp_path, model.settings, CPU)):
        with pytest.raises(MissingLibraryError, match="pip install peft"):
            attempt()


@pytest.mark.parametrize("option", [{"block_start": "zero"}, {"load_balancing": -1.0}])
def test_options_are_checked(option: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=next(iter(option))):
        RunConfig("AppendBlocks", "ml-100k", settings=option)
