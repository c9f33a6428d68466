"""How the programs beside the main one read their words, and how they end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_idiomoe.errors import DataError
from recbole_idiomoe.programs import ended

PROGRAMS = {
    "recommend": ["saved/x", "--k=ten"],
    "report": [],
    "leaderboard": ["one", "two"],
    "data.amazon": ["--dataset=toys", "--core=five"],
    "pretrain": ["--out=model"],
    "analysis": ["ffn-memory"],
}
"""With words that none of them can read."""


def started(program: str, *words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", f"recbole_idiomoe.{program}", *words]
    environment = os.environ | {"COLUMNS": "80"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_cannot_be_read_is_one_line(program: str) -> None:
    done = started(program, *PROGRAMS[program])
    assert done.returncode == 2 and done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ") and line.endswith("; --help names what can be given.")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_a_terminal_and_names_no_empty_default(program: str) -> None:
    words = ["report"] if program == "analysis" else []
    done = started(program, *words, "--help")
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.startswith("usage: ") and max(map(len, done.stdout.splitlines())) <= 80
    said = " ".join(done.stdout.split())
    assert not any(f"(default: {empty})" in said for empty in ("", "None", "[]"))


def test_a_reader_who_has_seen_enough_is_no_fault(tmp_path: Path) -> None:
    script = tmp_path / "endless.py"
    script.write_text(
        "import sys\n"
        "from recbole_idiomoe.programs import ended\n"
        "sys.exit(ended(lambda: [print('row ' * 20) for _ in range(10_000)] and None))\n"
    )
    with subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline().startswith("row")
        process.stdout.close()
        assert process.stderr.read() == "" and process.wait() == 0


def test_how_a_program_ends_is_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    def failing(error: BaseException) -> None:
        raise error

    assert ended(lambda: None) == 0 and ended(lambda: 3) == 3
    assert ended(lambda: failing(DataError("no file"))) == 2
    assert ended(lambda: failing(KeyboardInterrupt()), interrupted="goes on") == 130
    assert capsys.readouterr().err == "error: no file\ngoes on\n"
    with pytest.raises(ZeroDivisionError):
        ended(lambda: failing(ZeroDivisionError()))
