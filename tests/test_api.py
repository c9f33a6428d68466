"""``run``: what a result says, that it can be had again, and RecBole's models beside ours."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from recbole.trainer import Trainer
from safetensors.torch import load_file

import recbole_idiomoe
from recbole_idiomoe import api
from recbole_idiomoe.base import environment, run_folder
from recbole_idiomoe.base.errors import CheckpointError, DataError, IdiomoeError, SettingError
from recbole_idiomoe.runs import execution
from recbole_idiomoe.runs import execution as one_run
from recbole_idiomoe.runs import plan as plans
from recbole_idiomoe.runs.plan import RunPlan
from recbole_idiomoe.runs.result import RunResult
from tests.helpers import DATASET_SETTINGS, SMALL_ML_100K, TINY_IDIOMOE, write_dataset
from tests.training.cycle import TINY, write_cycle

ONE_EPOCH: dict[str, Any] = SMALL_ML_100K | {"epochs": 1, "train_batch_size": 256}
LAYERS = {"n_layers": 1, "n_heads": 2, "inner_size": 16, "hidden_size": 16}
BASELINES: dict[str, dict[str, Any]] = {
    "SASRec": LAYERS,
    "GRU4Rec": {"embedding_size": 16, "hidden_size": 16, "num_layers": 1},
    "BERT4Rec": LAYERS,
    "FDSA": LAYERS,
    "S3Rec": LAYERS | {"pretrain_epochs": 1},
    "NARM": {"embedding_size": 16, "hidden_size": 16, "n_layers": 1},
    # Learns from sampled negatives, and reads the user too.
    "FPMC": {"embedding_size": 16},
}


@pytest.fixture(scope="module")
def baselines(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """The result of every baseline, by name."""
    place = tmp_path_factory.mktemp("baselines")
    results = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        for model, sizes in BASELINES.items():
            settings = ONE_EPOCH | sizes | {"checkpoint_dir": str(place / "saved")}
            (results[model],) = api.run(model, "ml-100k", settings=settings)
    return results


@pytest.fixture(scope="module")
def idiomoe(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("idiomoe")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        (result,) = api.run(
            settings=TINY_IDIOMOE | {"epochs": 1, "checkpoint_dir": str(place / "saved")}
        )
    return result


def test_a_result_says_everything(idiomoe: dict[str, Any]) -> None:
    result = idiomoe
    assert (result["model"], result["dataset"]) == ("IDIOMoE", "ml-100k")
    assert (result["users"], result["items"], result["interactions"]) == (213, 1682, 5151)
    assert result["protocol"] == {
        "split": "LS valid_and_test",
        "order": "TO by the exact times of the file",
        "group_by": "user",
        "rows": None,
        "histories": None,
        "times": None,
        "left_out": None,
        "candidates": "all 1682 items",
        "ties": "in random order",
        "mask_seen": True,
        "cold_start": None,
        "max_history": 20,
        "filters": {
            "user_inter_num_interval": "[20,30]",
            "item_inter_num_interval": None,
            "val_interval": None,
            "rm_dup_inter": None,
            "filter_inter_by_user_or_item": True,
        },
        "metrics": ["Hit", "NDCG", "MRR"],
        "topk": [5, 10, 20],
        "valid_metric": "NDCG@10",
        "trained_on": "training interactions only",
    }
    names = {f"{metric}@{k}" for metric in ("hit", "ndcg", "mrr") for k in (5, 10, 20)}
    for part in ("best_valid_result", "test_result"):
        assert set(result[part]) == names
        assert all(type(value) is float and 0 <= value <= 1 for value in result[part].values())
    assert result["epochs"] == 1
    assert result["train_seconds"] > 0 and result["eval_seconds"] > 0
    parameters = result["parameters"]
    assert parameters["total"] == parameters["trainable"] > 1683 * 32
    assert 100 < result["peak_memory_mib"] < 100_000
    assert result["seed"] == 2020 and result["trained"] == "trained whole"
    assert result["device"].startswith("CPU")
    assert set(environment.PACKAGES) | {"python", "recbole_idiomoe"} == set(result["versions"])
    assert result["versions"]["recbole"] == "1.2.1"
    assert result["settings"]["backbone_args"] == TINY_IDIOMOE["backbone_args"]
    assert result["settings"]["learning_rate"] == 0.003
    assert json.loads(json.dumps(result)) == result
    assert json.loads((Path(result["folder"]) / "run.json").read_text()) == result


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a process cannot tell")
def test_a_process_does_not_count_the_memory_of_the_one_that_started_it() -> None:
    program = (
        "import torch; from recbole_idiomoe.base.environment import *; print(peak_memory_mib({}))"
    )
    ballast = np.ones(2**26)
    command = [sys.executable, "-c", program.format("torch.device('cpu')")]
    own = float(subprocess.run(command, capture_output=True, check=True, text=True).stdout)
    assert 50 < own < environment.peak_memory_mib(torch.device("cpu")) - ballast.nbytes / 2**21


def test_frozen_parameters_are_counted_apart(tmp_path: Path) -> None:
    path = write_cycle(tmp_path / "cycle")
    settings = TINY | {"data_path": str(path), "epochs": 1, "freeze": "backbone"}
    (result,) = api.run("IDIOMoE", "cycle", settings=settings)
    # Two layers of item experts with three 32 x 48 matrices each, and the item table.
    assert result["parameters"]["trainable"] == 2 * 3 * 32 * 48 + 41 * 32
    assert result["parameters"]["total"] > result["parameters"]["trainable"]


@pytest.mark.parametrize("model", ["IDIOMoE", "SASRec", "S3Rec", "GRU4Rec"])
def test_a_result_file_gives_the_same_run_again(
    model: str, idiomoe: dict[str, Any], baselines: dict[str, dict[str, Any]], tmp_path: Path
) -> None:
    first = idiomoe if model == "IDIOMoE" else baselines[model]
    file = tmp_path / "first.json"
    file.write_text(json.dumps(first))
    (again,) = api.run(config_files=[file], result_file=tmp_path / "again.json")
    assert (again["model"], again["dataset"]) == (model, "ml-100k")
    for part in ("test_result", "best_valid_result", "protocol", "settings", "parameters"):
        assert again[part] == first[part]
    assert again["folder"] != first["folder"]
    assert json.loads((tmp_path / "again.json").read_text()) == again


def test_settings_win_over_a_result_file(idiomoe: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "first.json"
    file.write_text(json.dumps(idiomoe))
    (again,) = api.run("IDIOMoE", "ml-100k", [file], {"seed": 7})
    assert again["seed"] == 7
    assert again["test_result"] != idiomoe["test_result"]


def test_several_models_on_several_datasets(tmp_path: Path) -> None:
    path = write_cycle(tmp_path / "one")
    write_cycle(tmp_path / "two", items=30)
    settings = TINY | {"data_path": str(path), "epochs": 1}
    file = tmp_path / "results.json"
    results = api.run("IDIOMoE, SASRec", ["one", "two"], (), settings, result_file=file)
    assert [(r["model"], r["dataset"]) for r in results] == [
        ("IDIOMoE", "one"),
        ("SASRec", "one"),
        ("IDIOMoE", "two"),
        ("SASRec", "two"),
    ]
    assert json.loads(file.read_text()) == results
    assert [r["items"] for r in results] == [40, 40, 30, 30]
    assert results[0]["protocol"] == results[1]["protocol"] != results[2]["protocol"]
    assert len({r["folder"] for r in results}) == 4
    # One run leaves nothing behind that would change the next.
    (alone,) = api.run("SASRec", "two", (), settings)
    assert alone["test_result"] == results[3]["test_result"]


def test_a_failure_keeps_the_results_before_it(tmp_path: Path) -> None:
    path = write_cycle(tmp_path / "one")
    write_cycle(tmp_path / "short", length=2)
    settings = TINY | {"data_path": str(path), "epochs": 1}
    file = tmp_path / "results.json"
    with pytest.raises(DataError, match="short: no user has 3 interactions"):
        api.run("IDIOMoE", ["one", "short"], (), settings, result_file=file)
    assert json.loads(file.read_text())["dataset"] == "one"


def test_a_result_file_that_cannot_be_written_is_said_before_training(tmp_path: Path) -> None:
    with pytest.raises(IdiomoeError, match="is a folder"):
        api.run(settings=TINY_IDIOMOE, result_file=tmp_path)
    assert not Path("saved").exists()


@pytest.mark.parametrize("model", BASELINES)
def test_a_baseline_runs_under_the_same_protocol(
    model: str, baselines: dict[str, dict[str, Any]], idiomoe: dict[str, Any]
) -> None:
    result = baselines[model]
    for part in ("users", "items", "interactions", "protocol"):
        assert result[part] == idiomoe[part]
    assert set(result["test_result"]) == set(idiomoe["test_result"])
    assert result["test_result"]["hit@20"] > 0
    assert result["epochs"] == 1
    assert result.keys() == idiomoe.keys()


@pytest.mark.parametrize("model", BASELINES)
def test_a_baselines_folder_recommends(model: str, baselines: dict[str, dict[str, Any]]) -> None:
    recommender = recbole_idiomoe.load(baselines[model]["folder"])
    history = ["50", "172", "1"]
    found = recommender.recommend(history, k=5)
    assert len(found) == 5
    assert not {item.item_id for item in found} & set(history)
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True)
    assert all(item.title for item in found)


@pytest.mark.parametrize("model", BASELINES)
def test_a_baselines_folder_holds_the_trained_weights(
    model: str, baselines: dict[str, dict[str, Any]]
) -> None:
    folder = Path(baselines[model]["folder"])
    theirs = torch.load(folder / "checkpoint.pth", weights_only=False)["state_dict"]
    ours = load_file(folder / "model.safetensors")
    assert ours
    for name, weight in ours.items():
        assert torch.equal(weight, theirs[name])


def test_a_baseline_goes_on_after_an_interruption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_cycle(tmp_path / "cycle")
    settings = TINY | {"data_path": str(path), "epochs": 3, "n_layers": 1}
    original = Trainer._train_epoch

    def interrupted(trainer: Any, data: Any, epoch: int, *args: Any, **options: Any) -> Any:
        if epoch == 2:
            raise KeyboardInterrupt
        return original(trainer, data, epoch, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt) as stop:
            api.run("SASRec", "cycle", settings=settings)
    (folder,) = Path("saved").iterdir()
    assert str(stop.value) == f"interrupted; --resume={folder} goes on with it"
    (result,) = api.run(resume=folder)
    assert result["epochs"] == 3
    assert (result["model"], result["folder"]) == ("SASRec", str(folder))
    assert len(recbole_idiomoe.load(folder).recommend(["i3"], k=3)) == 3


def test_a_run_that_was_stopped_before_its_folder_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(one_run, "read_dataset", interrupted)
    settings = TINY | {"data_path": str(write_cycle(tmp_path / "cycle"))}
    with pytest.raises(KeyboardInterrupt) as stop:
        api.run("SASRec", "cycle", settings=settings)
    assert str(stop.value) == ""


def test_a_baseline_that_was_stopped_in_its_first_epoch_is_not_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: Any, **options: Any) -> Any:
        raise KeyboardInterrupt

    path = write_cycle(tmp_path / "cycle")
    settings = TINY | {"data_path": str(path), "epochs": 3, "n_layers": 1}
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            api.run("SASRec", "cycle", settings=settings)
    (folder,) = Path("saved").iterdir()
    with pytest.raises(CheckpointError) as error:
        recbole_idiomoe.load(folder)
    assert "\n" not in str(error.value)


def test_data_that_leave_nothing_to_test_are_refused(tmp_path: Path) -> None:
    rows = [(f"u{user}", f"i{step}", float(step)) for user in range(5) for step in range(2)]
    path = write_dataset(tmp_path / "short", rows, [(f"i{n}", "t", "c") for n in range(2)])
    with pytest.raises(DataError, match="no user has 3 interactions"):
        api.run("IDIOMoE", "short", settings=DATASET_SETTINGS | {"data_path": str(path)})


def test_an_unknown_setting_is_refused_before_anything_is_written() -> None:
    with pytest.raises(SettingError, match="expert_widht"):
        api.run(settings={"expert_widht": 0.5})
    assert not list(Path().iterdir())


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_nothing_to_run_is_said(kind: str) -> None:
    with pytest.raises(SettingError, match=f"no {kind} is named"):
        api.run(**{f"{kind}s": " , "})


def test_what_is_run_when_nothing_or_a_file_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    runs = []

    def execute(plan: RunPlan) -> RunResult:
        runs.append((plan.config["model"], plan.config["dataset"]))
        return RunResult(*runs[-1])

    monkeypatch.setattr(execution, "execute", execute)
    monkeypatch.setattr(plans, "find_data", lambda config: None)
    api.run()
    file = tmp_path / "mine.yaml"
    file.write_text("model: SASRec\ndataset: amazon-toys\n")
    api.run(config_files=[file])
    api.run("GRU4Rec", config_files=[file])
    assert runs == [("IDIOMoE", "ml-100k"), ("SASRec", "amazon-toys"), ("GRU4Rec", "amazon-toys")]


@pytest.mark.parametrize("files", ["mine.yaml", Path("mine.yaml"), {"epochs": 3}])
def test_settings_in_the_place_of_files_are_told_where_they_go(files: Any) -> None:
    with pytest.raises(SettingError, match=r"config_files=.* must be a list of files.*settings="):
        api.run("SASRec", "ml-100k", files)


def test_runs_that_start_together_do_not_mind_each_others_log(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """RecBole looks whether its folder is there before it makes it; another run may be between."""

    def made_by_another(folder: str) -> None:
        if not Path(folder).exists():
            raise FileExistsError(folder)

    monkeypatch.setattr("recbole.utils.logger.ensure_dir", made_by_another)
    (result,) = api.run("IDIOMoE", "ml-100k", settings=TINY_IDIOMOE | {"epochs": 1})
    assert result["epochs"] == 1


def test_runs_that_start_together_have_folders_of_their_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the same second and under one number of a process, as two containers may have."""
    folders = []

    def noted(plan: RunPlan) -> None:
        folders.append(plan.folder)
        raise DataError("far enough")

    monkeypatch.setattr(one_run, "_load", noted)
    monkeypatch.setattr(run_folder, "strftime", lambda _: "now")
    monkeypatch.setattr("os.getpid", lambda: 1)
    for _ in range(2):
        with pytest.raises(DataError, match="far enough"):
            api.run("IDIOMoE", "ml-100k")
    assert len(set(folders)) == 2 and not any(folder.exists() for folder in folders)


def test_weights_in_one_block_of_memory_are_kept_apart(tmp_path: Path) -> None:
    """As a GRU's are on a GPU."""
    gru = torch.nn.GRU(3, 4)
    block = torch.cat([weight.detach().flatten() for weight in gru.parameters()])
    for weight, piece in zip(
        gru.parameters(), block.split([weight.numel() for weight in gru.parameters()]), strict=True
    ):
        weight.data = piece.view(weight.shape)
    one_run._save_weights(gru, tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() == gru.state_dict().keys()
    for name, weight in gru.state_dict().items():
        assert torch.equal(saved[name], weight)
