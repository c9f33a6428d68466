"""The ways to write an item in tokens, and what all of them promise."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import recbole_idiomoe
from recbole_idiomoe import api
from recbole_idiomoe.base.errors import CheckpointError, DataError, SettingError
from recbole_idiomoe.data.batch import collate
from recbole_idiomoe.data.semantic_ids import FILE_NAME, SemanticIds
from recbole_idiomoe.data.text_encoder import item_vectors
from recbole_idiomoe.lm import ItemTable
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.models.language.history_cache import HistoryCache
from recbole_idiomoe.models.language.item_codes import semantic
from recbole_idiomoe.models.language.item_codes.base import ItemCodes
from recbole_idiomoe.models.language.item_codes.factory import ITEM_CODES
from recbole_idiomoe.models.language.item_codes.semantic import SemanticCodes
from recbole_idiomoe.models.language.item_codes.title import TitleCodes
from recbole_idiomoe.models.language.options import LanguageModelOptions
from tests.models.test_catalog_lm import (
    CPU,
    HISTORIES,
    TITLES,
    build,
    make_catalog,
    make_histories,
    make_loader,
)
from tests.models.test_controls import FEWER, recorded_losses

SEMANTIC = {"item_tokens": "semantic", "semantic_levels": 2, "semantic_codebook_size": 3}
SPELLINGS: dict[str, dict[str, Any]] = {
    "title": {"item_tokens": "title", "use_text": False, "item_init": "random"},
    "semantic": SEMANTIC | {"use_text": False},
    "semantic with text": SEMANTIC | {"segment_order": "ID text"},
}
EACH = pytest.mark.parametrize("spelling", SPELLINGS)
KINDS = {
    "atomic": {"use_text": False},
    "semantic": SPELLINGS["semantic"],
    "title": SPELLINGS["title"],
}
EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


def spelt(codes: ItemCodes) -> list[tuple[int, ...]]:
    """The code of every item but the padding item."""
    return [tuple(code.tolist()) for code in codes.codes[1:]]


def test_every_choice_of_item_tokens_has_a_class() -> None:
    assert set(KINDS) == set(ITEM_CODES)
    with pytest.raises(SettingError) as error:
        LanguageModelOptions.from_mapping({"item_tokens": "words"})
    assert ", ".join(map(repr, ITEM_CODES)) in str(error.value)


@EVERY_KIND
def test_codes_tell_all_items_apart_and_have_rows_of_the_item_table(kind: str) -> None:
    model = build(**KINDS[kind])
    codes, offset = model.item_codes, model.lm.config.item_token_offset
    assert type(codes) is ITEM_CODES[kind]
    found = spelt(codes)
    assert len(found) == len(set(found)) == len(TITLES)
    beginnings = {code[:stop] for code in found for stop in range(len(code))}
    assert not beginnings & set(found)
    assert {token >= offset for code in found for token in code} == {not codes.in_text}
    assert max(token for code in found for token in code) < offset + len(codes.names)
    assert {len(code) for code in found} == {1} or not codes.one_token_each
    assert codes.one_token_each == HistoryCache.serves(model)
    names = model.tokenizer.convert_ids_to_tokens(range(offset, offset + len(codes.names)))
    assert names == codes.names and len(names) == model.lm.config.item_num


@EVERY_KIND
def test_all_items_are_ranked_and_batches_add_up(kind: str) -> None:
    model = build(**KINDS[kind])
    codes = model.item_codes
    sequences = model.sequences(HISTORIES)
    batches = [collate(sequences[part], model.pad_token_id) for part in (slice(3), slice(3, None))]
    with torch.no_grad():
        outputs = torch.cat([codes.batch_outputs(model.lm, batch) for batch in batches])
        scores = codes.scores(model.lm, outputs)
    assert scores.shape == (len(HISTORIES), len(TITLES) + 1) and scores.dtype == torch.float32
    assert (scores[:, 0] == -torch.inf).all() and scores[:, 1:].isfinite().all()
    torch.testing.assert_close(scores, model.scores(HISTORIES), atol=1e-4, rtol=1e-5)


@EVERY_KIND
def test_only_a_token_that_is_one_items_own_goes_untrained_with_it(kind: str) -> None:
    model = build(replace(make_catalog(), untrained=[2, 5]), **KINDS[kind])
    codes, size = model.item_codes, len(TITLES) + 1
    assert model.untrained.tolist() == ([2, 5] if codes.one_token_each else [])
    vectors = np.random.default_rng(0).normal(size=(size, 4)).astype(np.float32)
    start = codes.token_vectors(vectors, model.catalog)
    assert (start is None) == codes.in_text
    if start is not None:
        assert len(start) == len(codes.names)
    if codes.one_token_each:
        assert start is not None and not start[[2, 5]].any() and vectors[[2, 5]].all()
    text_free = replace(model.settings, item_init="random")
    assert codes.ranks_untrained(text_free) == (not codes.one_token_each)
    assert model.ranks_unseen_items


@EVERY_KIND
def test_saved_codes_are_the_same(kind: str, tmp_path: Path) -> None:
    model = build(**KINDS[kind])
    model.item_codes.save(tmp_path)
    loaded = ITEM_CODES[kind].load(model.code_context(model.catalog), tmp_path)
    assert spelt(loaded) == spelt(model.item_codes) and loaded.names == model.item_codes.names
    written = [path.name for path in tmp_path.iterdir()]
    assert written == ([FILE_NAME] if kind == "semantic" else [])


@EVERY_KIND
def test_new_items_get_codes_and_old_ones_keep_theirs(kind: str) -> None:
    model = build(**KINDS[kind])
    grown = make_catalog([*TITLES, "red E", "yellow A"])
    grown.untrained.extend([13, 14])
    asked: list[str] = []

    def vectors() -> np.ndarray:
        asked.append(kind)
        return item_vectors(grown, "tfidf", dim=model.lm.config.hidden_size, seed=0)

    codes = model.item_codes.with_items(model.code_context(grown), vectors)
    assert bool(asked) == codes.from_vectors
    before, after = spelt(model.item_codes), spelt(codes)
    assert len(after) == len(set(after)) == len(TITLES) + 2
    for old, new in zip(before, after, strict=False):
        assert new[: len(old)] == old  # a further token may tell it from a new item
    assert len(codes.names) == len(model.item_codes.names) + 2 * codes.one_token_each


@EACH
def test_the_loss_is_that_of_the_very_scores_that_rank(spelling: str) -> None:
    """A score is the log-probability of an item's tokens; the loss is their mean, negated."""
    model = build(**SPELLINGS[spelling])
    windows = make_histories([2, 9, 5])
    loader = make_loader(model, windows, 100_000)
    loader.set_epoch(0, float(model.settings.use_text))
    ((batch,),) = list(loader)
    prefixes = [window[:end] for window in windows for end in range(1, len(window))]
    targets = torch.tensor([item for window in windows for item in window[1:]])
    scores = model.scores(prefixes)
    assert scores.shape == (13, len(TITLES) + 1) and (scores[:, 0] == -torch.inf).all()
    chosen = scores.gather(1, targets.unsqueeze(1)).sum()
    lengths = [len(model.item_codes.codes[item]) for item in targets.tolist()]
    torch.testing.assert_close(-model.loss(batch) * sum(lengths), chosen, rtol=1e-5, atol=1e-4)
    assert (scores[:, 1:].exp().sum(dim=1) <= 1 + 1e-5).all()


@EACH
@pytest.mark.parametrize("max_batch_tokens", [8, 3000])
def test_a_batch_scores_as_one_by_one(spelling: str, max_batch_tokens: int) -> None:
    model = build(max_batch_tokens=max_batch_tokens, **SPELLINGS[spelling])
    together = model.scores(HISTORIES)
    alone = torch.cat([model.scores([history]) for history in HISTORIES])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-5)


@EACH
def test_a_saved_model_scores_to_the_last_bit(spelling: str, tmp_path: Path) -> None:
    model = build(**SPELLINGS[spelling])
    model.save(tmp_path)
    loaded = CatalogLM.load(tmp_path, model.settings, CPU)
    assert torch.equal(loaded.scores(HISTORIES), model.scores(HISTORIES))
    assert spelt(loaded.item_codes) == spelt(model.item_codes)


def test_titles_are_spelt_in_text_and_rank_by_their_words() -> None:
    titles = [*TITLES, TITLES[3], ""]
    model = build(make_catalog(titles), **SPELLINGS["title"])
    end = model.tokenizer.eos_token_id
    words = [model.tokenizer.decode(code[:-1]) for code in model.item_codes.codes[1:]]
    assert words == titles
    assert all(code[-1] == end and end not in code[:-1] for code in model.item_codes.codes)
    assert model.lm.config.item_num == 1  # padding: there are no item tokens
    scores = model.scores(HISTORIES)
    assert torch.equal(scores[:, 4], scores[:, 13])  # the same title
    with pytest.raises(DataError, match="no item has a title"):
        build(make_catalog([""] * 3), **SPELLINGS["title"])


def test_semantic_ids_are_tokens_that_start_from_their_codebooks() -> None:
    model = build(**SPELLINGS["semantic"])
    codes, table = model.item_codes, model.lm.item_table
    assert isinstance(codes, SemanticCodes) and isinstance(table, ItemTable)
    ids = codes.semantic_ids
    assert model.lm.config.item_num == ids.table_size == len(model.item_codes.names)
    offset = model.lm.config.item_token_offset
    names = model.tokenizer.convert_ids_to_tokens(list(range(offset, offset + ids.table_size)))
    assert names == model.item_codes.names
    assert len(set(spelt(codes))) == len(TITLES)
    # Codes of one level start as unlike as their centroids are.
    rows = table.rows[1:4].detach()
    assert torch.pdist(rows).min() > 0.1 * rows.norm(dim=1).mean()
    with pytest.raises(DataError, match=r"semantic.*no item has text"):
        build(make_catalog([""] * 3), **SPELLINGS["semantic"])


def test_titles_go_with_any_architecture() -> None:
    options = SPELLINGS["title"] | {"item_init": "text"}  # there are no items to start from text
    assert torch.isfinite(build(**options).scores(HISTORIES)[:, 1:]).all()


def test_a_catalogue_that_does_not_fit_changes_nothing() -> None:
    model = build(max_tokens=20, **SPELLINGS["title"])
    wanted, catalog, codes = model.scores(HISTORIES), model.catalog, model.item_codes
    longer = make_catalog([*TITLES[:-1], "a title of very many words " * 3])
    context = model.code_context(longer)
    settings = replace(model.settings, max_item_text_tokens=99)
    encoded = TitleCodes.make(context._replace(settings=settings))
    with pytest.raises(SettingError, match="max_tokens=20 has no room"):
        model.set_catalog(longer, encoded)
    assert model.catalog is catalog and model.item_codes is codes
    assert torch.equal(model.scores(HISTORIES), wanted)


def test_a_resumed_run_keeps_the_codes_that_it_was_trained_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever has happened to what they were made from."""
    settings = FEWER | SPELLINGS["semantic"] | {"checkpoint_dir": str(tmp_path)}
    (result,) = api.run("IDIOMoE", "ml-100k", settings=settings | {"epochs": 1})
    before = SemanticIds.load(Path(result["folder"]))
    fit = semantic.fit_semantic_ids

    def other_codes(*args: Any, **options: Any) -> SemanticIds:
        found = fit(*args, **options)
        return replace(found, codes=np.r_[found.codes[:1], found.codes[:0:-1]])

    monkeypatch.setattr(semantic, "fit_semantic_ids", other_codes)
    (resumed,) = api.run(settings={"epochs": 2}, resume=result["folder"])
    catalog_lm = recbole_idiomoe.load(resumed["folder"]).catalog_lm
    assert catalog_lm is not None and isinstance(catalog_lm.item_codes, SemanticCodes)
    assert np.array_equal(before.codes, catalog_lm.item_codes.semantic_ids.codes)

    def other_sizes(*args: Any, **options: Any) -> SemanticIds:
        return fit(*args, **options | {"codebook_size": 7})

    monkeypatch.setattr(semantic, "fit_semantic_ids", other_sizes)
    with pytest.raises(CheckpointError, match="no longer made from the items' text"):
        api.run(settings={"epochs": 3}, resume=result["folder"])


@pytest.mark.parametrize(
    ("options", "mend"),
    [
        (SEMANTIC, "set segment_order to 'ID text', or use_text to False"),
        ({"item_tokens": "title"}, "set use_text to False"),
        (SPELLINGS["title"] | {"attention": "own_text"}, "attention='own_text'"),
        (SPELLINGS["semantic"] | {"item_text_added": True}, "does not go with item_text_added"),
    ],
)
def test_what_does_not_go_together_is_one_line(options: dict[str, Any], mend: str) -> None:
    with pytest.raises(SettingError, match=mend) as error:
        LanguageModelOptions.from_mapping(options)
    assert "\n" not in str(error.value)


def test_semantic_ids_that_are_missing_are_one_line(tmp_path: Path) -> None:
    model = build(**SPELLINGS["semantic"])
    model.save(tmp_path)
    (tmp_path / FILE_NAME).unlink()
    with pytest.raises(CheckpointError, match="semantic"):
        CatalogLM.load(tmp_path, model.settings, CPU)


@pytest.mark.parametrize("text", [{"use_text": False}, {"segment_order": "ID text"}])
def test_a_run_with_semantic_ids_learns_and_its_folder_recommends(
    text: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = recorded_losses(monkeypatch)
    settings = FEWER | {"item_tokens": "semantic", "semantic_codebook_size": 16} | text
    (result,) = api.run("IDIOMoE", "ml-100k", settings=settings)
    assert losses[1] < losses[0] - 0.02
    found = recbole_idiomoe.load(result["folder"]).recommend(["1", "50", "181"], k=5)
    assert len({item.item_id for item in found} - {"1", "50", "181"}) == 5
