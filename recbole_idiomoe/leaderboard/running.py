"""Running the runs that a leaderboard lacks."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from recbole_idiomoe.base.errors import IdiomoeError, SettingError
from recbole_idiomoe.grid.cells import Cell, Grid
from recbole_idiomoe.grid.running import Failure, cells_with_data, outcomes_of
from recbole_idiomoe.leaderboard.board import RUNS, Board, open_board
from recbole_idiomoe.leaderboard.outputs import write_outputs


def run_leaderboard(
    grid: Grid,
    datasets: Sequence[str],
    config_files: Sequence[str | Path],
    settings: Mapping[str, Any] | None,
    *,
    folder: str | Path,
    jobs: int = 1,
) -> dict[str, Any]:
    """Run the runs of ``grid`` that the leaderboard lacks, and write its files.

    Existing rows stay. Every finished run is kept at once, so that the same call resumes after an
    interruption; only the run that was interrupted starts again.

    Args:
        grid: rows to add, or to give more seeds, on each of ``datasets``. Its ``baseline`` is
            ignored, since rows are compared with the best baseline.
        config_files, settings: for all rows; ``settings`` win over the files.
        folder: a leaderboard's, or one that does not exist yet.
        jobs: runs at a time, each in a process of its own if more than one.

    Returns:
        ``leaderboard``, its folder, ``table``, its text for a terminal, and ``rows``, its values.

    Raises:
        IdiomoeError: a run cannot be run or compared with the existing ones; or some runs failed,
            after all others have run and the files are written.
    """
    cells = cells_with_data(grid, datasets, config_files, settings, jobs)
    with open_board(Path(folder)) as board:
        for row in dict.fromkeys(board.enter(grid, cells)):
            _say(f"{row} has other settings now; its earlier runs leave the table")
        failures = _run_missing(board, cells, jobs)
        result = write_outputs(board)
    if failures:
        first, *others = failures
        more = f", and {len(others)} more" if others else ""
        raise IdiomoeError(
            f"{len(failures)} of {len({cell.key for cell in cells})} runs failed: "
            f"{first}{more}. The others are in {folder}; the same command tries these again."
        )
    return result


def _run_missing(board: Board, cells: Sequence[Cell], jobs: int) -> list[str]:
    """Run what is not kept; returns what failed, and why."""
    every = {cell.key: cell for cell in cells}
    left = [cell for cell in every.values() if not board.has(cell)]
    done, failures, start = len(every) - len(left), [], time.perf_counter()
    _say(f"{done} of {len(every)} runs are in {board.folder}, {len(left)} to go")
    if not left:
        return []
    with outcomes_of(left, jobs, board.folder / RUNS) as outcomes:
        for finished, (cell, outcome) in enumerate(outcomes, start=1):
            said = ""
            if not isinstance(outcome, Failure):
                try:
                    board.keep(cell, outcome, alone=jobs == 1)
                except SettingError as error:  # for example another number of candidates
                    outcome = Failure(str(error).removesuffix("."))
            if isinstance(outcome, Failure):
                board.fail(cell, outcome.reason)
                failures.append(f"{cell}: {outcome.reason}")
                said = f" failed: {outcome.reason}"
            mean = (time.perf_counter() - start) / finished
            rest = timedelta(seconds=round(mean * (len(left) - finished)))
            _say(f"run {done + finished} of {len(every)}, {cell}{said}; about {rest} left")
    return failures


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
