"""Plots of a leaderboard as SVG, readable on light and dark backgrounds; needs matplotlib."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recbole_idiomoe.leaderboard.standings import Standing
from recbole_idiomoe.leaderboard.tables import Table
from recbole_idiomoe.report.formatting import metric_title
from recbole_idiomoe.report.plot_style import COLOURS, MARKERS, can_draw, new_figure, svg_element

BINS = 5
_WIDTH, _HEIGHT = 5.2, 3.1  # inches, without the legend; legible on a phone
_LEGEND_LINE = 0.19  # inches
_LEGEND, _HANDLE = 76, 7  # characters in a line of the legend, and of one line sample


@dataclass(frozen=True)
class Plot:
    """One plot of one data set."""

    title: str
    caption: str
    svg: str
    """An ``<svg>`` element."""


def plots_of(table: Table) -> list[Plot]:
    """The plots of ``table``; none without matplotlib or without a finished run."""
    ran = [standing for standing in table.standings if standing.runs]
    if not ran or not can_draw():
        return []
    title = metric_title(table.metric)
    cost_note = "" if all(s.alone for s in ran) else " Some runs were not alone (see the table)."
    mixes = sorted({s.runs[0]["with"] for s in ran if s.mixed})
    mix_note = f" Hollow: mixed with {', '.join(mixes)}." if mixes else ""
    grouped, targets = "Test targets in groups of about equal size, by the", ran[0].ranks[0]
    drawn: dict[str, tuple[str, Callable[[Any], None]]] = {
        f"{title} against training time": (
            f"Means over seeds; bars: standard deviation.{mix_note}{cost_note}",
            lambda axes: _accuracy_against_cost(axes, ran, table.metric),
        ),
        f"Validation {title} by epoch": (
            "The first seed of each row.",
            lambda axes: _learning_curves(axes, ran, title),
        ),
        f"{title} by history length": (
            f"{grouped} items of history that models are given; n: targets.{mix_note}",
            lambda axes: _by_group(axes, ran, table.metric, targets.history),
        ),
        f"{title} by popularity of the target": (
            f"{grouped} target's training interactions; n: targets.{mix_note}",
            lambda axes: _by_group(axes, ran, table.metric, targets.popularity),
        ),
    }
    return [
        Plot(name, caption, _svg(f"{name}, {table.dataset}", draw))
        for name, (caption, draw) in drawn.items()
    ]


def groups_of(values: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Split integers (n,) into at most five groups of about equal size: names and masks (n,)."""
    shares = np.arange(1, BINS + 1) / BINS
    uppers = np.unique(np.quantile(values, shares, method="inverted_cdf"))
    lowers = np.concatenate(([values.min()], uppers[:-1] + 1))
    return [
        (str(low) if low == high else f"{low} to {high}", (values >= low) & (values <= high))
        for low, high in zip(lowers.tolist(), uppers.tolist(), strict=True)
    ]


def _accuracy_against_cost(axes: Any, ran: Sequence[Standing], metric: str) -> None:
    for standing, look in _styled(ran):
        seconds = max(standing.cost("train_seconds"), 0.1)  # a counting model takes about no time
        look |= {"capsize": 2, "linestyle": "none"}
        axes.errorbar(seconds, standing.mean(metric), yerr=standing.deviation(metric), **look)
    _logarithmic(axes.xaxis)
    axes.set(xlabel="training, seconds", ylabel=metric_title(metric))


def _learning_curves(axes: Any, ran: Sequence[Standing], title: str) -> None:
    for standing, look in _styled(ran):
        if curve := standing.runs[0]["learning_curve"]:
            epochs = [point["epoch"] for point in curve]
            axes.plot(epochs, [point["valid"] for point in curve], **look)
    _logarithmic(axes.xaxis)
    axes.set(xlabel="epoch", ylabel=f"validation {title}")


def _by_group(axes: Any, ran: Sequence[Standing], metric: str, values: np.ndarray) -> None:
    groups, highest = groups_of(values), 0.0
    for standing, look in _styled(ran):
        means = [standing.by_user(metric)[inside].mean() for _, inside in groups]
        highest = max(highest, *means)
        axes.plot(range(len(groups)), means, **look)
    names = [f"{name}\nn={inside.sum():,}" for name, inside in groups]
    axes.set_xticks(range(len(groups)), names)
    axes.set(ylabel=metric_title(metric), ylim=(0, 1.05 * highest or None))


def _logarithmic(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullLocator

    axis.axes.set_xscale("log")
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter("{x:g}")


def _styled(ran: Sequence[Standing]) -> Iterator[tuple[Standing, dict[str, Any]]]:
    """Each row with its plot style; a mix has its model's style, but hollow and dashed.

    To save room, mixes are explained in the caption instead of the legend.
    """
    looks = {id(row): index for index, row in enumerate(s.row for s in ran if not s.mixed)}
    mixed = {"linestyle": "--", "markerfacecolor": "none", "label": "_"}
    for standing in ran:
        index = looks[id(standing.row)]
        look = {
            "label": standing.label,
            "color": COLOURS[index % len(COLOURS)],
            "marker": MARKERS[index % len(MARKERS)],
            "markersize": 6 if standing.row.ours else 4,
            "linewidth": 2 if standing.row.ours else 1,
        }
        yield standing, look | (mixed if standing.mixed else {})


def _svg(title: str, draw: Callable[[Any], None]) -> str:
    with new_figure(title, for_page=True) as figure:
        figure.set_size_inches(_WIDTH, _HEIGHT)
        axes = figure.add_subplot()
        draw(axes)
        axes.grid(alpha=0.25)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            columns = min(3, max(1, _LEGEND // (max(map(len, labels)) + _HANDLE)))
            figure.set_figheight(_HEIGHT + _LEGEND_LINE * math.ceil(len(labels) / columns))
            figure.legend(handles=handles, loc="outside lower center", ncols=columns)
        return svg_element(figure, title)
