"""The training loop: going on after an interruption, stopping, choosing the best, refusing."""

from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data import data_preparation
from recbole.trainer import Trainer
from safetensors.torch import load_file

import recbole_idiomoe
from recbole_idiomoe import api
from recbole_idiomoe.base.errors import CheckpointError, IdiomoeError, SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.protocol import clock
from recbole_idiomoe.protocol.evaluation import Evaluation
from recbole_idiomoe.training.state import STATE_FILE
from recbole_idiomoe.training.trainer import IdiomoeTrainer
from tests.training.cycle import TINY, titles_of, write_cycle

# Slow enough to learn that metrics differ from epoch to epoch, and as random as it gets.
FOUR_EPOCHS = TINY | {
    "epochs": 4,
    "learning_rate": 0.002,
    "dropout": 0.3,
    "item_warmup": 0.25,
    "text_ramp": 1.0,
    "train_batch_size": 16,
    "max_batch_tokens": 600,
}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Folder of the dataset; its parent is the ``data_path``."""
    write_cycle(tmp_path / "data" / "cycle", both_ways=True)
    return tmp_path / "data" / "cycle"


def run(data: Path, model: str = "IDIOMoE", **settings: Any) -> dict[str, Any]:
    (result,) = api.run(
        model, "cycle", settings=FOUR_EPOCHS | settings | {"data_path": str(data.parent)}
    )
    return result


def only_folder(where: str) -> Path:
    (folder,) = Path(where).iterdir()
    return folder


def interrupt(trainer: type[Any], method: str, call: int) -> Callable[..., Any]:
    """``trainer``'s method, until the given call of it, which is a Ctrl-C."""
    original, calls = getattr(trainer, method), 0

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise KeyboardInterrupt
        return original(*args, **kwargs)

    return interrupted


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert list(one) == list(other), where
        for key in one.keys() - {"seconds"}:  # which no two runs take alike
            assert_same(one[key], other[key], f"{where}[{key}]")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{where}[{index}]")
    else:
        assert one == other, where


@pytest.mark.parametrize(
    ("method", "call", "ema_decay"),
    # Epochs are evaluated from the second on: the first sees no text.
    [
        ("evaluate", 2, 0.0),
        ("_train_epoch", 3, 0.0),
        ("_save_state", 3, 0.0),
        ("_train_epoch", 2, 0.0),
        ("evaluate", 2, 0.9),
    ],
    ids=["while ranking", "between epochs", "before saving", "after items alone", "with a mean"],
)
def test_a_resumed_run_ends_like_an_uninterrupted_one(
    method: str, call: int, ema_decay: float, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run(data, checkpoint_dir="straight", ema_decay=ema_decay)
    with monkeypatch.context() as patch:
        patch.setattr(IdiomoeTrainer, method, interrupt(IdiomoeTrainer, method, call))
        with pytest.raises(KeyboardInterrupt):
            run(data, checkpoint_dir="broken", ema_decay=ema_decay)
    folder = only_folder("broken")
    assert (folder / STATE_FILE).exists()
    (resumed,) = api.run(resume=folder)

    assert Path(resumed["folder"]) == folder
    for entry in ("test_result", "best_valid_result", "epochs", "learning_curve", "protocol"):
        assert resumed[entry] == straight[entry]
    states = [
        torch.load(Path(result["folder"]) / STATE_FILE, weights_only=True)
        for result in (straight, resumed)
    ]
    assert states[0]["epoch"] == 3
    assert_same(*states)
    best = [load_file(Path(r["folder"]) / "model.safetensors") for r in (straight, resumed)]
    assert_same(*best)


def test_a_finished_run_resumes_to_the_same_result(data: Path) -> None:
    finished = run(data)
    (again,) = api.run(resume=finished["folder"])
    assert again["test_result"] == finished["test_result"]
    assert again["epochs"] == 4


@pytest.mark.parametrize(("model", "trainer"), [("IDIOMoE", IdiomoeTrainer), ("SASRec", Trainer)])
def test_a_resumed_run_says_what_it_took_in_all(
    model: str, trainer: Any, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An epoch takes 1,000 s and an evaluation 100 s, by a clock that the test moves."""
    passed = 0.0
    monkeypatch.setattr(clock.time, "perf_counter", lambda: passed)

    def taking(owner: Any, name: str, seconds: float) -> None:
        original = getattr(owner, name)

        def slow(*args: Any, **given: Any) -> Any:
            nonlocal passed
            passed += seconds
            return original(*args, **given)

        monkeypatch.setattr(owner, name, slow)

    taking(trainer, "_train_epoch", 1000)
    taking(Evaluation, "run", 100)
    own: dict[str, Any] = {"item_warmup": 0.0, "text_ramp": 0.0}
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_train_epoch", interrupt(trainer, "_train_epoch", 4))
        with pytest.raises(KeyboardInterrupt):
            run(data, model, checkpoint_dir="broken", **own)
    folder = only_folder("broken")
    for _ in ("unfinished", "finished"):
        (result,) = api.run(resume=folder)
        assert (result["train_seconds"], result["eval_seconds"]) == (4000, 500)


def test_the_last_epochs_models_are_kept_if_asked_for(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = Scripted(monkeypatch, [0.1, 0.4, 0.3, 0.2])
    folder = Path(run(data, item_warmup=0.0, keep_last=2, ema_decay=0.9)["folder"])
    kept = sorted(path for path in folder.iterdir() if path.is_dir())
    assert [path.name for path in kept] == ["epoch-00003", "epoch-00004"]
    for epoch, place in ((2, kept[0]), (3, kept[1]), (1, folder)):
        model = recbole_idiomoe.load(place).catalog_lm
        assert model is not None
        assert_same(dict(model.state_dict()), script.models[epoch])
    assert len(recbole_idiomoe.load(kept[0]).recommend(["i3"], k=3)) == 3


def test_by_default_the_best_model_alone_is_kept(data: Path) -> None:
    folder = Path(run(data)["folder"])
    assert not [path for path in folder.iterdir() if path.is_dir()]
    assert len(list(folder.glob("*.safetensors"))) == 1


def test_resuming_with_another_catalogue_is_refused(data: Path) -> None:
    finished = run(data, epochs=2)
    item_file = data / "cycle.item"
    item_file.write_text(item_file.read_text().replace(titles_of(40)[7], "something else"))
    with pytest.raises(CheckpointError, match="trained on another catalogue") as error:
        api.run(resume=finished["folder"])
    assert "\n" not in str(error.value)


def test_the_state_of_another_catalogue_is_refused(data: Path) -> None:
    """Even where catalog.json fits, a state that was copied in does not."""
    folder = Path(run(data, epochs=2)["folder"])
    state = torch.load(folder / STATE_FILE, weights_only=True)
    torch.save(state | {"fingerprint": "0" * 64}, folder / STATE_FILE)
    with pytest.raises(CheckpointError, match="trained on another catalogue"):
        api.run(resume=folder)


def test_adamw_is_the_devices_own_whichever_the_state_is_from(data: Path) -> None:
    def prepared(state: Path | None = None) -> IdiomoeTrainer:
        settings = FOUR_EPOCHS | {"data_path": str(data.parent)}
        config = RunConfig("IDIOMoE", "cycle", settings=settings)
        train, *_ = data_preparation(config, load_dataset(config))
        trainer = IdiomoeTrainer(config, get_model("IDIOMoE")(config, train._dataset))
        if state is not None:
            trainer.resume_checkpoint(state)
        trainer._prepare(train)
        torch.manual_seed(0)
        trainer._train_epoch(train, 3)
        return trainer

    folder = Path(run(data, epochs=2)["folder"])
    plain = prepared(folder)
    assert all(group["fused"] is None for group in plain.optimizer.param_groups)
    state = torch.load(folder / STATE_FILE, weights_only=True)
    for group in state["optimizer"]["param_groups"]:
        group["fused"] = True  # as a GPU has it
    torch.save(state, folder / STATE_FILE)
    moved = prepared(folder)
    assert all(group["fused"] is None for group in moved.optimizer.param_groups)
    assert_same(dict(plain.model.state_dict()), dict(moved.model.state_dict()))


def test_resuming_another_architecture_is_refused(data: Path) -> None:
    folder = run(data, epochs=2)["folder"]
    with pytest.raises(CheckpointError, match="another architecture"):
        api.run(resume=folder, settings={"item_embedding_dim": 4})


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"model": "IDIOMoE"}'])
def test_resuming_what_is_no_run_is_refused(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not the folder of a run") as error:
        api.run(resume=tmp_path)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


def test_a_folder_that_cannot_be_written_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "run.json").write_text('{"model": "IDIOMoE", "dataset": "x", "settings": {}}')
    monkeypatch.setattr(api, "unwritable_reason", lambda folder: f"{folder}: Read-only file system")
    with pytest.raises(SettingError, match=r"resume=.* cannot be written .*Read-only file system"):
        api.run(resume=tmp_path)


@pytest.mark.parametrize("fault", ["cut short", "no state", "another version's"])
def test_resuming_with_a_broken_state_is_refused(fault: str, data: Path) -> None:
    folder = Path(run(data, epochs=2)["folder"])
    path = folder / STATE_FILE
    told = "cannot be read"
    if fault == "cut short":
        path.write_bytes(path.read_bytes()[:1000])
    elif fault == "no state":
        path.write_bytes(b"no state at all")
    else:
        state = torch.load(path, weights_only=True)
        torch.save({name: state[name] for name in ("epoch", "model")}, path)
        told = "is of another version"
    with pytest.raises(CheckpointError, match=rf"training_state\.pt {told}") as error:
        api.run(resume=folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", ["IDIOMoE", "SASRec"])
def test_a_run_that_was_stopped_in_its_first_epoch_starts_over(
    model: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = FOUR_EPOCHS | {"data_path": str(data.parent), "epochs": 2}
    (straight,) = api.run(model, "cycle", settings=settings)
    trainer = {"IDIOMoE": IdiomoeTrainer, "SASRec": Trainer}[model]
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "_train_epoch", interrupt(trainer, "_train_epoch", 1))
        with pytest.raises(KeyboardInterrupt):
            api.run(model, "cycle", settings=settings | {"checkpoint_dir": "broken"})
    (resumed,) = api.run(resume=only_folder("broken"))
    said = capsys.readouterr().err
    assert "no finished epoch to go on from: its run starts over" in said
    assert Path(resumed["folder"]) == only_folder("broken")
    for entry in ("test_result", "best_valid_result", "epochs", "learning_curve"):
        assert resumed[entry] == straight[entry]


class Scripted:
    """Stands in for validation: gives scores in turn and notes the model that got each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scores: list[float]) -> None:
        self.scores = iter(scores)
        self.models: list[dict[str, torch.Tensor]] = []
        self.tested: dict[str, torch.Tensor] = {}
        original = IdiomoeTrainer.evaluate

        def evaluate(
            trainer: Any, data: Any, load_best_model: bool = True, **options: Any
        ) -> OrderedDict[str, float] | None:
            if load_best_model:
                result = original(trainer, data, load_best_model, **options)
                self.tested = self.weights(trainer)
                return result
            self.models.append(self.weights(trainer))
            return OrderedDict({"ndcg@10": next(self.scores)})

        monkeypatch.setattr(IdiomoeTrainer, "evaluate", evaluate)

    @staticmethod
    def weights(trainer: Any) -> dict[str, torch.Tensor]:
        return {n: p.clone() for n, p in trainer.catalog_lm.state_dict().items()}


def test_the_best_model_is_tested_not_the_last(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = Scripted(monkeypatch, [0.1, 0.4, 0.3, 0.2])
    result = run(data, item_warmup=0.0)
    assert len(script.models) == result["epochs"] == 4
    assert result["best_valid_result"] == {"ndcg@10": 0.4}
    assert_same(script.tested, script.models[1])
    with pytest.raises(AssertionError):
        assert_same(script.tested, script.models[3])


def test_early_stopping_stops(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"epochs": 20, "item_warmup": 0.0, "text_ramp": 0.0, "stopping_step": 2}
    scores = [0.1, 0.3, 0.2, 0.29, 0.28, *[0.9] * 15]
    script = Scripted(monkeypatch, scores)
    result = run(data, **settings)
    assert result["epochs"] == len(script.models) == 5
    assert_same(script.tested, script.models[1])


def test_a_resumed_run_knows_its_best_model_and_its_patience(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"epochs": 9, "item_warmup": 0.0, "text_ramp": 0.0, "stopping_step": 2}
    with monkeypatch.context() as patch:
        before = Scripted(patch, [0.5, 0.9, 0.2])
        patch.setattr(IdiomoeTrainer, "_train_epoch", interrupt(IdiomoeTrainer, "_train_epoch", 4))
        with pytest.raises(KeyboardInterrupt):
            run(data, checkpoint_dir="broken", **settings)
    after = Scripted(monkeypatch, [0.3, 0.4, 0.95])
    (result,) = api.run(resume=only_folder("broken"))
    assert result["best_valid_result"] == {"ndcg@10": 0.9}
    assert len(after.models) == 2 and result["epochs"] == 5
    assert_same(after.tested, before.models[1])


def test_patience_waits_for_the_text(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While fewer sequences carry text than in use, a worse score is no reason to stop."""
    settings = {"epochs": 8, "item_warmup": 0.25, "text_ramp": 0.75, "stopping_step": 0}
    script = Scripted(monkeypatch, [0.9 - 0.1 * n for n in range(8)])
    result = run(data, **settings)
    # Epochs 0 and 1 are not ranked; the share of text is full from epoch 5 on.
    assert len(script.models) == 4
    assert result["epochs"] == 6


@pytest.mark.parametrize("clip_grad_norm", [None, {"max_norm": 1.0}])
def test_a_loss_that_is_no_number_is_one_line(clip_grad_norm: Any, data: Path) -> None:
    with pytest.raises(IdiomoeError, match=r"loss became (nan|inf) in epoch 0") as error:
        run(
            data,
            learning_rate=1e30,
            warmup_steps=0,
            clip_grad_norm=clip_grad_norm,
            max_batch_tokens=32768,
        )
    assert "\n" not in str(error.value) and "learning_rate" in str(error.value)


def test_no_other_learner_is_taken(data: Path) -> None:
    with pytest.raises(SettingError, match=r"learner='sgd'.*adamw"):
        run(data, learner="sgd")


def test_the_seed_decides_everything(data: Path) -> None:
    def outcome(seed: int) -> Any:
        result = run(data, epochs=2, seed=seed)
        return result["best_valid_result"], result["test_result"]

    first = outcome(1)
    torch.rand(5)  # whatever came before
    assert outcome(1) == first
    assert outcome(2) != first


def test_without_validation_the_last_model_is_kept(data: Path, tmp_path: Path) -> None:
    config = RunConfig("IDIOMoE", "cycle", settings=FOUR_EPOCHS | {"data_path": str(data.parent)})
    train, *_ = data_preparation(config, load_dataset(config))
    model = get_model("IDIOMoE")(config, train._dataset)
    trainer = IdiomoeTrainer(config, model)
    trainer.saved_model_file = str(tmp_path / "run" / "checkpoint.pth")
    _, result = trainer.fit(train)
    assert not result
    saved = load_file(tmp_path / "run" / "model.safetensors")
    assert torch.equal(saved["item_table.rows"], model.catalog_lm.lm.item_table.rows)
