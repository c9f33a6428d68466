"""The plots of the analyses, drawn from the content of their JSON files."""

from __future__ import annotations

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
    datasets = _datasets(analysis)
    panels = layout.panels(len(datasets), 2)
    lines = list(dict.fromkeys((row["run"], row["expert"]) for row in rows))
    lines = [line for line in lines if line[1] != "random vectors"]
    for (left, right), (dataset, runs) in zip(panels, datasets.items(), strict=True):
        mine = [row for row in rows if row["run"] in runs]
        for index, (run, expert) in enumerate(lines):
            if run not in runs:
                continue
            style = _style(index, f"{run}, {expert}")
            of_line = [r for r in mine if (r["run"], r["expert"]) == (run, expert)]
            layers = [row for row in of_line if row["layer"] is not None]
            at = [row["layer"] for row in layers]
            left.plot(at, _numbers(layers, "affinity"), **style)
            right.plot(at, _numbers(layers, "purity"), **style)
            dashed = style | {"linestyle": "--", "label": None, "markerfacecolor": "none"}
            right.plot(at, _numbers(layers, "clustered"), **dashed)
        for run in runs:
            (random,) = [r for r in mine if (r["run"], r["expert"]) == (run, "random vectors")]
            first = next(index for index, line in enumerate(lines) if line[0] == run)
            colour = COLOURS[first % len(COLOURS)]
            dotted = {"color": colour, "linestyle": ":", "linewidth": 1.2}
            left.axhline(random["affinity"], label=f"{run}, random vectors", **dotted)
            right.axhline(random["purity"], **dotted)
        left.axhline(0, color=INK, linewidth=0.8)
        left.set_ylabel("mean affinity a(w)")
        right.set_ylabel("purity p(w), clustered fraction")
        right.set_ylim(0, 1)
        left.set_title(f"{dataset}: item-text affinity")
        right.set_title("mean purity (solid), clustered (dashed)")
        for axes in (left, right):
            _whole_numbers(axes)
            axes.set_xlabel("layer")
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
        rows = {
            run["run"]: [row for row in analysis.tables["text"] if row["run"] == run["run"]]
            for run in analysis.runs
        }
        _beside_untouched(axes, rows, "layer", measure)
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.set_xlabel("layer")
        axes.set_ylim(0, None)
        _whole_numbers(axes)
    layout.legend(grid)


def _distances(layout: PlotLayout, analysis: Analysis) -> None:
    """The paper's Figure 8: attention by distance in early, middle and late layers."""
    table = analysis.tables["distance"]
    blocks = list(dict.fromkeys(row["layers"] for row in table))
    (panels,) = grid = layout.panels(1, len(blocks), sharey=True)
    for axes, block in zip(panels, blocks, strict=True):
        rows = {
            run["run"]: [r for r in table if (r["run"], r["layers"]) == (run["run"], block)]
            for run in analysis.runs
        }
        _beside_untouched(axes, rows, "distance", "attention", marker="")
        axes.set_title(f"{block} layers")
        axes.set_xlabel("distance, tokens")
        axes.set_yscale("log")
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
    runs = list(dict.fromkeys(row["run"] for row in table))
    for axes, (column, title) in zip(panels, titles.items(), strict=True):
        even: dict[str, np.ndarray] = {}
        for index, run in enumerate(runs):
            rows = [row for row in table if row["run"] == run]
            layers = [row for row in rows if row["layer"] is not None]
            even[str(run)] = _numbers([row for row in rows if row["layer"] is None], column)
            at = [row["layer"] for row in layers]
            axes.plot(at, _numbers(layers, column), **_style(index, str(run)))
        for label, (value,), style in _references(even, "spread evenly"):
            axes.axhline(value, label=label, **style)
        axes.set_title(title)
        axes.set_xlabel("layer")
        axes.set_ylim(0, 1)
        _whole_numbers(axes)
    layout.label_y(panels, "share of attention")
    layout.legend(grid)


def _efficiency(layout: PlotLayout, analysis: Analysis) -> None:
    """Time beyond the dense form, by length."""
    (panels,) = grid = layout.panels(1, 2, sharey=True)
    table = analysis.tables["costs"]
    for axes, (phase, title) in zip(
        panels, {"train": "training step", "infer": "inference"}.items(), strict=True
    ):
        for index, run in enumerate(analysis.runs):
            rows = [r for r in table if (r["run"], r["phase"]) == (run["run"], phase)]
            at = [str(row["length"]) for row in rows]
            spread = _numbers(rows, "spread_%")
            style = _style(index, run["run"])
            axes.errorbar(at, _numbers(rows, "more_time_%"), yerr=spread, capsize=3, **style)
        axes.axhline(0, color=INK, linewidth=0.8)
        axes.set_title(title)
        axes.set_xlabel("tokens of a sequence")
    layout.label_y(panels, "time beyond the dense form, %")
    layout.legend(grid)


def _language(layout: PlotLayout, analysis: Analysis) -> None:
    """The paper's Figure 3: likelihood of a text by run, and its change by training."""
    (panels,) = grid = layout.panels(1, 2, sharey=True)
    rows = analysis.tables["text"]
    after, change = panels
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
        rows = [row for row in table if (row["task"], row["metric"]) == (task, metric)]
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

    at, values = range(len(rows)), _numbers(rows, column)
    errors = np.nan_to_num(_numbers(rows, spread)) if spread else np.zeros(len(rows))
    colours = [COLOURS[index % len(COLOURS)] for index in at]
    axes.barh(at, values, height=0.6, color=colours)
    axes.errorbar(values, at, xerr=errors, fmt="none", ecolor=INK, elinewidth=0.8)
    ends = values + np.where(values < 0, -errors, errors)
    if untouched:
        before = _numbers(rows, untouched)
        low, high = np.array(at) - 0.4, np.array(at) + 0.4
        axes.vlines(before, low, high, color=INK, linewidth=2, label="untouched backbone")
        ends = np.fmax(ends, before)
    else:
        axes.axvline(0, color=INK, linewidth=0.8)
    for place, value, end in zip(at, values, ends, strict=True):
        axes.annotate(
            shown(value),
            (end, place),
            (-4 if end < 0 else 4, 0),
            textcoords="offset points",
            ha="right" if end < 0 else "left",
            va="center",
            fontsize=8,
        )
    axes.margins(x=0.3)
    axes.set_yticks(at, [row["run"] for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_axisbelow(True)


def _beside_untouched(
    axes: Any, rows: dict[str, list[Row]], along: str, column: str, **changes: Any
) -> None:
    """A line for each run, and thin black lines above them for the untouched backbones."""
    for index, (name, of_run) in enumerate(rows.items()):
        style = _style(index, name) | {"linewidth": 3, "alpha": 0.55} | changes
        axes.plot([row[along] for row in of_run], _numbers(of_run, column), **style)
    untouched = {name: _numbers(of_run, f"untouched_{column}") for name, of_run in rows.items()}
    for label, values, style in _references(untouched, "untouched backbone"):
        axes.plot(range(len(values)), values, label=label, **style)


def _references(
    found: dict[str, np.ndarray], what: str
) -> Iterator[tuple[str, np.ndarray, dict[str, Any]]]:
    """Reference lines (label, values, style), one for all runs that share the same values."""
    groups: dict[bytes, list[str]] = {}
    for name, values in found.items():
        groups.setdefault(values.tobytes(), []).append(name)
    for index, names in enumerate(groups.values()):
        label = what if len(groups) == 1 else f"{', '.join(names)}: {what}"
        style = {"color": INK, "linestyle": ("--", ":", "-.")[index % 3], "linewidth": 1}
        yield label, found[names[0]], style


def _numbers(rows: Sequence[Row], column: str) -> np.ndarray:
    """A column as numbers; missing values are nan, which is a gap in a line."""
    return np.array([row[column] for row in rows], dtype=float)


def _datasets(analysis: Analysis) -> dict[str, list[str]]:
    """The names of the runs of each data set."""
    found: dict[str, list[str]] = {}
    for run in analysis.runs:
        found.setdefault(run["dataset"], []).append(run["run"])
    return found


def _style(index: int, label: str) -> dict[str, Any]:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    return {"color": colour, "marker": marker, "label": label}


def _whole_numbers(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator

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
