"""The leaderboard as one HTML page that needs nothing else: no network, no other file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from jinja2 import Environment, PackageLoader, StrictUndefined

from recbole_idiomoe.leaderboard.plots import WITHOUT, Picture
from recbole_idiomoe.leaderboard.tables import Table


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
    environment = Environment(
        loader=PackageLoader("recbole_idiomoe.leaderboard", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    without = "" if any(pictures.values()) else WITHOUT
    return environment.get_template("page.html").render(
        title=title, tables=tables, notes=notes, pictures=pictures, without=without
    )
