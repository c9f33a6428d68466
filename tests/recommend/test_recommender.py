"""Recommendations from a run's folder, for a model of ours and for one of RecBole's."""

import io
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from recbole.data import data_preparation
from recbole.data.interaction import Interaction

import recbole_idiomoe
from recbole_idiomoe import api
from recbole_idiomoe.base.errors import CheckpointError, DataError
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.protocol import loader
from recbole_idiomoe.recommend.__main__ import main
from recbole_idiomoe.recommend.recommender import Recommendation, Recommender
from recbole_idiomoe.training.trainers import get_trainer
from tests.models.test_host_syncs import Operators
from tests.training.cycle import TINY, titles_of, write_cycle

MODELS: dict[str, dict[str, Any]] = {
    "IDIOMoE": {},
    "SASRec": {"hidden_size": 16, "inner_size": 16, "n_layers": 1, "n_heads": 2},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of trained models, by name."""
    place = tmp_path_factory.mktemp("recommend")
    path = write_cycle(place / "data" / "cycle")
    settings = TINY | {"epochs": 1, "data_path": str(path), "checkpoint_dir": str(place / "saved")}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        results = [
            api.run(model, "cycle", settings=settings | sizes)[0] for model, sizes in MODELS.items()
        ]
    return {result["model"]: Path(result["folder"]) for result in results}


@pytest.fixture(params=MODELS)
def folder(request: pytest.FixtureRequest, folders: dict[str, Path]) -> Path:
    return folders[request.param]


@pytest.fixture
def recommender(folder: Path) -> Recommender:
    return recbole_idiomoe.load(folder)


def test_items_come_named_and_best_first(recommender: Recommender) -> None:
    found = recommender.recommend(["i3", "i4"], k=7)
    assert len(found) == 7 == len({item.item_id for item in found})
    titles = dict(zip((f"i{n}" for n in range(40)), titles_of(40), strict=True))
    for item in found:
        assert item.title == titles[item.item_id]
        assert type(item.item_id) is str and type(item.score) is float
    scores = [item.score for item in found]
    assert scores == sorted(scores, reverse=True) and len(set(scores)) > 1


def test_threads_may_load_at_once(folder: Path, recommender: Recommender) -> None:
    def ask(_: int) -> list[Recommendation]:
        return recbole_idiomoe.load(folder).recommend(["i3", "i4"], k=7)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, range(4)))
    assert answers == [recommender.recommend(["i3", "i4"], k=7)] * 4


def test_seen_items_are_left_out_unless_wanted(recommender: Recommender) -> None:
    history = ["i5", "i6", "i5", "i7"]
    unseen = recommender.recommend(history, k=1000)
    every = recommender.recommend(history, k=1000, exclude_seen=False)
    assert len(unseen) == 37 and len(every) == 40
    assert {item.item_id for item in every} - {item.item_id for item in unseen} == set(history)
    assert [item for item in every if item.item_id not in history] == unseen
    assert all(item.score > -1e9 for item in every)


def test_seen_items_count_however_long_ago(recommender: Recommender) -> None:
    """The model reads ten items here; the others are still not recommended."""
    history = [f"i{n}" for n in range(35)]
    found = recommender.recommend(history, k=40)
    assert {item.item_id for item in found} == {f"i{n}" for n in range(35, 40)}


def test_the_most_recent_items_are_read(recommender: Recommender) -> None:
    history = [f"i{n}" for n in range(25)]
    assert recommender.max_history == 10
    long = recommender.recommend(history, k=40, exclude_seen=False)
    short = recommender.recommend(history[-10:], k=40, exclude_seen=False)
    assert long == short
    assert long != recommender.recommend(history[-9:], k=40, exclude_seen=False)


def test_histories_together_are_as_one_by_one(recommender: Recommender) -> None:
    histories = [["i1"], [f"i{n}" for n in range(20)], ["i9", "i2", "i9"]]
    together = recommender.recommend(histories, k=40)
    assert len(together) == 3
    for history, found in zip(histories, together, strict=True):
        alone = recommender.recommend(history, k=40)
        assert [item.item_id for item in found] == [item.item_id for item in alone]
        assert [i.score for i in found] == pytest.approx([i.score for i in alone], abs=1e-5)
    assert recommender.recommend([["i1"]], k=2) == [recommender.recommend(["i1"], k=2)]


def test_many_histories_are_ranked_few_at_a_time(
    recommender: Recommender, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories = [[f"i{n}", f"i{n + 1}"] for n in range(7)]
    wanted = recommender.recommend(histories, k=40)
    sizes, scorer = [], recommender.scorer

    def counted(part: Any) -> torch.Tensor:
        sizes.append(len(part))
        return scorer(part)

    recommender.scorer = counted
    monkeypatch.setattr(loader, "MAX_SCORES", 3 * recommender.catalog.item_num)
    for found, expected in zip(recommender.recommend(histories, k=40), wanted, strict=True):
        assert [item.item_id for item in found] == [item.item_id for item in expected]
        assert [i.score for i in found] == pytest.approx([i.score for i in expected], abs=1e-5)
    assert sizes == [3, 3, 1]


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_the_host_waits_for_nothing_but_the_heads_of_the_lists(
    exclude_seen: bool, folders: dict[str, Path]
) -> None:
    recommender = recbole_idiomoe.load(folders["IDIOMoE"])
    with Operators() as operators:
        recommender.recommend([["i1", "i2"], ["i3"]], k=5, exclude_seen=exclude_seen)
    assert operators.waits == ["tolist", "tolist"]  # scores, and which items
    session = recommender.session(["i1"])
    for item in ("i2", "i3"):
        session.add(item)
        with Operators() as operators:
            session.recommend(k=5, exclude_seen=exclude_seen)
        assert operators.waits == ["tolist", "tolist"]


@pytest.mark.parametrize("model", MODELS)
def test_a_session_goes_on_as_if_asked_anew(model: str, folders: dict[str, Path]) -> None:
    recommender = recbole_idiomoe.load(folders[model])
    session = recommender.session(["i3"])
    for item in [f"i{n}" for n in range(3, 18)]:
        session.add(item)
        found, wanted = session.recommend(k=40), recommender.recommend(session.history, k=40)
        assert [i.score for i in found] == pytest.approx([i.score for i in wanted], abs=1e-5)
        by_item = {i.item_id: i.score for i in wanted}
        assert [by_item[i.item_id] for i in found] == pytest.approx(
            [i.score for i in found], abs=1e-5
        )


@pytest.mark.parametrize("model", MODELS)
def test_scores_are_those_of_the_evaluation(
    model: str, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very scores that the trainer's evaluation ranks, for every test user."""
    run = json.loads((folders[model] / "run.json").read_text())
    config = RunConfig(model, "cycle", settings=run["settings"])
    train, _, test = data_preparation(config, load_dataset(config))
    network = get_model(model)(config, train._dataset)
    trainer = get_trainer(model)(config, network)
    trainer.saved_model_file = str(folders[model] / "checkpoint.pth")
    ranked: list[tuple[Interaction, torch.Tensor]] = []
    original = trainer.eval_collector.eval_batch_collect

    def collect(scores: torch.Tensor, interaction: Interaction, *rest: Any) -> None:
        ranked.append((interaction, scores.clone()))
        original(scores, interaction, *rest)

    monkeypatch.setattr(trainer.eval_collector, "eval_batch_collect", collect)
    trainer.evaluate(test, load_best_model=True)
    ((interaction, scores),) = ranked

    recommender = recbole_idiomoe.load(folders[model])
    names = recommender.catalog.item_ids
    assert len(interaction) == 60
    rows = interaction["item_id_list"].tolist()
    histories = [[names[item] for item in row if item] for row in rows]
    for wanted, found in zip(
        scores, recommender.recommend(histories, 40, exclude_seen=False), strict=True
    ):
        assert len(found) == 40
        expected = [float(wanted[names.index(item.item_id)]) for item in found]
        assert [item.score for item in found] == pytest.approx(expected, abs=1e-5)


def test_unknown_items_are_named(recommender: Recommender) -> None:
    with pytest.raises(DataError, match="2 of 3 items are not in the catalogue of 40: 'x', 'i40'"):
        recommender.recommend(["x", "i3", "i40"])
    with pytest.raises(DataError, match="'x'"):
        recommender.recommend(["x", *(f"i{n}" for n in range(30))])
    with pytest.raises(DataError, match="'y'"):
        recommender.recommend([["i1"], ["y"]])
    with pytest.raises(DataError, match="PAD"):
        recommender.recommend(["[PAD]"])


@pytest.mark.parametrize("history", [[], [[]], [["i1"], []]])
def test_an_empty_history_is_refused(history: Any, recommender: Recommender) -> None:
    with pytest.raises(DataError, match="history is empty"):
        recommender.recommend(history)


def test_what_makes_no_sense_is_refused(recommender: Recommender) -> None:
    with pytest.raises(DataError, match="one string"):
        recommender.recommend("i1")  # type: ignore[call-overload]
    with pytest.raises(DataError, match="k=0"):
        recommender.recommend(["i1"], k=0)


def test_everything_seen_leaves_nothing(recommender: Recommender) -> None:
    assert recommender.recommend([f"i{n}" for n in range(40)]) == []


def test_a_folder_may_be_moved(folder: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(folder, tmp_path / "moved")
    wanted = recbole_idiomoe.load(folder).recommend(["i3"])
    assert recbole_idiomoe.load(moved).recommend(["i3"]) == wanted


def test_idiomoe_needs_nothing_but_its_folder(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["IDIOMoE"], tmp_path / "moved")
    (folder / "training_state.pt").unlink()
    run = json.loads((folder / "run.json").read_text())
    run["settings"]["data_path"] = "/nowhere"
    (folder / "run.json").write_text(json.dumps(run))
    assert len(recbole_idiomoe.load(str(folder)).recommend(["i3"])) == 10


def test_a_table_is_printed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main([str(folder), "--history=i3, i4", "--k=3"]) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert lines[0].split() == ["#", "item", "score", "title"]
    wanted = recbole_idiomoe.load(folder).recommend(["i3", "i4"], k=3)
    for rank, (line, item) in enumerate(zip(lines[1:], wanted, strict=True), start=1):
        assert line.split(maxsplit=3) == [
            str(rank), item.item_id, f"{item.score:.3f}", item.title
        ]  # fmt: skip


def test_a_title_cannot_write_to_the_terminal(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folders["IDIOMoE"], tmp_path / "run")
    catalog = Catalog.load(tmp_path / "run")
    titles = ["\x1b]0;other window\x07\x1b[31mred \u202e" for _ in catalog.titles]
    replace(catalog, titles=titles).save(tmp_path / "run")
    assert main([str(tmp_path / "run"), "--history=i3", "--k=3"]) == 0
    said = capsys.readouterr().out
    assert said.count("\\x1b]0;other window\\x07\\x1b[31mred \\u202e") == 3
    assert all(line.isprintable() for line in said.splitlines())


def test_a_terminal_that_has_no_letters_for_a_title(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(folders["IDIOMoE"], tmp_path / "run")
    catalog = Catalog.load(tmp_path / "run")
    replace(catalog, titles=["Café \u4e03" for _ in catalog.titles]).save(tmp_path / "run")
    for encoding, shown in {"cp1252": "Café \\u4e03", "ascii": "Caf\\xe9 \\u4e03"}.items():
        terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr("sys.stdout", terminal)
        assert main([str(tmp_path / "run"), "--history=i3", "--k=3"]) == 0
        terminal.seek(0)
        assert terminal.read().count(shown) == 3


def test_a_table_with_long_titles_and_ids_fits_a_terminal(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, wanted in (("B00000{:04}", 80), ("an-id-of-{:036}-letters-in-all", 97)):
        catalog = Catalog.load(folders["IDIOMoE"])
        names = ["[PAD]", *map(name.format, range(1, catalog.item_num))]
        shutil.copytree(folders["IDIOMoE"], tmp_path / "run", dirs_exist_ok=True)
        replace(catalog, item_ids=names, titles=["long " * 30] * len(names)).save(tmp_path / "run")
        assert main([str(tmp_path / "run"), f"--history={names[1]}", "--k=12"]) == 0
        _, *lines = capsys.readouterr().out.splitlines()
        assert len(lines) == 12 and {len(line) for line in lines} == {wanted}
        assert all(line.endswith("…") for line in lines)


def test_ids_with_commas_are_given_in_quotes(
    folders: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folders["IDIOMoE"], tmp_path / "run")
    catalog = Catalog.load(tmp_path / "run")
    names = ["[PAD]", *(f"tin {n}, large" for n in range(1, catalog.item_num))]
    replace(catalog, item_ids=names).save(tmp_path / "run")
    assert main([str(tmp_path / "run"), '--history="tin 3, large","tin 4, large"', "--k=100"]) == 0
    said = capsys.readouterr().out
    assert said.count(", large") == 38 and "tin 3, " not in said and "tin 4, " not in said
    assert main([str(tmp_path / "run"), "--history=tin 3, large"]) == 2
    assert "'tin 3', 'large'" in capsys.readouterr().err


def test_seen_items_are_printed_if_wanted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lengths = []
    for words in ([], ["--include_seen"]):
        assert main([str(folder), "--history=i3,i4", "--k=100", *words]) == 0
        lengths.append(len(capsys.readouterr().out.splitlines()) - 1)
    assert lengths == [38, 40]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--history=i3,nope"], "'nope'"),
        (["--history=,"], "empty"),
        (["--history=i3", "--k=0"], "k=0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(
    words: list[str], said: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main([str(folder), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and said in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize("content", [None, "{", "[]", '{"model": "IDIOMoE"}'])
def test_a_folder_that_is_no_run(
    content: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "run.json").write_text(content)
    with pytest.raises(CheckpointError, match="is not the folder of a run"):
        recbole_idiomoe.load(tmp_path)
    assert main([str(tmp_path), "--history=i1"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize("fault", ["missing", "cut short"])
def test_weights_that_are_not_whole(fault: str, folder: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(folder, tmp_path / "broken")
    weights = broken / "model.safetensors"
    if fault == "missing":
        weights.unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(CheckpointError, match="holds no complete model") as error:
        recbole_idiomoe.load(broken)
    assert "\n" not in str(error.value)


def test_recboles_model_wants_its_own_dataset(folders: dict[str, Path], tmp_path: Path) -> None:
    broken = shutil.copytree(folders["SASRec"], tmp_path / "broken")
    run = json.loads((broken / "run.json").read_text())
    other = write_cycle(tmp_path / "data" / "cycle", titles=[f"other {n}" for n in range(40)])
    run["settings"]["data_path"] = str(other)
    (broken / "run.json").write_text(json.dumps(run))
    with pytest.raises(CheckpointError, match="trained on another catalogue"):
        recbole_idiomoe.load(broken)
