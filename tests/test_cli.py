"""The command line."""

import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_idiomoe import cli
from recbole_idiomoe.base.errors import DataError, SettingError
from recbole_idiomoe.config.options import listed_defaults
from recbole_idiomoe.models import registry

ROOT = Path(__file__).parent.parent
RESULT = {
    "model": "SASRec",
    "dataset": "ml-100k",
    "protocol": {"order": "TO"},
    "test_result": {"ndcg@10": 0.5},
}


OPTIONS = {"result_file": None, "resume": None, "leaderboard": None}


class Run:
    """Stands in for ``api.run``: notes how it was called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, error: BaseException | None = None) -> None:
        from types import ModuleType

        module = ModuleType("recbole_idiomoe.api")
        vars(module)["run"] = self
        monkeypatch.setitem(sys.modules, module.__name__, module)
        self.error = error
        self.called: tuple[Any, ...] = ()

    def __call__(self, *args: Any, **options: Any) -> list[dict[str, Any]]:
        self.called = (*args, options)
        if self.error:
            raise self.error
        return [RESULT]


def test_no_arguments_is_idiomoe_on_ml_100k(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    assert cli.main([]) == 0
    # None: quick_start then takes what the files name, else these two, as its own tests show.
    assert run.called == (None, None, [], {}, {**OPTIONS, "jobs": 1})


def test_everything_reaches_the_run(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    run = Run(monkeypatch)
    words = ["--model=SASRec,IDIOMoE", "--dataset", "x, y", "--config_files=a.yaml b.yaml,c.json"]
    words += ["--result_file=r.json", "--resume=saved/1", "--epochs=3", "--mask_seen", "--jobs=2"]
    words += [
        "--leaderboard=board",
        "--seeds=3",
        "--baseline=8",
        "--variants={8: {epochs: 1}, b: {model: SASRec}}",
    ]
    assert cli.main(words) == 0
    assert run.called == (
        ["SASRec", "IDIOMoE"],
        ["x", "y"],
        ["a.yaml", "b.yaml", "c.json"],
        {
            "epochs": 3,
            "mask_seen": True,
            "seeds": 3,
            "baseline": "8",
            "variants": {8: {"epochs": 1}, "b": {"model": "SASRec"}},
        },
        {"result_file": "r.json", "resume": "saved/1", "leaderboard": "board", "jobs": 2},
    )
    assert "0.5000" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1E5", 1e5),
        ("-2.5e-3", -0.0025),
        ("10", 10),
        ("True", True),
        ("false", False),
        ("null", None),
        ("None", None),
        ("", ""),
        ("[5, 10]", [5, 10]),
        ("{LS: valid_only}", {"LS": "valid_only"}),
        ("[5,inf)", "[5,inf)"),
        ("a: b", "a: b"),
        ("- a", "- a"),
        ("2020-01-01", "2020-01-01"),
        ("__import__('os').getcwd()", "__import__('os').getcwd()"),
        ("!!python/object/apply:os.getcwd []", "!!python/object/apply:os.getcwd []"),
        ("a=b", "a=b"),
    ],
)
def test_a_value_is_read_as_yaml_and_never_run(text: str, value: Any) -> None:
    parsed = cli.parse_arguments([f"--some_key={text}"]).settings["some_key"]
    assert parsed == value and type(parsed) is type(value)


def test_text_settings_stay_text() -> None:
    words = ["--instruction=007", "--item_template={title}", "--backbone=null", "--instruction=007"]
    assert cli.parse_arguments(words).settings == {
        "instruction": "007",
        "item_template": "{title}",
        "backbone": "null",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["SASRec"], "'SASRec' belongs to no setting"),
        (["--epochs=1", "2"], "'2' belongs to no setting"),
        (["-x"], "'-x' belongs to no setting"),
        (["--epochs=1", "--epochs=2"], "--epochs is given twice"),
        (["--model"], "--model needs a value"),
        (["--dataset="], "--dataset needs a value"),
        (["--model=sasrec"], "did you mean 'SASRec'"),
    ],
)
def test_a_wrong_word_is_one_line_and_exit_code_2(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and said in captured.err
    assert captured.err.count("\n") == 1 and captured.out == ""


def test_the_same_value_twice_is_no_fault() -> None:
    assert cli.parse_arguments(["--epochs=1", "--epochs=1"]).settings == {"epochs": 1}


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (DataError("no such file"), 2, "error: no such file\n"),
        (SettingError("no such key"), 2, "error: no such key\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (KeyboardInterrupt("interrupted; this goes on"), 130, "interrupted; this goes on\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Run(monkeypatch, error)
    assert cli.main([]) == code
    assert capsys.readouterr().err == said


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 83.8 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 has"),
    ],
)
def test_memory_that_runs_out_is_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    Run(monkeypatch, error)
    assert cli.main([]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: memory ran out (") and "eval_batch_size" in line


def test_a_fault_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    for error in (ZeroDivisionError(), RuntimeError("size mismatch")):
        Run(monkeypatch, error)
        with pytest.raises(type(error)):
            cli.main([])


def test_help_names_every_setting_within_80_columns(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    text = capsys.readouterr().out
    own = [name for model in registry.MODELS for name in registry.get_options(model).defaults()]
    assert all(f"--{name}=" in text for name in [*listed_defaults(), *own])
    assert "HSTU (--model=HSTU):" in text and "learning_rate=0.0003" in text
    assert all(len(line) <= 80 for line in text.splitlines())
    assert cli.main(["-h"]) == 0
    assert capsys.readouterr().out == text


def test_the_lists_are_one_name_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list_models"]) == 0
    models = capsys.readouterr().out.splitlines()
    assert models[0] == "IDIOMoE" and "SASRec" in models
    assert cli.main(["--list_datasets"]) == 0
    assert "amazon-toys" in capsys.readouterr().out.splitlines()


def test_the_script_helps_at_once_from_any_directory(tmp_path: Path) -> None:
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_recbole_idiomoe.py"), "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "usage: recbole-idiomoe" in done.stdout
    assert time.perf_counter() - start < 2.0


def test_tuning_takes_the_place_of_the_run(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    from types import ModuleType

    called = []
    module = ModuleType("recbole_idiomoe.tuning")
    vars(module)["tune"] = lambda *args, **options: called.append((*args, options))
    vars(module)["table"] = lambda searches: "the best trials"
    monkeypatch.setitem(sys.modules, module.__name__, module)
    words = ["--model=SASRec", "--dataset=ml-100k", "--tune=20", "--tuned=007", "--epochs=3"]
    assert cli.main(words) == 0
    settings = {"tuned": "007", "epochs": 3}
    assert called == [(["SASRec"], ["ml-100k"], [], settings, {"trials": 20})]
    assert capsys.readouterr().out == "the best trials\n"
    for other in ("--jobs=2", "--leaderboard=board"):
        assert cli.main([*words, other]) == 2
        said = capsys.readouterr().err
        assert "--tune goes without result_file, resume, leaderboard and jobs" in said
    assert len(called) == 1
