"""The style that all plots share, and their conversion to SVG for an HTML page.

Plots are only drawn if matplotlib is installed.
"""

from __future__ import annotations

import importlib.util
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

NO_MATPLOTLIB = (
    "Pictures need matplotlib: pip install recbole_idiomoe[plots], then the same command."
)

# Distinct for colour-blind readers and on light or dark backgrounds (after Okabe and Ito).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#8c6bb1", "#7f7f7f")
MARKERS = "osD^vP*X<>"
INK = "#0a0b0c"
"""Colour of text and axes; in an HTML page it becomes the colour of the page's text."""
_COLOURED = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


@contextmanager
def new_figure(name: str, *, for_page: bool, **settings: Any) -> Iterator[Any]:
    """An empty matplotlib figure, to be drawn and saved inside the block.

    Args:
        name: seed of the SVG ids, so that a plot is reproducible and ids are unique in a page.
        for_page: whether letters stay text, in the page's own font.
        settings: more of matplotlib's settings (rcParams).
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    shared = {
        "text.parse_math": False,  # a row's name may have a dollar sign
        "svg.fonttype": "none" if for_page else "path",
        "svg.hashsalt": name,
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.fontsize": 8,
        "legend.frameon": False,
        **dict.fromkeys(_COLOURED, INK),
    }
    with rc_context(shared | settings):
        yield Figure(layout="constrained")


def svg_element(figure: Any, title: str) -> str:
    """A matplotlib figure as an ``<svg>`` element, labelled ``title``, for light and dark pages."""
    text = io.StringIO()
    figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    element = text.getvalue()[text.getvalue().index("<svg") :].replace(INK, "currentColor")
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r"font: ([\d.]+px) [^;\"]*", r"font-size: \1", element)
    # Every figure has an id figure_1: ids that nothing refers to are removed.
    used = set(re.findall(r"#([\w.-]+)", element))
    element = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", element)
    return element.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
