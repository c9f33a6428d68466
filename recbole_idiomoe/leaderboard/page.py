"""The leaderboard as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from recbole_idiomoe.leaderboard.plots import Picture
from recbole_idiomoe.leaderboard.tables import Table
from recbole_idiomoe.report.html import render
from recbole_idiomoe.report.plot_style import WITHOUT


def page(
    title: str,
    tables: Sequence[Table],
    notes: Sequence[str],
    pictures: Mapping[str, Sequence[Picture]],
) -> str:
    """The page: a table that sorts, its notes and its pictures a data set.

    Args:
        notes: what holds for all of it, the protocol first.
        pictures: by data set; where there are none at all, a line says how to get them.
    """
    without = "" if any(pictures.values()) else WITHOUT
    return render(
        "leaderboard/page.html",
        title=title,
        tables=tables,
        notes=notes,
        pictures=pictures,
        without=without,
    )
