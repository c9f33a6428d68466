"""How the programs beside the main one read their words, and how they end."""

import importlib
import io
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_idiomoe import cli
from recbole_idiomoe.base.command_line import run_program
from recbole_idiomoe.base.errors import DataError
from tests.helpers import write_dataset

PROGRAMS = {
    "recommend.__main__": ["saved/x", "--k=ten"],
    "report.__main__": [],
    "leaderboard.__main__": ["one", "two"],
    "data.amazon.__main__": ["--dataset=toys", "--core=five"],
    "pretrain.__main__": ["--out=model"],
    "analysis.__main__": ["ffn-memory"],
}
"""With words that none of them can read."""


def exit_code(program: str, *words: str) -> int:
    main = importlib.import_module(f"recbole_idiomoe.{program}").main
    try:
        return main(words)
    except SystemExit as ended:  # argparse's, after the help
        return int(ended.code or 0)


def test_the_package_is_the_main_program() -> None:
    command = [sys.executable, "-m", "recbole_idiomoe", "--model=SASRek", "--dataset=ml-100k"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "SASRec" in done.stderr


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_cannot_be_read_is_one_line(program: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(program, *PROGRAMS[program]) == 2
    said = capsys.readouterr()
    (line,) = said.err.splitlines()
    assert line.startswith("error: ") and line.endswith("; --help names what can be given.")
    assert said.out == ""


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_a_terminal_and_names_no_empty_default(
    program: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    words = ["report"] if program.startswith("analysis") else []
    assert exit_code(program, *words, "--help") == 0
    said = capsys.readouterr()
    assert said.out.startswith("usage: ") and max(map(len, said.out.splitlines())) <= 80
    shown = " ".join(said.out.split())
    assert not any(f"(default: {empty})" in shown for empty in ("", "None", "[]"))
    assert said.err == ""


def test_a_reader_who_has_seen_enough_is_no_fault(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        "import sys\n"
        "from recbole_idiomoe.base.command_line import run_program\n"
        "sys.exit(run_program(lambda: [print('row ' * 20) for _ in range(10_000)] and None))\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("row")
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0


@pytest.mark.parametrize("encoding", ["cp1252", "ascii", "utf-8"])
def test_what_a_console_cannot_show_is_escaped(
    encoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding=encoding) for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)

    def program() -> None:
        print("データ é \udce3")
        raise DataError("データ is missing")

    assert run_program(program) == 2
    for stream, text in ((out, "データ é \udce3\n"), (err, "error: データ is missing\n")):
        stream.flush()
        shown = stream.buffer.getvalue()  # type: ignore[attr-defined]
        assert shown == text.encode(encoding, "backslashreplace")


def test_a_table_is_shown_on_a_console_of_another_encoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [(f"u{n}", f"デ{(n + k) % 7}", float(k)) for n in range(6) for k in range(5)]
    data = write_dataset(tmp_path / "データ", rows)
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    words = ["--model=Popularity", "--dataset=データ", f"--data_path={data}", "--topk=[3]"]
    words += ["--valid_metric=NDCG@3", "--load_col={inter: [user_id, item_id, timestamp]}"]
    assert cli.main(words) == 0
    out.flush()
    shown = out.buffer.getvalue().decode("cp1252")  # type: ignore[attr-defined]
    assert "\\u30c7\\u30fc\\u30bf" in shown and "Popularity" in shown
    [log] = Path("log/Popularity").iterdir()
    assert "データ" in log.read_text(encoding="utf-8")


def test_closed_streams_are_no_fault() -> None:
    command = f"{sys.executable} -m recbole_idiomoe --list_models <&- >&-"
    done = subprocess.run(["sh", "-c", command], stderr=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0 and done.stderr == ""


def test_a_folder_that_was_removed_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert cli.main(["--model=SASRec"]) == 2
    assert capsys.readouterr().err == (
        "error: the current folder was removed; change into another one.\n"
    )
    monkeypatch.chdir(tmp_path)


def test_a_word_that_is_no_text_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--dataset=\udce3"]) == 2
    assert "PYTHONUTF8=1" in capsys.readouterr().err


def test_how_a_program_ends_is_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(error: BaseException) -> None:
        raise error

    assert run_program(lambda: None) == 0 and run_program(lambda: 3) == 3
    assert run_program(lambda: failing(DataError("no file"))) == 2
    assert run_program(lambda: failing(KeyboardInterrupt()), interrupted="goes on") == 130
    assert capsys.readouterr().err == "error: no file\ngoes on\n"
    with pytest.raises(ZeroDivisionError):
        run_program(lambda: failing(ZeroDivisionError()))
