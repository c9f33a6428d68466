"""The plots of the analyses, drawn from the content of their JSON files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from recbole_idiomoe.analysis.plot_layout import Plot, PlotLayout
from recbole_idiomoe.analysis.results import Analysis, Row
from recbole_idiomoe.report.extra_rows import nll_change
from recbole_idiomoe.report.plot_style import COLOURS, INK, MARKERS


def _ffn_memory(layout: PlotLayout, analysis: Analysis) -> None:
    """The paper's Figure 5: a row of two panels for each data set."""
    rows = analysis.tables["layers"]
    datasets: dict[str, list[str]] = defaultdict(list)
    for about in analysis.runs:
        datasets[about["dataset"]].append(about["run"])
    panels = layout.panels(len(datasets), 2)
    every = dict.fromkeys((str(row["run"]), str(row["expert"])) for row in rows)
    lines = [line for line in every if line[1] != "random vectors"]
    for (left, right), (dataset, runs) in zip(panels, datasets.items(), strict=True):
        for index, (run, expert) in enumerate(lines):
            if run not in runs:
                continue
            style = _style(index, f"{run}, {expert}")
            of_line = _where(rows, run=run, expert=expert)
            layers = [row for row in of_line if row["layer"] is not None]
            at = [row["layer"] for row in layers]
            left.plot(at, _numbers(layers, "affinity"), **style)
            right.plot(at, _numbers(layers, "purity"), **style)
            dashed = style | {"linestyle": "--", "label": None, "markerfacecolor": "none"}
            right.plot(at, _numbers(layers, "clustered"), **dashed)
        for run in runs:
            (random,) = _where(rows, run=run, expert="random vectors")
            first = [name for name, _ in lines].index(run)
            colour = COLOURS[first % len(COLOURS)]
            dotted = {"color": colour, "linestyle": ":", "linewidth": 1.2}
            left.axhline(random["affinity"], label=f"{run}, random vectors", **dotted)
            right.axhline(random["purity"], **dotted)
        left.axhline(0, color=INK, linewidth=0.8)
        left.set(ylabel="mean affinity a(w)", title=f"{dataset}: item-text affinity")
        right.set(ylabel="purity p(w), clustered fraction", ylim=(0, 1))
        right.set_title("mean purity (solid), clustered (dashed)")
        for axes in (left, right):
            _along_layers(axes)
    layout.legend(panels)


def _text_attention(layout: PlotLayout, analysis: Analysis) -> None:
    """The paper's Figure 7: attention to the previous and the first token, and its entropy."""
    (panels,) = grid = layout.panels(1, 3)
    titles = {
        "previous": ("to the previous token", "mean attention"),
        "first": ("to the first token", "mean attention"),
        "entropy": ("entropy", "nats"),
    }
    for axes, (measure, (title, unit)) in zip(panels, titles.items(), strict=True):
        _beside_untouched(axes, analysis, analysis.tables["text"], "layer", measure)
        axes.set(title=title, ylabel=unit, ylim=(0, None))
        _along_layers(axes)
    layout.legend(grid)


def _distances(layout: PlotLayout, analysis: Analysis) -> None:
    """The paper's Figure 8: attention by distance in early, middle and late layers."""
    table = analysis.tables["distance"]
    blocks = list(dict.fromkeys(row["layers"] for row in table))
    (panels,) = grid = layout.panels(1, len(blocks), sharey=True)
    for axes, block in zip(panels, blocks, strict=True):
        rows = _where(table, layers=block)
        _beside_untouched(axes, analysis, rows, "distance", "attention", marker="")
        axes.set(title=f"{block} layers", xlabel="distance, tokens", yscale="log")
        axes.yaxis.set_major_formatter("{x:g}")
    layout.label_y(panels, "mean attention")
    layout.legend(grid)


def _item_attention(layout: PlotLayout, analysis: Analysis) -> None:
    """Shares of attention on histories, compared with evenly spread attention."""
    (panels,) = grid = layout.panels(1, 3, sharey=True)
    titles = {
        "item_to_items": "items to other items",
        "item_to_text": "items to text",
        "text_to_items": "text to items",
    }
    table = analysis.tables["items"]
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        even: dict[str, np.ndarray] = {}
        for index, run in enumerate(dict.fromkeys(str(row["run"]) for row in table)):
            layers = [row for row in _where(table, run=run) if row["layer"] is not None]
            even[run] = _numbers(_where(table, run=run, layer=None), column)
            at = [row["layer"] for row in layers]
            axes.plot(at, _numbers(layers, column), **_style(index, run))
        for label, (value,), style in _references(even, "spread evenly"):
            axes.axhline(value, label=label, **style)
        axes.set(title=title, ylim=(0, 1))
        _along_layers(axes)
    layout.label_y(panels, "share of attention")
    layout.legend(grid)


def _efficiency(layout: PlotLayout, analysis: Analysis) -> None:
    """Time beyond the dense form, by length."""
    (panels,) = grid = layout.panels(1, 2, sharey=True)
    titles = {"train": "training step", "infer": "inference"}
    for axes, (phase, title) in zip(panels, titles.items(), strict=True):
        for index, run in enumerate(analysis.runs):
            rows = _where(analysis.tables["costs"], run=run["run"], phase=phase)
            at = [str(row["length"]) for row in rows]
            spread = _numbers(rows, "spread_%")
            style = _style(index, run["run"])
            axes.errorbar(at, _numbers(rows, "more_time_%"), yerr=spread, capsize=3, **style)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set(title=title, xlabel="tokens of a sequence")
    layout.label_y(panels, "time beyond the dense form, %")
    layout.legend(grid)


def _language(layout: PlotLayout, analysis: Analysis) -> None:
    """The paper's Figure 3: likelihood of a text by run, and its change by training."""
    ((after, change),) = grid = layout.panels(1, 2, sharey=True)
    rows = analysis.tables["text"]
    _bars(after, rows, "nll", "untouched_nll", "{:.3f}".format)
    _bars(change, rows, "nll_change", None, nll_change)
    after.set_title("NLL, nats a token")
    change.set_title("change from the untouched backbone")
    layout.legend(grid)


def _tasks(layout: PlotLayout, analysis: Analysis) -> None:
    """The paper's Figure 3: a panel for each benchmark, with a bar for each run."""
    table = analysis.tables["tasks"]
    tasks = list(dict.fromkeys((row["task"], row["metric"]) for row in table))
    grid = layout.panels(-(-len(tasks) // 3), min(3, len(tasks)), sharey=True)
    panels = grid.ravel()
    for axes, (task, metric) in zip(panels, tasks, strict=False):
        rows = _where(table, task=task, metric=metric)
        _bars(axes, rows, "score", "untouched_score", "{:.3f}".format, spread="stderr")
        axes.set_title(f"{task}: {metric}")
    for axes in panels[len(tasks) :]:
        axes.set_axis_off()
    layout.legend(grid)


def _bars(
    axes: Any,
    rows: Sequence[Row],
    column: str,
    untouched: str | None,
    shown: Callable[[float], str],
    spread: str = "",
) -> None:
    """A labelled bar for each run, the first on top, and a black line for its backbone."""
    from matplotlib.ticker import MaxNLocator

    at, values = np.arange(len(rows)), _numbers(rows, column)
    errors = np.nan_to_num(_numbers(rows, spread)) if spread else np.zeros(len(rows))
    colours = [COLOURS[index % len(COLOURS)] for index in at]
    axes.barh(at, values, height=0.6, color=colours)
    axes.errorbar(values, at, xerr=errors, fmt="none", ecolor=INK, elinewidth=0.8)
    ends = values + np.where(values < 0, -errors, errors)
    if untouched:
        before = _numbers(rows, untouched)
        line = {"color": INK, "linewidth": 2, "label": "untouched backbone"}
        axes.vlines(before, at - 0.4, at + 0.4, **line)
        ends = np.fmax(ends, before)
    else:
        axes.axvline(0, color=INK, linewidth=0.8)
    for place, value, end in zip(at, values, ends, strict=True):
        shift, side = (-4, "right") if end < 0 else (4, "left")
        look = {"textcoords": "offset points", "ha": side, "va": "center", "fontsize": 8}
        axes.annotate(shown(value), (end, place), (shift, 0), **look)
    axes.margins(x=0.3)
    axes.set_yticks(at, [row["run"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_axisbelow(True)


def _beside_untouched(
    axes: Any, analysis: Analysis, table: Sequence[Row], along: str, column: str, **changes: Any
) -> None:
    """A line for each run, and thin black lines above them for the untouched backbones."""
    untouched: dict[str, np.ndarray] = {}
    for index, name in enumerate(run["run"] for run in analysis.runs):
        rows = _where(table, run=name)
        style = _style(index, name) | {"linewidth": 3, "alpha": 0.55} | changes
        axes.plot([row[along] for row in rows], _numbers(rows, column), **style)
        untouched[name] = _numbers(rows, f"untouched_{column}")
    for label, values, style in _references(untouched, "untouched backbone"):
        axes.plot(range(len(values)), values, label=label, **style)


def _references(
    found: dict[str, np.ndarray], what: str
) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Reference lines (label, values, style), one for all runs that share the same values."""
    groups: dict[bytes, list[str]] = defaultdict(list)
    for name, values in found.items():
        groups[values.tobytes()].append(name)
    for index, names in enumerate(groups.values()):
        label = what if len(groups) == 1 else f"{', '.join(names)}: {what}"
        style = {"color": INK, "linestyle": ("--", ":", "-.")[index % 3], "linewidth": 1}
        yield label, found[names[0]], style


def _where(rows: Sequence[Row], **wanted: str | int | float | None) -> list[Row]:
    """The rows that have the values ``wanted``, by column."""
    return [row for row in rows if wanted.items() <= row.items()]


def _numbers(rows: Sequence[Row], column: str) -> np.ndarray:
    """A column as numbers; missing values are nan, which is a gap in a line."""
    return np.array([row[column] for row in rows], dtype=float)


def _style(index: int, label: str) -> dict[str, Any]:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    return {"color": colour, "marker": marker, "label": label}


def _along_layers(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel("layer")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


PLOTS: dict[str, list[Plot]] = {
    "ffn-memory": [
        Plot(
            "figure",
            "FFN neurons by layer",
            "Means over each layer's neurons. Dotted: random vectors in place of neurons "
            "(affinity; purity).",
            "layers",
            _ffn_memory,
        )
    ],
    "attention": [
        Plot(
            "text",
            "Attention on text by layer",
            "Means over heads and queries, beside the backbone before any training here.",
            "text",
            _text_attention,
        ),
        Plot(
            "distance",
            "Attention on text by distance",
            "Means over heads, queries and the layers of a block.",
            "distance",
            _distances,
        ),
        Plot(
            "items",
            "Attention between items and text on histories",
            "Shares of the attention of item tokens and of text tokens. Dashed: attention that is "
            "spread evenly over what a token sees.",
            "items",
            _item_attention,
        ),
    ],
    "language": [
        Plot(
            "text",
            "Likelihood of a text, before and after",
            "Every token takes the text path. Lower is better; a change of 0 is exact.",
            "text",
            _language,
        ),
        Plot(
            "tasks",
            "Benchmarks, before and after",
            "By lm_eval; error bars: its standard error.",
            "tasks",
            _tasks,
        ),
    ],
    "efficiency": [
        Plot(
            "figure",
            "Time beyond the dense form",
            "Medians, with half the range between the quartiles of single turns; the dense form "
            "is the run's backbone with an item table alone.",
            "costs",
            _efficiency,
        )
    ],
}
"""The plots of each analysis, by its name."""


def plots_with_rows(analysis: Analysis) -> list[Plot]:
    """The plots of an analysis whose tables are not empty."""
    return [plot for plot in PLOTS.get(analysis.name, ()) if analysis.tables.get(plot.table)]
