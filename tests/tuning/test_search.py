"""Tuning: the same budget for each, every trial kept, chosen on validation and on that alone."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from recbole_idiomoe import api
from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.base.errors import CheckpointError, DataError, IdiomoeError, SettingError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.grid.cells import Grid, cells_of
from recbole_idiomoe.runs import execution
from recbole_idiomoe.runs import plan as plans
from recbole_idiomoe.runs.plan import RunPlan
from recbole_idiomoe.runs.request import RunRequest
from recbole_idiomoe.runs.result import RunResult
from recbole_idiomoe.tuning import table, trials, tune
from tests.helpers import write_dataset
from tests.training.cycle import TINY, titles_of

pytest.importorskip("optuna")

SASREC: dict[str, Any] = {"models": "SASRec", "datasets": "ml-100k"}
SPACE = {
    "search_space": {
        "learning_rate": {"low": 0.0001, "high": 0.01, "log": True},
        "n_layers": {"low": 1, "high": 3},
    }
}
KEPT, BEST = Path("tuned/SASRec_ml-100k.json"), Path("tuned/SASRec_ml-100k.yaml")


class Validate:
    """Stands in for ``execute``: better with more layers; notes what it was called with."""

    def __init__(self) -> None:
        self.tried: list[tuple[str, float, int]] = []
        self.before: Callable[[RunConfig], object] = lambda config: None

    def __call__(self, plan: RunPlan) -> RunResult:
        assert not plan.tests
        config = plan.config
        self.before(config)
        plan.folder.mkdir(parents=True)
        layers = config["n_layers"] or config["num_layers"]
        self.tried.append((config["model"], config["learning_rate"], layers))
        return RunResult(
            config["model"], config["dataset"], users=1, items=2, interactions=3, epochs=3,
            best_valid_result={"ndcg@10": layers / 10 - config["learning_rate"]}, device="CPU",
        )  # fmt: skip

    def fail_at(self, trial: int, fault: BaseException) -> None:
        def before(config: RunConfig) -> None:
            if len(self.tried) == trial - 1:
                self.tried.append(("failed", 0.0, 0))
                raise fault

        self.before = before


@pytest.fixture
def validate(monkeypatch: pytest.MonkeyPatch) -> Validate:
    stand_in = Validate()
    monkeypatch.setattr(execution, "execute", stand_in)
    monkeypatch.setattr(plans, "find_data", lambda config: None)
    return stand_in


def test_the_default_is_tried_first_and_the_best_is_kept(
    validate: Validate, capsys: pytest.CaptureFixture[str]
) -> None:
    (search,) = tune(**SASREC, settings=SPACE, trials=8)
    assert len(validate.tried) == 8 and validate.tried[0] == ("SASRec", 0.001, 2)
    values = [layers / 10 - rate for _, rate, layers in validate.tried]
    assert search["best"] == search["trials"][values.index(max(values))]
    assert search["best"]["settings"]["n_layers"] == 3

    kept = json.loads(KEPT.read_text())
    assert kept["trials"] == search["trials"] and kept["settings"]["n_layers"] == 2
    assert [trial["number"] for trial in kept["trials"]] == list(range(1, 9))
    assert [trial["valid"]["ndcg@10"] for trial in kept["trials"]] == values
    assert not list(Path("saved").iterdir())  # what trials leave behind

    assert yaml_files.read_settings(BEST) == search["best"]["settings"]
    said = BEST.read_text()
    assert "the best of 8 trials, by NDCG@10 on validation" in said
    assert f"{max(values):.6f}" in said and "default settings: 0.199000" in said
    assert "Seed 2020" in said and "20" in said
    assert f"trial 8 of 8, SASRec on ml-100k: NDCG@10 {values[-1]:.4f}" in capsys.readouterr().err
    shown = table([search])
    assert f"{max(values):.4f}" in shown and "learning_rate=0.001, n_layers=2" in shown
    assert str(BEST) in shown and max(map(len, shown.splitlines())) <= 80


def test_tuned_settings_are_taken_only_where_asked_for(validate: Validate) -> None:
    (search,) = tune(**SASREC, settings=SPACE, trials=4)
    tuned, rate = search["best"]["settings"], search["best"]["settings"]["learning_rate"]
    assert RunConfig("SASRec", "ml-100k")["learning_rate"] == 0.001
    for asked in ({"settings": {"tuned": "tuned"}}, {"config_files": [BEST]}):
        config = RunConfig("SASRec", "ml-100k", **asked)
        assert config["learning_rate"] == rate and config["n_layers"] == tuned["n_layers"] == 3
        complete = config.complete_settings()
        assert "tuned" not in complete
        assert RunConfig("SASRec", "ml-100k", settings=complete)["learning_rate"] == rate
    given = {"tuned": "tuned", "n_layers": 1}
    config = RunConfig("SASRec", "ml-100k", settings=given, beside=["SASRec", "IDIOMoE"])
    assert config["learning_rate"] == rate and config["n_layers"] == 1
    # The rows of a table, each its model's.
    (cell,) = cells_of(Grid({"row": {"model": "SASRec"}}, "row", 1), ["ml-100k"], (), given)
    assert cell.settings["learning_rate"] == rate and cell.settings["n_layers"] == 1
    with pytest.raises(SettingError, match=r"tuned=tuned has no GRU4Rec_ml-100k.yaml; make it"):
        RunConfig("GRU4Rec", "ml-100k", settings={"tuned": "tuned"})
    BEST.write_text("n_layer: 2\n")
    with pytest.raises(SettingError, match="unknown setting 'n_layer'; did you mean 'n_layers'"):
        RunConfig("SASRec", "ml-100k", settings={"tuned": "tuned"})


def test_each_model_has_the_same_budget_and_what_is_given_is_not_searched(
    validate: Validate,
) -> None:
    settings = {"n_layers": 1, "num_layers": 1, "tuned": "elsewhere"}
    searches = tune("SASRec,GRU4Rec", "ml-100k", settings=settings, trials=3)
    assert [model for model, _, _ in validate.tried] == ["SASRec"] * 3 + ["GRU4Rec"] * 3
    assert {layers for _, _, layers in validate.tried} == {1}
    assert "n_layers" not in searches[0]["search_space"]
    assert searches[0]["given"] == {"n_layers": 1} and searches[1]["given"] == {"num_layers": 1}
    assert {path.stem for path in Path("elsewhere").iterdir()} == {
        "SASRec_ml-100k", "GRU4Rec_ml-100k",
    }  # fmt: skip
    assert not Path("tuned").exists()


def test_a_model_with_nothing_to_search_has_its_default(validate: Validate) -> None:
    (search,) = tune(**SASREC, settings={"search_space": {}}, trials=5)
    assert len(validate.tried) == len(search["trials"]) == 1
    assert yaml_files.tuned_settings("tuned", "SASRec", "ml-100k") == {}
    assert "SASRec on ml-100k: the only trial, by NDCG@10" in table([search])
    assert "the only trial, by NDCG@10" in BEST.read_text()


def test_an_interrupted_search_goes_on_as_if_it_had_not_been(validate: Validate) -> None:
    (whole,) = tune(**SASREC, settings=SPACE | {"tuned": "whole"}, trials=14)
    validate.tried.clear()
    validate.fail_at(12, KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt, match=r"^interrupted; the same command goes on$"):
        tune(**SASREC, settings=SPACE, trials=14)
    assert len(json.loads(KEPT.read_text())["trials"]) == 11 and not BEST.exists()
    validate.tried.clear()
    validate.before = lambda config: None
    (search,) = tune(**SASREC, settings=SPACE, trials=14)
    assert len(validate.tried) == 3
    for trial, expected in zip(search["trials"], whole["trials"], strict=True):
        assert (trial["settings"], trial["valid"]) == (expected["settings"], expected["valid"])


def test_more_trials_are_added_and_fewer_are_chosen_among(validate: Validate) -> None:
    tune(**SASREC, settings=SPACE, trials=3)
    (search,) = tune(**SASREC, settings=SPACE, trials=5)
    assert len(validate.tried) == 5
    (fewer,) = tune(**SASREC, settings=SPACE, trials=1)
    assert len(validate.tried) == 5 and fewer["best"] == search["trials"][0]
    assert len(json.loads(KEPT.read_text())["trials"]) == 5


@pytest.mark.parametrize("fault", [IdiomoeError("no luck"), MemoryError("first\nno luck")])
def test_a_trial_that_fails_is_kept_and_counts(fault: Exception, validate: Validate) -> None:
    validate.fail_at(2, fault)
    (search,) = tune(**SASREC, settings=SPACE, trials=3)
    assert len(validate.tried) == 3
    assert search["trials"][1]["failed"].endswith("no luck")
    assert "\n" not in search["trials"][1]["failed"]
    assert "the best of 3 trials (1 failed)" in BEST.read_text()
    assert "1 failed, as trial 2: " in table([search])


@pytest.mark.parametrize(
    ("trial", "fault"), [(1, IdiomoeError("no luck")), (2, DataError("no data"))]
)
def test_what_no_setting_mends_ends_the_search(
    trial: int, fault: IdiomoeError, validate: Validate
) -> None:
    validate.fail_at(trial, fault)
    with pytest.raises(type(fault), match=str(fault)):
        tune(**SASREC, settings=SPACE, trials=3)
    kept = json.loads(KEPT.read_text())["trials"] if KEPT.exists() else []
    assert len(kept) == trial - 1


def test_two_searches_into_one_file_at_once_are_refused(validate: Validate) -> None:
    others: list[str] = []

    def beside(config: RunConfig) -> None:
        validate.before = lambda config: None
        holder = f"process {os.getpid()} on {socket.gethostname()}"
        with pytest.raises(SettingError) as error:
            tune("GRU4Rec,SASRec", "ml-100k", settings={"search_space": {}}, trials=3)
        assert str(error.value) == (
            f"{KEPT} is being written by another search, {holder}; wait for it, or name another "
            "folder with --tuned."
        )
        tune("GRU4Rec", "ml-100k", settings={"search_space": {}}, trials=3)
        others.extend(model for model, *_ in validate.tried)

    validate.before = beside
    (search,) = tune("SASRec,SASRec", "ml-100k", settings=SPACE, trials=3)[:1]
    assert others == ["GRU4Rec"]  # another model, whose file nobody held
    assert len(search["trials"]) == 3 and len(validate.tried) == 4
    tune(**SASREC, settings=SPACE, trials=4)  # nobody holds it now
    assert len(validate.tried) == 5


def test_a_search_that_was_killed_holds_nothing(validate: Validate) -> None:
    hold = (
        "import sys, time; from pathlib import Path\n"
        "from recbole_idiomoe.tuning.trials import locked\n"
        "with locked(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", hold, KEPT], stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline() == b"held\n"
        with pytest.raises(SettingError, match=f"another search, process {other.pid} on "):
            tune(**SASREC, settings=SPACE, trials=1)
        assert not validate.tried
        other.kill()
    tune(**SASREC, settings=SPACE, trials=1)
    assert len(validate.tried) == 1


def test_a_lock_of_another_account_is_one_line(
    validate: Validate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(path: Path, *args: Any, **options: Any) -> Any:
        if str(path).endswith(".lock"):
            raise PermissionError(13, "Permission denied", str(path))
        return open(path, *args, **options)

    monkeypatch.setattr(trials, "open", opened, raising=False)
    said = r"^tuned/SASRec_ml-100k\.lock cannot be written \(Permission denied\); remove it if "
    with pytest.raises(SettingError, match=said):
        tune(**SASREC, settings=SPACE, trials=1)
    assert not validate.tried


def test_other_data_end_the_search(validate: Validate, monkeypatch: pytest.MonkeyPatch) -> None:
    tune(**SASREC, settings=SPACE, trials=1)
    fewer = lambda plan: replace(validate(plan), users=0)  # noqa: E731
    monkeypatch.setattr(execution, "execute", fewer)
    with pytest.raises(DataError, match="the data differ from the data of the first"):
        tune(**SASREC, settings=SPACE, trials=2)


def test_trials_of_another_search_are_not_mixed_in(validate: Validate) -> None:
    tune(**SASREC, settings=SPACE, trials=2)
    with pytest.raises(SettingError, match=r"another search \(epochs, seed\)"):
        tune(**SASREC, settings=SPACE | {"epochs": 3, "seed": 1}, trials=2)
    # Another machine may have the data elsewhere.
    tune(**SASREC, settings=SPACE | {"data_path": "there", "show_progress": False}, trials=2)
    assert len(validate.tried) == 2
    KEPT.write_text("{}")
    with pytest.raises(CheckpointError, match=f"{KEPT} cannot be read"):
        tune(**SASREC, settings=SPACE, trials=2)
    # Said before a model that comes first is searched for hours.
    with pytest.raises(CheckpointError, match=f"{KEPT} cannot be read"):
        tune("GRU4Rec,SASRec", "ml-100k", settings={"search_space": {}}, trials=2)
    assert len(validate.tried) == 2


def test_a_model_that_is_never_validated_cannot_be_tuned(
    validate: Validate, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = lambda plan: replace(validate(plan), best_valid_result={})  # noqa: E731
    monkeypatch.setattr(execution, "execute", nothing)
    with pytest.raises(SettingError, match="no epoch was validated"):
        tune(**SASREC, settings=SPACE, trials=2)


RATE = {"low": 0.1, "high": 0.2}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"trials": 0}, "tune=0 must be how many trials"),
        ({"trials": True}, "tune=True must be how many"),
        ({"settings": {"seeds": 2}}, "leave variants, seeds and baseline out"),
        ({"settings": {"tuned": 5}}, "tuned=5 must name a folder"),
        ({"settings": {"search_space": {"no_such": RATE}}}, "no_such: unknown setting 'no_such'"),
        (
            {"settings": {"search_space": {"epochs": RATE}}},
            "settings: search_space: epochs: epochs=0.1 must be a whole number",
        ),
        (
            {"settings": {"search_space": {"MAX_ITEM_LIST_LENGTH": {"choices": [10, 50]}}}},
            "MAX_ITEM_LIST_LENGTH: it is part of the protocol",
        ),
        ({"settings": {"search_space": {"mask_seen": {"choices": [True, False]}}}}, "protocol"),
        ({"settings": {"search_space": {"seed": {"low": 1, "high": 9}}}}, "seeds is luck"),
        (
            {
                "models": "IDTransformer",
                "settings": {"search_space": {"use_text": {"choices": [False, True]}}},
            },
            "IDTransformer is made with use_text=False",
        ),
    ],
)
def test_what_cannot_be_searched_is_said_before_anything_is_run(
    options: dict[str, Any], said: str, validate: Validate
) -> None:
    with pytest.raises(SettingError, match=said):
        tune(**SASREC | {"trials": 3} | options)
    assert not validate.tried and not list(Path().iterdir())


def write_walks(folder: Path, permuted: bool) -> Path:
    """The cycle's walks; ``permuted``: users' last items, and those alone, change places."""
    users, items, length = 30, 20, 6
    walks = [[f"i{(7 * user + step) % items}" for step in range(length)] for user in range(users)]
    last = [walk.pop() for walk in walks]
    if permuted:
        last = last[1:] + last[:1]
    # The last ones stand last, so that RecBole numbers the items as it meets them before.
    rows = [
        (f"u{u}", item, float(s)) for u, walk in enumerate(walks) for s, item in enumerate(walk)
    ]
    rows += [(f"u{u}", item, float(length)) for u, item in enumerate(last)]
    return write_dataset(
        folder, rows, [(f"i{n}", title, "toys") for n, title in enumerate(titles_of(items))]
    )


@pytest.mark.parametrize(
    ("model", "more"),
    [("SASRec", {"n_layers": 1, "hidden_size": 16, "inner_size": 16}), ("IDIOMoE", {})],
)
def test_nothing_of_a_search_depends_on_what_is_tested_on(
    model: str, more: dict[str, Any], tmp_path: Path
) -> None:
    """Other last items: the same trials to the last digit, and another test result."""
    trials, tested = [], []
    for permuted in (False, True):
        path = write_walks(tmp_path / str(permuted) / "walks", permuted)
        settings = TINY | more | {"data_path": str(path), "epochs": 2, "stopping_step": 1}
        del settings["learning_rate"]
        space = {"search_space": {"learning_rate": {"low": 0.001, "high": 0.01, "log": True}}}
        place = {"tuned": str(tmp_path / str(permuted))}
        (search,) = tune(model, "walks", settings=settings | space | place, trials=2)
        trials.append([{**trial, "seconds": 0} for trial in search["trials"]])
        (result,) = api.run(model, "walks", settings=settings | place)
        tested.append(result["test_result"])
        # The tuned run is the trial that was chosen, and then tested.
        assert result["best_valid_result"] == search["best"]["valid"]
    assert trials[0] == trials[1]
    assert tested[0] != tested[1]


def test_the_test_split_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        """The loader of a split, until somebody iterates it."""

        def __init__(self, loader: Any) -> None:
            self.loader = loader

        def __getattr__(self, name: str) -> Any:
            return getattr(self.loader, name)

        def __iter__(self) -> Any:
            raise AssertionError("the test split is read")

    split = execution.split_dataset

    def closed(*args: Any) -> Any:
        splits = split(*args)
        return replace(splits, test=Closed(splits.test))

    monkeypatch.setattr(execution, "split_dataset", closed)
    path = write_walks(tmp_path / "walks", False)
    settings = TINY | {"data_path": str(path), "epochs": 1, "n_layers": 1, "hidden_size": 16}
    asked = RunRequest("SASRec", "walks", settings=settings, folder=tmp_path / "run", tests=False)
    result = execution.execute(plans.plan(asked)).to_json()
    assert result["best_valid_result"] and "test_result" not in result
    with pytest.raises(AssertionError, match="the test split is read"):
        api.run("SASRec", "walks", settings=settings)
