"""``report``: all analyses of one or several runs, on one HTML page."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from recbole_idiomoe.analysis.commands import COMMANDS, PROGRAM
from recbole_idiomoe.analysis.outputs import as_text, out_folder, write_outputs
from recbole_idiomoe.analysis.plot_layout import plot_svg
from recbole_idiomoe.analysis.plots import PLOTS
from recbole_idiomoe.analysis.prompts import text_file
from recbole_idiomoe.analysis.results import Analysis, Row
from recbole_idiomoe.analysis.settings import AnalysisSettings, ReportSettings
from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.base.files import write_text
from recbole_idiomoe.report.formatting import wrapped
from recbole_idiomoe.report.html import render
from recbole_idiomoe.report.plot_style import NO_MATPLOTLIB, can_draw

logger = logging.getLogger(__name__)

HELP = "all analyses on one page that needs nothing else, for a screen of any size"
PAGE = "report.html"
WORD = 60  # characters that a cell shows


@dataclass(frozen=True)
class Figure:
    """A table of an analysis, with its plot if there is one."""

    title: str
    caption: str
    drawn: Mapping[str, str]
    """Its plot as ``<svg>`` for ``wide`` and ``narrow`` screens, or empty."""
    rows: Sequence[Row]

    @property
    def table(self) -> list[list[str]]:
        """The header, then the rows."""
        return as_text(self.rows, WORD)

    @property
    def words(self) -> list[bool]:
        """Whether each column holds words."""
        return [any(isinstance(row[name], str) for row in self.rows) for name in self.rows[0]]


@dataclass(frozen=True)
class Section:
    """One analysis on the page, or the reason why it is missing."""

    name: str
    command: str
    analysis: Analysis | None = None
    figures: Sequence[Figure] = field(default_factory=list)
    fault: str = ""


def report(folders: Sequence[Path], settings: ReportSettings, command: str) -> str:
    """Run every analysis that ``settings`` ask for, and write the page.

    Each analysis writes the same files as its own command. If one fails, the page shows why.

    Args:
        command: the command that the user typed.

    Returns:
        The text to print.

    Raises:
        IdiomoeError: all analyses failed, or the text cannot be read.
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
    """The page as HTML.

    Args:
        sections: the analyses, at least one of them successful.
        command: the command that makes the page.
        left_out: analyses that were not asked for, and the settings that ask for them.
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
        without="" if can_draw() else NO_MATPLOTLIB,
    )


def figures_of(analysis: Analysis) -> list[Figure]:
    """The tables of ``analysis`` that are not empty, first the ones with a plot."""
    layouts = {"wide": False, "narrow": True} if can_draw() else {}
    plots = [p for p in PLOTS.get(analysis.name, ()) if analysis.tables.get(p.table)]
    figures = [
        Figure(
            plot.title,
            plot.caption,
            {name: plot_svg(plot, analysis, narrow=narrow) for name, narrow in layouts.items()},
            analysis.tables[plot.table],
        )
        for plot in plots
    ]
    drawn = {plot.table for plot in plots}
    figures += [
        Figure(name.capitalize(), "", {}, rows)
        for name, rows in analysis.tables.items()
        if rows and name not in drawn
    ]
    return figures


def _left_out(settings: ReportSettings) -> dict[str, str]:
    """Optional analyses that were not asked for, and the settings that ask for them."""
    asked = {
        "language": (bool(settings.text or settings.lm_eval), "--text=FILE or --lm_eval=TASK"),
        "efficiency": (settings.efficiency, "--efficiency"),
    }
    return {name: how for name, (wanted, how) in asked.items() if not wanted}


def _typed(name: str, folders: Sequence[Path], settings: AnalysisSettings) -> str:
    """The command that runs one analysis alone."""
    default = type(settings)()
    words = [name, *map(str, folders)]
    for each in fields(settings):
        value = getattr(settings, each.name)
        if value == getattr(default, each.name):
            continue
        several = isinstance(value, list)
        words += [f"--{each.name}", *map(str, value)] if several else [f"--{each.name}={value}"]
    return f"{PROGRAM} {shlex.join(words)}"
