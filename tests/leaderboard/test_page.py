"""The page and its pictures: complete in themselves, well formed, and honest."""

import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from recbole_idiomoe.leaderboard import plots
from recbole_idiomoe.leaderboard.board import read_board
from recbole_idiomoe.leaderboard.plots import groups_of
from recbole_idiomoe.leaderboard.standings import standings_of
from recbole_idiomoe.report.plot_style import NO_MATPLOTLIB
from tests.leaderboard.boards import Runner
from tests.leaderboard.conftest import Lead
from tests.pages import Elements, check_page

DRAWN = plots.can_draw
TITLES = [
    "NDCG@10 against training time",
    "Validation NDCG@10 by epoch",
    "NDCG@10 by history length",
    "NDCG@10 by popularity of the target",
]


def test_the_page_is_whole_and_needs_nothing_else(
    lead: Lead, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots, "can_draw", DRAWN)
    name = '<i> & "$x$"'
    lead("IDIOMoE", variants={name: {"model": "SASRec"}, "IDIOMoE": {}}, seeds=2)
    text = Path("board/leaderboard.html").read_text()
    check_page(text)
    assert NO_MATPLOTLIB not in text
    assert "<i>" not in text and text.count("&lt;i&gt; &amp;") > 5

    drawn = re.findall(r"<svg .*?</svg>", text, flags=re.DOTALL)
    pictures = [ElementTree.fromstring(svg) for svg in drawn]
    assert [picture.attrib["aria-label"] for picture in pictures] == [
        f"{title}, amazon-toys" for title in TITLES
    ]
    for picture in pictures:
        words = [element.text for element in picture.iter() if element.tag.endswith("text")]
        assert name in words and "IDIOMoE (trained whole)" in words
    # Written again from the same runs it is the same page.
    lead("IDIOMoE", variants={name: {"model": "SASRec"}, "IDIOMoE": {}}, seeds=2)
    assert Path("board/leaderboard.html").read_text() == text


def test_a_mix_is_drawn_as_its_model_but_hollow(
    lead: Lead, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots, "can_draw", DRAWN)
    result = lead("IDIOMoE,SASRec", seeds=2, mix="TransitionCounter")
    board = read_board(Path("board"))
    ran = standings_of(board, "amazon-toys", "ndcg@10")
    assert [standing.name for standing in ran] == [row["row"] for row in result["rows"]]
    styles = {standing.name: style for standing, style in plots._styled(ran)}
    for name in ("IDIOMoE", "SASRec"):
        own, mixed = styles[name], styles[f"{name} + TransitionCounter"]
        assert own["color"] == mixed["color"] and own["marker"] == mixed["marker"]
        assert mixed["markerfacecolor"] == "none" and "markerfacecolor" not in own
    assert styles["IDIOMoE"]["color"] != styles["SASRec"]["color"]
    text = Path("board/leaderboard.html").read_text()
    curves = next(svg for svg in text.split("<svg ") if 'aria-label="Validation' in svg)
    assert ">SASRec<" in curves and "TransitionCounter<" not in text.split("<table")[0]
    assert text.count("Hollow: mixed with TransitionCounter.") == 3


@pytest.mark.filterwarnings("error:constrained_layout")
def test_a_legend_of_many_rows_leaves_room(lead: Lead, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(plots, "can_draw", DRAWN)
    many = {f"SASRec, of these settings the {n}th": {"model": "SASRec"} for n in range(30)}
    lead("SASRec", variants=many)
    assert Path("board/leaderboard.html").read_text().count("<svg ") == len(TITLES)


def test_cells_sort_by_their_numbers_and_failures_have_none(lead: Lead, runner: Runner) -> None:
    runner.failing = {"GRU4Rec"}
    with pytest.raises(ValueError, match="GRU4Rec has no luck"):
        lead("SASRec,IDIOMoE,GRU4Rec")
    elements = Elements(Path("board/leaderboard.html").read_text())
    values = [found["data-value"] for tag, found in elements.found if "data-value" in found]
    width = len(values) // 3
    names, ndcg = values[::width], values[1::width]
    assert names == ["idiomoe (trained whole)", "sasrec", "gru4rec"]
    assert float(ndcg[0]) > float(ndcg[1]) and ndcg[2] == ""


def test_without_matplotlib_the_page_says_so(lead: Lead) -> None:
    lead("SASRec")
    text = Path("board/leaderboard.html").read_text()
    assert "<svg" not in text and text.count("Pictures need matplotlib") == 1


@pytest.mark.parametrize(
    ("values", "names"),
    [
        ([4] * 9, ["4"]),
        ([0] * 50 + list(range(1, 51)), ["0", "1 to 10", "11 to 30", "31 to 50"]),
        (list(range(1, 11)), ["1 to 2", "3 to 4", "5 to 6", "7 to 8", "9 to 10"]),
        ([1, 2] * 5, ["1", "2"]),
    ],
)
def test_groups_are_of_about_equal_size_and_hold_everything_once(
    values: list[int], names: list[str]
) -> None:
    groups = groups_of(np.array(values))
    assert [name for name, _ in groups] == names
    assert np.sum([inside for _, inside in groups], axis=0).tolist() == [1] * len(values)
