"""The mean of the weights: what it is, where it stands in for them, and what it leaves alone."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data import data_preparation
from safetensors.torch import load_file
from torch import nn

from recbole_idiomoe import api
from recbole_idiomoe.base.errors import CheckpointError, SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.compilation import compile_blocks
from recbole_idiomoe.lm.training import halve_frozen
from recbole_idiomoe.models.language.options import LanguageModelOptions
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.training.averaging import WeightAverage
from recbole_idiomoe.training.state import STATE_FILE
from recbole_idiomoe.training.trainer import IdiomoeTrainer
from tests.lm.decoders import ITEMS, VOCAB, decoder, mixed_batch
from tests.lm.test_compilation import compilations  # noqa: F401, a fixture
from tests.models.test_host_syncs import Operators
from tests.training.cycle import write_cycle
from tests.training.test_trainer import FOUR_EPOCHS, Scripted, assert_same

DECAY = 0.8


@pytest.fixture
def data_path(tmp_path: Path) -> str:
    return str(write_cycle(tmp_path / "data" / "cycle", both_ways=True))


def run(data_path: str, **settings: Any) -> Path:
    """The run's folder."""
    given = FOUR_EPOCHS | {"ema_decay": DECAY, "data_path": data_path} | settings
    (result,) = api.run("IDIOMoE", "cycle", settings=given)
    return Path(result["folder"])


def state_of(folder: Path) -> dict[str, Any]:
    return torch.load(folder / STATE_FILE, weights_only=True)


def test_the_mean_by_hand() -> None:
    model = nn.ModuleDict({"shared": nn.Linear(1, 1), "frozen": nn.Linear(1, 1)})
    model["again"] = model["shared"]
    model["frozen"].requires_grad_(False)
    weight, bias = model["shared"].parameters()
    weight.data.fill_(1.0)
    bias.data.fill_(0.0)
    average = WeightAverage(model, 0.5)
    for value in (3.0, 8.0):
        weight.data.fill_(value)
        average.update()
    assert [mean.item() for mean in average.means] == [5.0, 0.0]  # (1 / 2 + 3 / 2) / 2 + 8 / 2
    with average.applied():
        assert weight.item() == 5.0 and model["again"].weight is weight
    assert weight.item() == 8.0


@pytest.fixture
def lm() -> IdiomoeForCausalLM:
    """Its head is tied to its embedding; the text experts are frozen and in bfloat16."""
    lm = IdiomoeForCausalLM.from_backbone(decoder("qwen2"), ITEMS)
    lm.freeze("attention")
    for weight in lm.parameters():
        weight.data = weight.data.bfloat16().float()
    halve_frozen(lm)
    return lm


def moved(lm: IdiomoeForCausalLM) -> WeightAverage:
    """An average whose means are no longer the weights."""
    average = WeightAverage(lm, DECAY)
    with torch.no_grad():
        for weight in lm.parameters():
            if weight.requires_grad:
                weight += torch.randn_like(weight)
    average.update()
    return average


def test_only_what_trains_has_a_mean(lm: IdiomoeForCausalLM) -> None:
    trained = [weight for weight in lm.parameters() if weight.requires_grad]
    assert {weight.dtype for weight in lm.parameters()} == {torch.float32, torch.bfloat16}
    average = moved(lm)
    assert [mean.shape for mean in average.means] == [weight.shape for weight in trained]
    assert {mean.dtype for mean in average.means} == {torch.float32}
    assert len(trained) < len(list(lm.parameters()))


def test_an_update_is_one_operator_and_no_wait(lm: IdiomoeForCausalLM) -> None:
    average = WeightAverage(lm, DECAY)
    with Operators() as operators:
        average.update()
    assert operators.counts == {"aten::_foreach_lerp_": 1} and operators.waits == []


def test_the_weights_come_back_bit_for_bit_even_from_an_error(lm: IdiomoeForCausalLM) -> None:
    average = moved(lm)
    weights, means = copy.deepcopy(lm.state_dict()), [mean.clone() for mean in average.means]
    with pytest.raises(KeyboardInterrupt), average.applied():
        trained = [weight for weight in lm.parameters() if weight.requires_grad]
        assert_same([weight.detach() for weight in trained], means)
        assert lm.get_output_embeddings().weight is lm.backbone.get_input_embeddings().weight
        raise KeyboardInterrupt
    assert_same(dict(lm.state_dict()), dict(weights))
    assert_same(average.means, means)


def test_a_compiled_model_computes_with_whichever_it_has(
    lm: IdiomoeForCausalLM,
    compilations: list[Any],  # noqa: F811
) -> None:
    tokens, average = mixed_batch(), moved(lm)

    @torch.no_grad()
    def states() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):  # as in training, frozen weights being so
            hidden = lm.hidden_states(tokens, tokens >= VOCAB).last_hidden_state
        assert hidden is not None
        return hidden

    def both() -> list[torch.Tensor]:
        with average.applied():
            of_means = states()
        return [states(), of_means]

    plain = both()
    assert not torch.allclose(*plain)
    compile_blocks(lm.backbone)
    for _ in range(2):
        torch.testing.assert_close(both(), plain)
    assert len(compilations) == 1


def test_the_saved_model_is_the_mean_of_all_steps(
    data_path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = FOUR_EPOCHS | {"ema_decay": DECAY, "epochs": 2, "data_path": data_path}
    config = RunConfig("IDIOMoE", "cycle", settings=settings | {"freeze": "text_expert"})
    train, *_ = data_preparation(config, load_dataset(config))
    model = get_model("IDIOMoE")(config, train._dataset)
    lm = model.catalog_lm.lm
    wanted = {name: weight.detach().double() for name, weight in lm.named_parameters()}
    steps = 0

    class Watched(torch.optim.AdamW):
        def step(self, *args: Any, **options: Any) -> Any:
            nonlocal steps
            found, steps = super().step(*args, **options), steps + 1
            for name, weight in lm.named_parameters():
                wanted[name] = DECAY * wanted[name] + (1 - DECAY) * weight.detach().double()
            return found

    monkeypatch.setattr(torch.optim, "AdamW", Watched)
    trainer = IdiomoeTrainer(config, model)
    trainer.saved_model_file = str(tmp_path / "run" / "checkpoint.pth")
    trainer.fit(train)
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert steps == 2 * len(trainer.loader) > 4
    for name, weight in saved.items():
        torch.testing.assert_close(weight.double(), wanted[name], rtol=1e-5, atol=1e-6)
    apart = [n for n, weight in lm.named_parameters() if not torch.equal(weight, saved[n])]
    assert apart == [n for n, weight in lm.named_parameters() if weight.requires_grad]


def test_the_mean_is_validated_saved_and_tested(
    data_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Scripted(monkeypatch, [0.1, 0.2, 0.4])  # of epochs 2, 3 and 4: the last is the best
    folder = run(data_path)
    assert_same(script.tested, script.models[2])
    state, saved = state_of(folder), load_file(folder / "model.safetensors")
    rows = "lm.item_table.rows"
    assert torch.equal(saved["item_table.rows"], script.tested[rows])
    assert any(torch.equal(mean, script.tested[rows]) for mean in state["ema"])
    assert not torch.equal(state["model"][rows], script.tested[rows])


def test_the_weights_train_as_without(data_path: str) -> None:
    averaged = state_of(run(data_path, checkpoint_dir="averaged"))
    plain = state_of(run(data_path, checkpoint_dir="plain", ema_decay=0.0))
    assert averaged.keys() - plain.keys() == {"ema"}
    for part in ("model", "optimizer", "scheduler", "random"):
        assert_same(averaged[part], plain[part])
    assert averaged["best_valid_result"] != plain["best_valid_result"]


@pytest.mark.parametrize("before", [DECAY, 0.0])
def test_a_run_goes_on_as_it_began(before: float, data_path: str) -> None:
    folder = run(data_path, epochs=2, ema_decay=before)
    wanted = f"with{'' if before else 'out'} a mean of its weights.*ema_decay"
    with pytest.raises(CheckpointError, match=wanted) as error:
        api.run(resume=folder, settings={"ema_decay": DECAY - before})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_no_other_decay_is_taken(decay: float) -> None:
    with pytest.raises(SettingError, match=r"ema_decay=.* between 0.0 and 0.99999"):
        LanguageModelOptions.from_mapping({"ema_decay": decay})
