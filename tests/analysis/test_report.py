"""The page of all analyses: complete in itself, every picture with its numbers and command."""

import json
import re
import shlex
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from xml.etree import ElementTree

import pytest

from recbole_idiomoe.analysis import outputs, report
from recbole_idiomoe.analysis.__main__ import main
from recbole_idiomoe.analysis.commands import COMMANDS, PROGRAM
from recbole_idiomoe.analysis.plots import PLOTS
from recbole_idiomoe.analysis.report import Section, figures_of, page
from recbole_idiomoe.analysis.results import Analysis
from recbole_idiomoe.report.plot_style import NO_MATPLOTLIB
from tests.analysis.test_commands import Folders
from tests.pages import check_page

QUICK = ["--k=5", "--prompts=3", "--histories=4", "--distances=5", "--repeats=1", "--batch_size=2"]
TEXT = ["--text", "a text.txt"]


def reported(*arguments: str | Path) -> str:
    """The page that ``report`` writes into ./out."""
    Path(TEXT[1]).write_text("red green blue thing " * 9, encoding="utf-8")
    assert main(["report", *map(str, arguments), *QUICK, "--out", "out"]) == 0
    return (Path("out") / report.PAGE).read_text(encoding="utf-8")


@pytest.mark.usefixtures("drawn_once")
def test_every_picture_has_its_numbers_and_the_command_that_makes_them(
    folders: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    timed = ["--efficiency", "--length", "8", "16"]
    text = reported(folders["IDIOMoE"], folders["ItemLLM"], *TEXT, *timed)
    check_page(text)
    assert NO_MATPLOTLIB not in text and "Not made" not in text and "on demand" not in text
    monkeypatch.setattr(outputs, "can_draw", lambda: False)
    sections = dict(re.findall(r'<section id="(.*?)">(.*?)</section>', text, flags=re.DOTALL))
    assert list(sections) == list(COMMANDS)
    for name, section in sections.items():
        content = json.loads(Path(f"out/{name}.json").read_text(encoding="utf-8"))
        analysis = Analysis(**content)
        assert all(f"<li>{escape(note)}</li>" in unquoted(section) for note in analysis.notes)
        figures = re.findall(r"<figure>.*?</figure>", section, flags=re.DOTALL)
        drawn = [p for p in PLOTS[name] if analysis.tables[p.table]]
        assert len(figures) == sum(map(bool, analysis.tables.values())) >= len(drawn) > 0
        for figure, picture in zip(figures, drawn, strict=False):
            assert figure.index("<svg") < figure.index("<table>") < figure.index("<code>")
            for svg in re.findall(r"<svg .*?</svg>", figure, flags=re.DOTALL):
                assert ElementTree.fromstring(svg).attrib["aria-label"] == picture.title
            assert figure.count("<svg ") == figure.count("<div class=") - 1 == 2  # wide and narrow
            rows = outputs.as_text(analysis.tables[picture.table], report.WORD)
            assert cells(figure) == rows
        assert [unescape(c) for c in re.findall(r"<code>(.*?)</code>", section)] == [
            analysis.command
        ] * len(figures)
        # The command makes it by itself.
        if name != "efficiency":  # which is another time each time
            assert main([*shlex.split(analysis.command)[3:], "--out", "again"]) == 0
            again = json.loads(Path(f"again/{name}.json").read_text(encoding="utf-8"))
            assert again["tables"] == content["tables"]
    assert shlex.split(analysis.command)[:3] == shlex.split(PROGRAM)


def unquoted(text: str) -> str:
    """Jinja writes quotation marks in another form than :func:`html.escape`."""
    return text.replace("&#39;", "&#x27;").replace("&#34;", "&quot;")


def cells(figure: str) -> list[list[str]]:
    """The table of a figure."""
    (table,) = re.findall(r"<table>.*?</table>", figure, flags=re.DOTALL)
    rows = re.findall(r"<tr>(.*?)</tr>", table, flags=re.DOTALL)
    return [[unescape(c) for c in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", r)] for r in rows]


@pytest.mark.usefixtures("drawn_once")
def test_what_a_run_cannot_have_and_what_nobody_asked_for_is_said(
    folders: Folders, capsys: pytest.CaptureFixture[str]
) -> None:
    text = reported(folders["TitleLLM"])
    check_page(text)
    assert "Not made: TitleLLM spells items in several tokens (item_tokens=title)" in text
    for name, how in (("language", "--text=FILE or --lm_eval=TASK"), ("efficiency", "--eff")):
        assert f"Without {name}, which is made on demand: {how}" in text
    assert '<section id="attention">' in text and '<section id="language">' not in text
    assert "\nffn-memory is not made: TitleLLM spells" in capsys.readouterr().out
    assert not Path("out/ffn-memory.json").exists()


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("no/such", [], "is not the folder of a run"),
        ("SASRec", [], "SASRec, which is no language model"),
        ("IDIOMoE", ["--k", "0"], "--k=0 is out of range"),
        ("IDIOMoE", ["--device", "tpu9"], "--device=tpu9 is not available here"),
        ("IDIOMoE", ["--text", "none.txt"], "--text=none.txt cannot be read"),
        ("IDIOMoE", ["--txt", "a"], "unknown setting --txt"),
    ],
)
def test_a_report_of_nothing_is_an_error(
    name: str,
    given: list[str],
    said: str,
    folders: Folders,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["report", str(folders.get(name, Path(name))), *given, "--out", "out"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and said in lines[-1] and not Path("out").exists()


@pytest.mark.usefixtures("drawn")
def test_words_stay_words_and_nothing_of_them_becomes_markup(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bad = "<script>alert(\"$1$\")</script> & 'co'"
    text = page([made_up(bad)], bad, {"efficiency": bad})
    check_page(text)
    assert "<script" not in text and text.count("&lt;script&gt;") >= 8
    monkeypatch.setattr(report, "can_draw", lambda: False)
    plain = page([made_up(bad)], bad, {})
    check_page(plain)
    assert "<svg" not in plain and plain.count(NO_MATPLOTLIB) == 1 and cells(plain)[1][0] == bad


def made_up(word: str) -> Section:
    """A section of a run, a title, a note ... called ``word``."""
    row = {"run": word, "nll": 1.5, "untouched_nll": 1.25, "nll_change": 0.25, "item": word}
    analysis = Analysis(
        name="language",
        title=word,
        runs=[{"run": word, "model": word, "dataset": word, "folder": word}],
        settings={},
        tables={"text": [row], "tasks": []},
        notes=[word],
        device=word,
        versions={"python": word},
        command=word,
    )
    return Section("language", word, analysis, figures_of(analysis))


BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
FRAME = """<!DOCTYPE html><body><script>
const page = {page};
for (const width of [320, 390, 820, 1400]) {{
  const frame = document.body.appendChild(document.createElement("iframe"));
  frame.style = `width: ${{width}}px; height: 800px; border: 0`;
  frame.contentDocument.write(page);
  frame.contentDocument.close();
  const inside = frame.contentDocument, style = (of) => frame.contentWindow.getComputedStyle(of);
  const shown = [...inside.querySelectorAll("svg")].filter((svg) => svg.clientWidth);
  const found = {{
    width, scrolled: inside.documentElement.scrollWidth, ground: style(inside.body).backgroundColor,
    ink: style(inside.body).color, letters: style(shown[0].querySelector("text")).fill,
    shown: shown.map((svg) => [svg.parentNode.className, svg.clientWidth]),
    size: shown[0].querySelector("text").getBoundingClientRect().height,
  }};
  document.body.append(Object.assign(document.createElement("pre"),
    {{ textContent: JSON.stringify(found) }}));
  frame.remove();
}}
</script></body>"""


@pytest.mark.slow
@pytest.mark.usefixtures("drawn")
@pytest.mark.skipif(BROWSER is None, reason="no browser")
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_shows_it_on_a_telephone_and_on_a_desk_by_day_and_by_night(
    dark: bool, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    text = page([made_up("a run of a model")], f"{PROGRAM} report {'long ' * 40}{'x' * 200}", {})
    content = json.dumps(text).replace("</", "<\\/")
    (tmp_path / "frame.html").write_text(FRAME.format(page=content), encoding="utf-8")
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", "--no-first-run", "--disable-sync"]
    # Blink counts dark as 0 and light as 1.
    options += [f"--blink-settings=preferredColorScheme={int(not dark)}", "--dump-dom"]
    done = subprocess.run(
        [str(BROWSER), *options, (tmp_path / "frame.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    found = [json.loads(unescape(pre)) for pre in re.findall(r"<pre>(.*?)</pre>", done.stdout)]
    assert [each["width"] for each in found] == [320, 390, 820, 1400]
    for each in found:
        assert each["scrolled"] <= each["width"]  # tables scroll in themselves
        layout = "narrow" if each["width"] < 768 else "wide"
        (shown,) = each["shown"]
        assert shown[0] == layout and 256 <= shown[1] <= each["width"]
        assert each["size"] >= 9 and each["letters"] == each["ink"]
        ground, ink = (sum(map(int, re.findall(r"\d+", each[name]))) for name in ("ground", "ink"))
        assert (ground < 100 and ink > 600) if dark else (ground > 700 and ink < 150)
