"""Layout of an analysis's plots, for files with a white background and for HTML pages."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_idiomoe.analysis.results import Analysis
from recbole_idiomoe.report.plot_style import new_figure, svg_element

_PANEL = (3.4, 2.9)  # inches
_LEGEND_LINE = 0.18  # inches
_RESOLUTION = 200  # dots an inch of a PNG
_STYLE: dict[Any, Any] = {
    "pdf.fonttype": 42,  # letters stay letters
    "axes.titlesize": 9,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "figure.constrained_layout.wspace": 0.06,
    "figure.constrained_layout.hspace": 0.06,
    "lines.markersize": 4,
    "lines.linewidth": 1.5,
}


@dataclass(frozen=True)
class PlotLayout:
    """A matplotlib figure and the arrangement of its panels.

    Args:
        narrow: whether all panels stand in one column, for a phone.
    """

    figure: Any
    narrow: bool = False

    def panels(self, height: int, width: int, sharey: bool = False) -> Any:
        """Create panels; returns their axes as an array (height, width)."""
        rows, columns = (height * width, 1) if self.narrow else (height, width)
        self.figure.set_size_inches(_PANEL[0] * columns, _PANEL[1] * rows)
        axes = self.figure.subplots(rows, columns, squeeze=False, sharey=sharey)
        return axes.reshape(height, width)

    def label_y(self, panels: Any, text: str) -> None:
        """Label the y-axis that the panels of a row share."""
        for axes in panels if self.narrow else panels[:1]:
            axes.set_ylabel(text)

    def legend(self, panels: Any) -> None:
        """Draw one legend for all panels below them, with each label once."""
        handles: dict[str, Any] = {}
        for axes in np.ravel(panels):
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
                handles.setdefault(label, handle)
        columns = 1 if self.narrow else min(3, len(handles))
        lines = -(-len(handles) // columns)
        self.figure.set_figheight(self.figure.get_figheight() + _LEGEND_LINE * (lines + 1))
        labelled = {"handles": handles.values(), "labels": handles.keys()}
        self.figure.legend(**labelled, loc="outside lower center", ncols=columns)


@dataclass(frozen=True)
class Plot:
    """One plot of an analysis, and the table with its numbers."""

    name: str
    title: str
    caption: str
    table: str
    draw: Callable[[PlotLayout, Analysis], None]
    """Draws the plot into an empty layout."""


def plot_file(plot: Plot, analysis: Analysis, kind: str) -> bytes:
    """The bytes of a plot as ``png``, ``svg`` or ``pdf`` (``kind``). Needs matplotlib."""
    no_date = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    content = io.BytesIO()
    with new_figure(plot.name, for_page=False, **_STYLE) as figure:
        plot.draw(PlotLayout(figure), analysis)
        figure.savefig(content, format=kind, dpi=_RESOLUTION, metadata=no_date.get(kind, {}))
    return content.getvalue()


def plot_svg(plot: Plot, analysis: Analysis, *, narrow: bool) -> str:
    """The plot as an ``<svg>`` element for a page on a wide or narrow screen. Needs matplotlib."""
    name = f"{analysis.name} {plot.name} {'narrow' if narrow else 'wide'}"
    with new_figure(name, for_page=True, **_STYLE) as figure:
        plot.draw(PlotLayout(figure, narrow), analysis)
        return svg_element(figure, plot.title)
