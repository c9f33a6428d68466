"""``report``: all analyses of one or several runs, on one HTML page."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from recbole_idiomoe.analysis.commands import COMMANDS, PROGRAM
from recbole_idiomoe.analysis.outputs import as_text, out_folder, write_outputs
from recbole_idiomoe.analysis.plot_layout import plot_svg
from recbole_idiomoe.analysis.plots import plots_with_rows
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
_ASK_FOR_LANGUAGE = "--text=FILE or --lm_eval=TASK"


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
    figures: Sequence[Figure] = ()
    fault: str = ""


def report(folders: Sequence[Path], settings: ReportSettings, command: str) -> str:
    """Run every analysis that ``settings`` ask for, write the page, and return the text to print.

    Each analysis writes the same files as its own command. If one fails, the page shows why.
    ``command`` is what the user typed.

    Raises:
        IdiomoeError: all analyses failed, or the text cannot be read.
    """
    out = out_folder(settings.out, folders)
    if settings.text:
        text_file(settings.text)  # before the first analysis has taken its time
    left_out = _left_out(settings)
    sections: list[Section] = []
    fault: IdiomoeError | None = None
    for name in [name for name in COMMANDS if name not in left_out]:
        compute, kind, _ = COMMANDS[name]
        own = kind(**{each.name: getattr(settings, each.name) for each in fields(kind)})
        typed = _typed(name, folders, own)
        logger.info(f"{name} ...")
        try:
            analysis = compute(folders, own)
        except IdiomoeError as error:
            fault = fault or error
            sections.append(Section(name, typed, fault=str(error)))
        else:
            analysis.command = typed
            write_outputs(analysis, out)
            sections.append(Section(name, typed, analysis, figures_of(analysis)))
    if fault and all(section.fault for section in sections):
        raise fault
    write_text(out / PAGE, page(sections, command, left_out))
    lines = wrapped(f"The page is {out / PAGE}; the files of each analysis are beside it.")
    for section in sections:
        lines += wrapped(f"{section.name} is not made: {section.fault}") if section.fault else []
    return "\n".join(lines)


def page(sections: Sequence[Section], command: str, left_out: Mapping[str, str]) -> str:
    """The page of at least one successful analysis as HTML.

    ``left_out`` are analyses that were not asked for, and the settings that ask for them.
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
    left, figures = {name: rows for name, rows in analysis.tables.items() if rows}, []
    for plot in plots_with_rows(analysis):
        svgs = {name: plot_svg(plot, analysis, narrow=narrow) for name, narrow in layouts.items()}
        figures.append(Figure(plot.title, plot.caption, svgs, analysis.tables[plot.table]))
        left.pop(plot.table, None)
    return figures + [Figure(name.capitalize(), "", {}, rows) for name, rows in left.items()]


def _left_out(settings: ReportSettings) -> dict[str, str]:
    """Optional analyses that were not asked for, and the settings that ask for them."""
    language = {} if settings.text or settings.lm_eval else {"language": _ASK_FOR_LANGUAGE}
    return language | ({} if settings.efficiency else {"efficiency": "--efficiency"})


def _typed(name: str, folders: Sequence[Path], settings: AnalysisSettings) -> str:
    """The command that runs one analysis alone."""
    words, default = [name, *map(str, folders)], vars(type(settings)())
    for setting, value in vars(settings).items():
        if isinstance(value, list):
            words += [f"--{setting}", *map(str, value)] if value != default[setting] else []
        elif value != default[setting]:
            words.append(f"--{setting}={value}")
    return f"{PROGRAM} {shlex.join(words)}"
