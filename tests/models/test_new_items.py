"""Items that were not trained on find their place by their text."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoTokenizer

from recbole_idiomoe import api, load
from recbole_idiomoe.base.errors import CheckpointError, DataError, IdiomoeError, SettingError
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.lm import ItemTable, item_token
from recbole_idiomoe.lm.embedding import TextAttributeTable
from recbole_idiomoe.models.language.new_items import parts_from_text, place_unseen_items
from recbole_idiomoe.recommend.recommender import Recommender
from tests.helpers import write_dataset
from tests.training.cycle import TINY
from tests.words import few_words

WORDS = {
    "trains": ["wooden", "railway", "train", "engine", "track", "station"],
    "dolls": ["doll", "dress", "princess", "pink", "hair", "house"],
    "puzzles": ["jigsaw", "puzzle", "piece", "landscape", "poster", "map"],
    "robots": ["robot", "battery", "remote", "laser", "metal", "gear"],
}
OF_CLUSTER = 10
MODELS: dict[str, dict[str, Any]] = {
    "IDIOMoE": {},
    "TextAttrLLM": {"text_encoder": "backbone"},
    "ItemLLM": {"item_embedding_dim": 12},
    "IDTransformer": {},
    "GRU4Rec": {"embedding_size": 16, "hidden_size": 16, "num_layers": 1},
}
ABLE = ["IDIOMoE", "TextAttrLLM", "ItemLLM"]
# Items of several tokens, which text decides.
SPELT: dict[str, dict[str, Any]] = {
    "semantic": {
        "model": "IDIOMoE",
        "item_tokens": "semantic",
        "semantic_codebook_size": 8,
        "use_text": False,
        "learning_rate": 0.004,
        "train_batch_size": 12,
        "epochs": 20,
        "eval_step": 20,
    },
    "TitleLLM": {"train_batch_size": 16, "epochs": 16},
}


def write_clusters(folder: Path) -> Path:
    """Users who stay within one cluster of items, each item called by its cluster's words."""
    rng = np.random.default_rng(0)
    items = [
        (f"{name}{n}", " ".join(rng.choice(words, size=3, replace=False)), name)
        for name, words in WORDS.items()
        for n in range(OF_CLUSTER)
    ]
    rows = [
        (f"{name}-{user}", f"{name}{item}", float(step))
        for name in WORDS
        for user in range(30)
        for step, item in enumerate(rng.permutation(OF_CLUSTER)[:6].tolist())
    ]
    return write_dataset(folder, rows, items)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of trained models, by name."""
    place = tmp_path_factory.mktemp("new-items")
    path = write_clusters(place / "data" / "toys")
    settings = TINY | {"epochs": 6, "data_path": str(path), "checkpoint_dir": str(place / "saved")}
    found = {}

    def train(models: dict[str, dict[str, Any]]) -> None:
        for name, options in models.items():
            own = {key: value for key, value in options.items() if key != "model"}
            model = options.get("model", name)
            (result,) = api.run(model, "toys", settings=settings | own)
            found[name] = Path(result["folder"])

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        train(MODELS)
        with few_words(tmp_path_factory.mktemp("words")):
            train(SPELT)
    return found


NEW = [
    {"item_id": f"new-{name}", "title": " ".join(words[:4]), "category": name}
    for name, words in WORDS.items()
]


def histories() -> list[list[str]]:
    return [[f"{name}{n}" for n in (1, 4, 7)] for name in WORDS]


def rows_of(recommender: Recommender) -> torch.Tensor:
    """The vectors of all items, in the catalogue's order."""
    assert recommender.catalog_lm is not None
    return recommender.catalog_lm.lm.item_table(torch.arange(recommender.catalog.item_num))


def scores(recommender: Recommender, history: list[str]) -> dict[str, float]:
    found = recommender.recommend(history, k=10_000, exclude_seen=False)
    return {item.item_id: item.score for item in found}


@pytest.mark.parametrize("model", ABLE)
def test_a_new_item_is_recommended_after_its_own_cluster(
    model: str, folders: dict[str, Path]
) -> None:
    recommender = load(folders[model])
    recommender.add_items(NEW)
    for name, history in zip(WORDS, histories(), strict=True):
        # Seven of the cluster are not seen yet: with the new one they are the best eight.
        found = {item.item_id for item in recommender.recommend(history, k=OF_CLUSTER - 2)}
        assert f"new-{name}" in found
        assert not found & {item["item_id"] for item in NEW if item["item_id"] != f"new-{name}"}
        # And it says as a history what its cluster says.
        (best, *_) = recommender.recommend([f"new-{name}"], k=1)
        assert best.item_id.startswith(name)


@pytest.mark.parametrize("model", ABLE)
def test_no_other_items_score_changes(model: str, folders: dict[str, Path]) -> None:
    recommender = load(folders[model])
    table, before = rows_of(recommender), [scores(recommender, history) for history in histories()]
    recommender.add_items(NEW)
    assert torch.equal(rows_of(recommender)[: len(table)], table)
    for history, wanted in zip(histories(), before, strict=True):
        found = scores(recommender, history)
        assert set(found) - set(wanted) == {item["item_id"] for item in NEW}
        assert [name for name in found if name in wanted] == list(wanted)
        # How BLAS adds up the table's last rows depends on how many there are.
        kept = {name: found[name] for name in wanted}
        assert kept == pytest.approx(wanted, rel=1e-6, abs=1e-6)
        assert sum(kept[name] == wanted[name] for name in wanted) > 0.9 * len(wanted)


@pytest.mark.parametrize("model", SPELT)
def test_a_new_item_of_several_tokens_is_likeliest_after_its_own_cluster(
    model: str, folders: dict[str, Path]
) -> None:
    recommender = load(folders[model])
    recommender.add_items(NEW)
    found = {
        name: scores(recommender, history) for name, history in zip(WORDS, histories(), strict=True)
    }
    for name in WORDS:
        assert max(WORDS, key=lambda after: found[after][f"new-{name}"]) == name


@pytest.mark.parametrize("model", SPELT)
def test_spelt_items_are_saved_with_the_rest(
    model: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    recommender = load(folders[model])
    codes = recommender.catalog_lm.item_codes.codes
    before = [scores(recommender, history) for history in histories()]
    recommender.add_items(NEW[:2])
    recommender.save(tmp_path / "grown")
    again = load(tmp_path / "grown")
    for history in [*histories(), ["new-trains"]]:
        assert scores(again, history) == scores(recommender, history)
    # Whoever has kept its tokens has kept its score.
    grown = recommender.catalog_lm.item_codes.codes
    kept = {
        recommender.catalog.item_ids[row]
        for row in range(1, len(codes))
        if np.array_equal(codes[row], grown[row])
    }
    assert len(kept) >= len(codes) - 3
    for history, wanted in zip(histories(), before, strict=True):
        found = scores(again, history)
        assert {name: found[name] for name in kept} == pytest.approx(
            {name: wanted[name] for name in kept}, abs=1e-4
        )


@pytest.mark.parametrize("model", [*ABLE, *SPELT])
def test_two_calls_are_as_one(model: str, folders: dict[str, Path]) -> None:
    together, apart = load(folders[model]), load(folders[model])
    together.add_items(NEW)
    apart.add_items(NEW[:1])
    apart.add_items([])
    apart.add_items(NEW[1:])
    assert apart.catalog == together.catalog
    for history in [*histories(), ["new-dolls", "trains1", "new-trains"]]:
        assert scores(apart, history) == pytest.approx(scores(together, history), abs=1e-5)


@pytest.mark.parametrize("model", ABLE)
def test_a_saved_model_knows_its_new_items(
    model: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    recommender = load(folders[model])
    recommender.add_items(NEW[:2])
    recommender.save(tmp_path / "grown")
    again = load(tmp_path / "grown")
    assert again.catalog == recommender.catalog
    for history in [*histories(), ["new-trains"]]:
        assert scores(again, history) == scores(recommender, history)

    catalog = json.loads((tmp_path / "grown" / "catalog.json").read_text())
    count = len(WORDS) * OF_CLUSTER + 1
    assert catalog["untrained"] == [count, count + 1]
    run = json.loads((tmp_path / "grown" / "run.json").read_text())
    first = json.loads((folders[model] / "run.json").read_text())
    assert run == first | {"folder": str(tmp_path / "grown")}
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "grown")
    offset = again.catalog_lm.lm.config.item_token_offset
    names = [item_token(item_id) for item_id in again.catalog.item_ids]
    assert tokenizer.convert_tokens_to_ids(names) == list(range(offset, offset + count + 2))

    # What is added later takes its place as if all had come at once.
    again.add_items(NEW[2:])
    recommender.add_items(NEW[2:])
    for history in histories():
        assert scores(again, history) == scores(recommender, history)


def test_a_folder_that_holds_something_is_left_alone(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    recommender = load(folders["IDIOMoE"])
    (tmp_path / "note").write_text("mine")
    for folder in (tmp_path, tmp_path / "note", folders["IDIOMoE"]):
        with pytest.raises(CheckpointError, match="is there already"):
            recommender.save(folder)
    assert [path.name for path in tmp_path.iterdir()] == ["note"]


FULL = {"item_id": "x", "title": "pink doll"}


@pytest.mark.parametrize(
    ("items", "said"),
    [
        ([FULL, FULL], r"items\[1\]: the catalogue has an item 'x' already"),
        ([{"item_id": "dolls1", "title": "doll"}], "has an item 'dolls1' already"),
        ([{"item_id": "[PAD]", "title": "doll"}], r"has an item '\[PAD\]' already"),
        ([{"title": "doll"}], r"items\[0\] has no item_id"),
        ([{"item_id": "", "title": "doll"}], r"items\[0\] has no item_id"),
        ([{"item_id": 7, "title": "doll"}], "item_id=7 must be text"),
        ([FULL, {"item_id": "y"}], r"items\[1\] \('y'\) has no text"),
        ([{"item_id": "y", "title": " \n", "category": ""}], "has no text"),
        ([FULL | {"brand": "b"}], "unknown field 'brand'; this model reads item_id, title"),
        ([FULL | {"category": ["a", "b"]}], "category=.* must be text"),
        ([FULL | {"title": None}], "title=None must be text"),
        (FULL, "is no list"),
        ("x", "is no list"),
        (["x"], r"items\[0\]='x' is no item"),
        (None, "items=None is no list"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(
    items: Any, said: str, folders: dict[str, Path]
) -> None:
    recommender = load(folders["IDIOMoE"])
    model = recommender.catalog_lm
    assert model is not None
    catalog, tokens = recommender.catalog, len(model.tokenizer)
    wanted = scores(recommender, ["dolls1"])
    with pytest.raises(DataError, match=said) as error:
        recommender.add_items(items)
    assert "\n" not in str(error.value)
    assert recommender.catalog is model.catalog is catalog
    assert len(model.tokenizer) == tokens
    assert model.lm.config.item_num == model.lm.item_table.item_num == catalog.item_num
    assert scores(recommender, ["dolls1"]) == wanted


@pytest.mark.parametrize("model", ["IDTransformer", "GRU4Rec"])
def test_a_model_that_cannot_is_named(model: str, folders: dict[str, Path], tmp_path: Path) -> None:
    recommender = load(folders[model])
    with pytest.raises(SettingError, match=f"{model} cannot rank items") as error:
        recommender.add_items(NEW)
    assert "\n" not in str(error.value)
    if model == "GRU4Rec":
        with pytest.raises(SettingError, match="GRU4Rec is no language model"):
            recommender.save(tmp_path / "copy")
    else:
        recommender.save(tmp_path / "copy")
        assert scores(load(tmp_path / "copy"), ["dolls1"]) == scores(recommender, ["dolls1"])


def test_vectors_from_a_file(folders: dict[str, Path], tmp_path: Path) -> None:
    """Another encoder than the trained one still places items: the regression reads it."""
    recommender = load(folders["IDIOMoE"])
    model = recommender.catalog_lm
    assert model is not None
    names = [*recommender.catalog.item_ids[1:], *(item["item_id"] for item in NEW[:2])]
    cluster = [next(i for i, word in enumerate(WORDS) if word in name) for name in names]
    vectors = (
        np.eye(len(WORDS))[cluster] + np.random.default_rng(0).normal(size=(len(names), 4)) / 9
    )
    np.savez(tmp_path / "vectors.npz", item_ids=names, vectors=vectors)
    object.__setattr__(model.settings, "text_encoder", str(tmp_path / "vectors.npz"))
    recommender.add_items(NEW[:2])
    assert "new-trains" in {item.item_id for item in recommender.recommend(["trains1"], k=10)}
    with pytest.raises(SettingError, match="has no vector of 'new-puzzles', 'new-robots'") as error:
        recommender.add_items(NEW[2:])
    assert "\n" not in str(error.value)
    assert recommender.catalog.item_num == len(names) + 1


@pytest.mark.parametrize(("kept", "other"), [("TextAttrLLM", "tfidf"), ("semantic", "backbone")])
def test_an_encoder_that_changed_is_refused_where_its_vectors_are_kept(
    kept: str, other: str, folders: dict[str, Path]
) -> None:
    recommender = load(folders[kept])
    model = recommender.catalog_lm
    assert model is not None
    object.__setattr__(model.settings, "text_encoder", other)
    with pytest.raises(CheckpointError, match="no longer gives the vectors"):
        recommender.add_items(NEW)
    assert "new-trains" not in recommender.catalog.item_ids


def test_items_that_say_nothing_are_told(
    folders: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    """A cold start may hold out items without text: they get an average row."""
    recommender = load(folders["IDIOMoE"])
    model, catalog = recommender.catalog_lm, recommender.catalog
    assert model is not None
    texts = [text if row != 5 else "" for row, text in enumerate(catalog.texts)]
    held_out = Catalog(catalog.item_ids, catalog.titles, texts, untrained=[5, 9])
    model.set_catalog(held_out, model.item_codes)
    place_unseen_items(model, seed=2020)
    assert f"1 items without a word that was trained on: '{catalog.item_ids[5]}'" in caplog.text
    rows = model.lm.item_table.rows
    trained = [row for row in range(1, catalog.item_num) if row not in (5, 9)]
    middle = rows[trained].mean(0)
    assert (rows[5] - middle).norm() < 0.5 * (rows[9] - middle).norm()


def test_a_folder_of_before_new_items_still_loads(folders: dict[str, Path], tmp_path: Path) -> None:
    content = json.loads((folders["IDIOMoE"] / "catalog.json").read_text())
    assert content.pop("untrained") == []
    (tmp_path / "catalog.json").write_text(json.dumps(content))
    assert Catalog.load(tmp_path).untrained == []


def test_what_was_not_trained_on_cannot_be_altered(tmp_path: Path) -> None:
    catalog = Catalog(["[PAD]", "a", "b"], ["", "A", "B"], ["", "A", "B"], untrained=[2])
    catalog.save(tmp_path)
    assert Catalog.load(tmp_path) == catalog
    file = tmp_path / "catalog.json"
    file.write_text(file.read_text().replace("[2]", "[1]"))
    with pytest.raises(CheckpointError, match="altered"):
        Catalog.load(tmp_path)


TEXT = torch.randn(900, 6, generator=torch.Generator().manual_seed(0))
RELATION = torch.randn(6, 8, generator=torch.Generator().manual_seed(1))
UNTRAINED = list(range(600, 900))


def test_a_linear_relation_is_learnt_from_what_was_trained() -> None:
    table = ItemTable(900, 8)
    table.rows.data = TEXT @ RELATION + 4
    wanted = table.rows[UNTRAINED].clone()
    table.rows.data[UNTRAINED] = 1e6
    rows, text = parts_from_text(table, TEXT, UNTRAINED, torch.tensor(UNTRAINED))
    torch.testing.assert_close(rows, wanted, atol=0.05, rtol=0)
    torch.testing.assert_close(text, TEXT[UNTRAINED], atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ["rows", "factorised", "text added"])
def test_new_items_are_as_far_from_the_mean_as_trained_ones(kind: str) -> None:
    """Least squares alone would leave them nearer to it, and they would rank too low."""
    torch.manual_seed(0)
    if kind == "text added":
        table: ItemTable = TextAttributeTable(900, 8, text_size=6)
        assert isinstance(table, TextAttributeTable)
        table.text.copy_(TEXT)
        table.projection.data = torch.randn(6, 8)
    else:
        table = ItemTable(
            900, 12 if kind == "factorised" else 8, 8 if kind == "factorised" else None
        )
    table.rows.data = TEXT @ RELATION + 4 + 5 * torch.randn(900, 8)
    before = table.weight().detach()
    rows, text = parts_from_text(table, TEXT, UNTRAINED, torch.tensor(UNTRAINED))
    table.place(torch.tensor(UNTRAINED), rows, text)
    after = table.weight().detach()
    assert torch.equal(after[:600], before[:600])
    mean = before[:600].mean(0)
    spread = (after[UNTRAINED] - mean).norm(dim=1).mean().item()
    assert spread == pytest.approx((before[:600] - mean).norm(dim=1).mean().item(), rel=0.1)
    # In the direction that text says, which alone would not reach as far.
    said = TEXT[UNTRAINED] @ RELATION
    said = said @ table.up if table.up is not None else said
    said = said + TEXT[UNTRAINED] @ table.projection if kind == "text added" else said
    assert F.cosine_similarity(after[UNTRAINED] - mean, said).mean() > 0.95
    assert said.norm(dim=1).mean() < 0.8 * spread


def test_too_few_items_to_learn_from(tmp_path: Path, folders: dict[str, Path]) -> None:
    recommender = load(folders["IDIOMoE"])
    model = recommender.catalog_lm
    assert model is not None
    catalog = recommender.catalog
    texts = ["", catalog.texts[1], *[""] * (catalog.item_num - 2)]
    model.set_catalog(Catalog(catalog.item_ids, catalog.titles, texts), model.item_codes)
    with pytest.raises(IdiomoeError, match="too little text to learn from"):
        recommender.add_items(NEW)
