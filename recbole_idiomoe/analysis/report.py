"""``report``: every analysis of one or several runs, and one page that shows them all."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from recbole_idiomoe.analysis.canvas import element
from recbole_idiomoe.analysis.commands import COMMANDS, PROGRAM
from recbole_idiomoe.analysis.outputs import as_text, out_folder, write_outputs
from recbole_idiomoe.analysis.pictures import PICTURES
from recbole_idiomoe.analysis.prompts import text_file
from recbole_idiomoe.analysis.results import Analysis, Row
from recbole_idiomoe.analysis.settings import AnalysisSettings, ReportSettings
from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.base.files import write_text
from recbole_idiomoe.report.html import render
from recbole_idiomoe.report.plot_style import WITHOUT, can_draw
from recbole_idiomoe.report.tables import wrapped

logger = logging.getLogger(__name__)

HELP = "all analyses on one page that needs nothing else, for a screen of any size"
PAGE = "report.html"
WORD = 60  # letters that a cell shows


@dataclass(frozen=True)
class Figure:
    """A table of an analysis, with the picture of it if there is one."""

    title: str
    caption: str
    drawn: Mapping[str, str]
    """An ``<svg>`` for ``wide`` pages and one for ``narrow`` ones, or none."""
    rows: Sequence[Row]

    @property
    def table(self) -> list[list[str]]:
        """The header, then the rows."""
        return as_text(self.rows, WORD)

    @property
    def words(self) -> list[bool]:
        """Which columns are of words."""
        return [any(isinstance(row[name], str) for row in self.rows) for name in self.rows[0]]


@dataclass(frozen=True)
class Section:
    """One analysis on the page, or why it is not there."""

    name: str
    command: str
    analysis: Analysis | None = None
    figures: Sequence[Figure] = field(default_factory=list)
    fault: str = ""


def report(folders: Sequence[Path], settings: ReportSettings, command: str) -> str:
    """Make every analysis that the runs can have and that ``settings`` ask for, and the page.

    Each writes the files that its own command would. One that a run cannot have is not made, and
    the page says why.

    Args:
        command: what was typed.

    Returns:
        What there is to tell the user.

    Raises:
        IdiomoeError: no analysis could be made, or the text cannot be read.
    """
    out = out_folder(settings.out, folders)
    if settings.text:
        text_file(settings.text)  # before the first analysis has taken its time
    left_out = _left_out(settings)
    sections: list[Section] = []
    faults: list[IdiomoeError] = []
    for name, (compute, kind, _) in COMMANDS.items():
        if name in left_out:
            continue
        own = kind(**{each.name: getattr(settings, each.name) for each in fields(kind)})
        typed = _typed(name, folders, own)
        logger.info(f"{name} ...")
        try:
            analysis = replace(compute(folders, own), command=typed)
        except IdiomoeError as error:
            faults.append(error)
            sections.append(Section(name, typed, fault=str(error)))
        else:
            write_outputs(analysis, out)
            sections.append(Section(name, typed, analysis, figures_of(analysis)))
    if len(faults) == len(sections):
        raise faults[0]
    write_text(out / PAGE, page(sections, command, left_out))
    told = [f"The page is {out / PAGE}; the files of each analysis are beside it."]
    told += [
        f"{section.name} is not made: {section.fault}" for section in sections if section.fault
    ]
    return "\n".join(line for text in told for line in wrapped(text))


def page(sections: Sequence[Section], command: str, left_out: Mapping[str, str]) -> str:
    """The page, in HTML.

    Args:
        sections: at least one of them made.
        command: the page's own.
        left_out: analyses that nobody asked for, and how to.
    """
    made = [section.analysis for section in sections if section.analysis]
    versions = {name: version for each in made for name, version in each.versions.items()}
    return render(
        "analysis/page.html",
        title=f"Inside {', '.join(run['run'] for run in made[0].runs)}",
        runs=made[0].runs,
        device=made[0].device,
        versions=versions,
        sections=sections,
        command=command,
        left_out=left_out,
        without="" if can_draw() else WITHOUT,
    )


def figures_of(analysis: Analysis) -> list[Figure]:
    """The tables of ``analysis`` that are not empty, as they are shown: pictures first."""
    layouts = {"wide": False, "narrow": True} if can_draw() else {}
    pictures = [p for p in PICTURES.get(analysis.name, ()) if analysis.tables.get(p.table)]
    figures = [
        Figure(
            picture.title,
            picture.caption,
            {name: element(picture, analysis, narrow=narrow) for name, narrow in layouts.items()},
            analysis.tables[picture.table],
        )
        for picture in pictures
    ]
    drawn = {picture.table for picture in pictures}
    figures += [
        Figure(name.capitalize(), "", {}, rows)
        for name, rows in analysis.tables.items()
        if rows and name not in drawn
    ]
    return figures


def _left_out(settings: ReportSettings) -> dict[str, str]:
    """What is made on demand alone and was not asked for, and how to ask."""
    asked = {
        "language": (bool(settings.text or settings.lm_eval), "--text=FILE or --lm_eval=TASK"),
        "efficiency": (settings.efficiency, "--efficiency"),
    }
    return {name: how for name, (wanted, how) in asked.items() if not wanted}


def _typed(name: str, folders: Sequence[Path], settings: AnalysisSettings) -> str:
    """The command that makes one analysis alone."""
    default = type(settings)()
    words = [name, *map(str, folders)]
    for each in fields(settings):
        value = getattr(settings, each.name)
        if value == getattr(default, each.name):
            continue
        several = isinstance(value, list)
        words += [f"--{each.name}", *map(str, value)] if several else [f"--{each.name}={value}"]
    return f"{PROGRAM} {shlex.join(words)}"
