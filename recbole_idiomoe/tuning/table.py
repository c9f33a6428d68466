"""A text table of the best trials of a search."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from recbole_idiomoe.report.formatting import WIDTH, wrapped
from recbole_idiomoe.tuning.trials import best_description, ranked, value_of

_SHOWN = 5


def table(searches: Sequence[Mapping[str, Any]]) -> str:
    """The best trials, and the one with default settings, of each search that ``tune`` returned."""
    return "\n".join(line for search in searches for line in _lines(search)).rstrip()


def _lines(search: Mapping[str, Any]) -> Iterator[str]:
    trials, metric, best = search["trials"], search["valid_metric"], search["best"]
    yield from wrapped(
        f"{search['model']} on {search['dataset']}: {best_description(trials)}, by {metric} on "
        "validation (nothing was tested); trial 1 has the default settings."
    )
    width = max(6, len(metric))
    head = f"{'trial':>5}  {metric:>{width}}  {'epochs':>6}  {'time':>8}  settings"
    yield from ("", head, "-" * WIDTH)
    for position, trial in enumerate(ranked(trials, search)):
        if position < _SHOWN or trial["number"] == 1:
            cells = f"{trial['number']:>5}  {value_of(trial, search):>{width}.4f}  "
            cells += f"{trial['epochs']:>6}  {trial['seconds']:>7.1f}s  "
            said = ", ".join(f"{name}={_short(value)}" for name, value in trial["settings"].items())
            yield from textwrap.wrap(
                said or "-", WIDTH, initial_indent=cells, subsequent_indent=" " * len(cells)
            )
    yield ""
    failed = [trial for trial in trials if "failed" in trial]
    if failed:
        yield from wrapped(
            f"{len(failed)} failed, as trial {failed[0]['number']}: {failed[0]['failed']}"
        )
    yield from wrapped(f"Settings of trial {best['number']}: {search['file']}")
    yield ""


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
