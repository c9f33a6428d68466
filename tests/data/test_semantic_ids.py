"""Semantic IDs: who shares a code, that no two items are confused, and what a file keeps."""

import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from vector_quantize_pytorch import ResidualVQ

from recbole_idiomoe.base.errors import CheckpointError, DataError, MissingLibraryError
from recbole_idiomoe.data.semantic_ids import (
    FILE_NAME,
    SPARE_TIES,
    SemanticIds,
    fit_semantic_ids,
)
from recbole_idiomoe.lm.embedding import text_directions

WIDTH = 12


def clusters(count: int, each: int, seed: int = 0) -> np.ndarray:
    """A padding row, then ``count`` far groups of ``each`` near vectors, group by group."""
    rng = np.random.default_rng(seed)
    centres = 10 * rng.normal(size=(count, 1, WIDTH))
    vectors = (centres + rng.normal(size=(count, each, WIDTH))).reshape(-1, WIDTH)
    return np.concatenate([np.zeros((1, WIDTH)), vectors]).astype(np.float32)


def fit(vectors: np.ndarray, **kwargs: object) -> SemanticIds:
    return fit_semantic_ids(vectors, **({"levels": 3, "codebook_size": 8} | kwargs))


def sequences(ids: SemanticIds) -> list[tuple[int, ...]]:
    """Every item's tokens without padding."""
    return [tuple(int(token) for token in row if token) for row in ids.tokens[1:]]


def prefixes(ids: SemanticIds) -> set[tuple[int, ...]]:
    return {tokens[:stop] for tokens in sequences(ids) for stop in range(len(tokens))}


@st.composite
def catalogues(draw: st.DrawFn) -> np.ndarray:
    """Small matrices in which rows repeat and rows are zero; row 0 may hold anything."""
    width = draw(st.integers(1, 4))
    values = st.sampled_from([-2.0, -1.0, 0.0, 0.5, 1.0, 3.0])
    pool = draw(st.lists(st.lists(values, min_size=width, max_size=width), min_size=1, max_size=6))
    rows = draw(st.lists(st.sampled_from([*pool, [0.0] * width]), min_size=1, max_size=15))
    return np.array(rows, dtype=np.float32)


@settings(max_examples=60, deadline=None)
@given(catalogues(), st.integers(1, 3), st.integers(2, 5), st.randoms(use_true_random=False))
def test_no_item_s_tokens_are_or_begin_another_s(
    vectors: np.ndarray, levels: int, size: int, draw: random.Random
) -> None:
    fitted = np.array([draw.random() < 0.7 for _ in vectors])
    ids = fit_semantic_ids(vectors, levels=levels, codebook_size=size, fitted=fitted)
    found = sequences(ids)
    assert len(found) == len(vectors) - 1 == len(set(found))
    assert not prefixes(ids) & set(found)
    assert ids.codebook_size <= size
    assert not ids.tokens[0].any()
    assert all(0 < token < ids.table_size for tokens in found for token in tokens)
    for tokens in found:
        assert len(tokens) in (levels, levels + 1)
        places = [(token - 1) // ids.codebook_size for token in tokens[:levels]]
        assert places == list(range(levels))
        assert all(token > levels * ids.codebook_size for token in tokens[levels:])
    assert (ids.encode(vectors[1:]) == ids.codes[1:]).all()


@settings(max_examples=40, deadline=None)
@given(catalogues(), st.data())
def test_items_that_come_later_are_as_unseen_ones_from_the_start(
    vectors: np.ndarray, data: st.DataObject
) -> None:
    old = data.draw(st.integers(1, len(vectors)))
    before = fit(vectors[:old], codebook_size=3)
    later = before.with_items(vectors[old:])
    at_once = fit(vectors, codebook_size=3, fitted=np.arange(len(vectors)) < old)
    ties = 1 + later.levels * later.codebook_size
    assert (later.tokens == at_once.tokens).all()
    changed = (later.tokens[:old] != before.tokens).any(axis=1)
    assert (before.tokens[changed, -1] == 0).all()
    assert (later.tokens[:old][changed, -1] == ties).all()


def test_what_reads_alike_shares_the_first_code() -> None:
    vectors = clusters(4, 30)
    ids = fit(vectors, codebook_size=4)
    first = ids.codes[1:, 0].reshape(4, 30)
    assert (first == first[:, :1]).all() and len(set(first[:, 0])) == 4
    assert ids.perplexities[0] == pytest.approx(4)
    near = vectors[[5, 45]] + 0.1
    assert (ids.with_items(near).codes[-2:, 0] == first[[0, 1], 0]).all()


def test_codes_are_the_librarys_own() -> None:
    vectors = clusters(10, 60)
    ids = fit(vectors, codebook_size=32)
    library = ResidualVQ(dim=WIDTH, num_quantizers=3, codebook_size=32).eval()
    for layer, codebook in zip(library.layers, ids.codebooks, strict=True):
        layer._codebook.embed.copy_(torch.from_numpy(codebook)[None])
    directions = text_directions(vectors, len(vectors))
    with torch.no_grad():
        _, expected, _ = library(directions)
    assert (expected.numpy()[1:] == ids.codes[1:]).all(axis=1).mean() > 0.999


def test_codebooks_fit_better_than_random_items_do() -> None:
    """The error that is left after three levels, against codebooks of rows drawn at random."""
    vectors = np.random.default_rng(0).normal(size=(400, WIDTH)).astype(np.float32)
    ids = fit(vectors, codebook_size=16)
    directions = text_directions(vectors, len(vectors)).numpy()[1:]

    def left(codes: np.ndarray, codebooks: np.ndarray) -> float:
        quantised = sum(book[level] for book, level in zip(codebooks, codes.T, strict=True))
        return float(((directions - quantised) ** 2).sum(1).mean())

    drawn = np.stack([directions[:16], *(directions[16 * i : 16 * i + 16] / 2 for i in (1, 2))])
    random_codes = SemanticIds(ids.codes, drawn, ids.mean, ids.tie_tokens).encode(vectors[1:])
    assert left(ids.codes[1:], ids.codebooks) < 0.75 * left(random_codes, drawn)
    assert min(ids.perplexities) > 8


def test_the_same_seed_gives_the_same_codes_and_draws_nothing_from_outside() -> None:
    vectors = clusters(10, 20)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    one = fit(vectors, seed=3)
    assert torch.equal(states[0], torch.get_rng_state())
    assert (states[1] == np.random.get_state()[1]).all() and states[2] == random.getstate()
    torch.rand(7)
    same, other = fit(vectors, seed=3), fit(vectors, seed=4)
    assert (one.tokens == same.tokens).all() and (one.codebooks == same.codebooks).all()
    assert (one.codebooks != other.codebooks).any()


def test_unseen_items_have_codes_but_no_part_in_codebooks() -> None:
    vectors = clusters(6, 20)
    fitted = np.arange(len(vectors)) <= 100
    ids = fit(vectors, fitted=fitted)
    elsewhere = vectors.copy()
    elsewhere[~fitted] *= -7
    moved = fit(elsewhere, fitted=fitted)
    assert (ids.codebooks == moved.codebooks).all() and (ids.mean == moved.mean).all()
    assert (ids.codes[fitted] == moved.codes[fitted]).all()
    assert (ids.codes[~fitted] != moved.codes[~fitted]).any()


@pytest.mark.parametrize("items", [0, 1, 2, 5])
def test_tiny_catalogues(items: int) -> None:
    ids = fit(clusters(1, items) if items else clusters(1, 1)[:1], codebook_size=256)
    assert ids.codebook_size == max(items, 1)
    assert len(set(sequences(ids))) == items
    assert ids.table_size == len(set(ids.token_names())) == 1 + 3 * max(items, 1) + SPARE_TIES
    assert ids.collision_rate == 0
    assert f"0.00% of {items} items" in ids.describe()


@pytest.mark.parametrize("width", [1, WIDTH])
def test_items_without_text_are_told_apart_by_ties(width: int) -> None:
    ids = fit(np.zeros((41, width)))
    assert len(set(sequences(ids))) == 40
    assert ids.collision_rate == 1
    assert ids.tie_tokens == 40 + SPARE_TIES
    assert ids.tokens[1:, -1].tolist() == list(range(4, 44))


def test_token_names_say_level_and_code() -> None:
    ids = fit(clusters(5, 20))
    names = ids.token_names()
    assert len(names) == len(set(names)) == ids.table_size
    assert names[:3] == ["<|it-[PAD]|>", "<|a-0|>", "<|a-1|>"]
    item = ids.tokens[7]
    code = ids.codes[7]
    assert [names[t] for t in item[:3]] == [
        f"<|{a}-{c}|>" for a, c in zip("abc", code, strict=True)
    ]
    assert names[1 + 3 * 8 :] == [f"<|tie-{t}|>" for t in range(ids.tie_tokens)]


def test_as_many_items_with_the_same_codes_as_there_are_tie_tokens() -> None:
    vectors = clusters(5, 4)
    ids = fit(vectors, codebook_size=64)
    same = np.repeat(vectors[2:3], SPARE_TIES, axis=0)
    full = ids.with_items(same[:-1])
    assert len(set(sequences(full))) == 20 + SPARE_TIES - 1
    with pytest.raises(DataError, match=r"^17 items have the same semantic codes.*16 apart; train"):
        full.with_items(same[:1])


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (np.zeros((2, 5)), "width 5 do not fit .* width 12"),
        (np.zeros(WIDTH), r"shape \(12,\)"),
        (np.full((1, WIDTH), np.nan), "not finite"),
    ],
)
def test_vectors_that_do_not_fit_are_one_line(vectors: np.ndarray, said: str) -> None:
    ids = fit(clusters(2, 3))
    for use in (ids.encode, ids.with_items):
        with pytest.raises(DataError, match=said) as caught:
            use(vectors)
        assert "\n" not in str(caught.value)


def test_fitting_to_numbers_that_are_none_is_refused() -> None:
    with pytest.raises(DataError, match="not finite"):
        fit(np.full((4, 2), np.inf))


def test_a_saved_file_gives_the_same_back(tmp_path: Path) -> None:
    ids = fit(np.concatenate([clusters(5, 20), clusters(5, 20)[1:4]]))
    ids.save(tmp_path / "model")
    assert [path.name for path in (tmp_path / "model").iterdir()] == [FILE_NAME]
    read = SemanticIds.load(tmp_path / "model")
    assert (read.tokens == ids.tokens).all() and read.token_names() == ids.token_names()
    assert (read.encode(clusters(3, 9, seed=1)) == ids.encode(clusters(3, 9, seed=1))).all()
    assert read.describe() == ids.describe()


Arrays = dict[str, np.ndarray]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: content.pop("mean"),
        lambda content: content.update(more=content["mean"]),
        lambda content: content.update(mean=content["mean"][1:]),
        lambda content: content.update(codes=content["codes"][:, 1:]),
        lambda content: content.update(codes=content["codes"][:0]),
        lambda content: content.update(codes=content["codes"].astype(np.float32)),
        lambda content: content.update(codes=content["codes"] - 1),
        lambda content: content.update(codes=content["codes"] + 1),
        lambda content: content.update(codebooks=content["codebooks"][0]),
        lambda content: content.update(codebooks=content["codebooks"] * np.float32(np.nan)),
        lambda content: content.update(tie_tokens=np.asarray(1)),
        lambda content: content.update(tie_tokens=np.asarray([9, 9])),
    ],
)
def test_an_altered_file_is_refused(change: Callable[[Arrays], object], tmp_path: Path) -> None:
    fit(np.concatenate([clusters(5, 20), clusters(5, 20)[1:4]])).save(tmp_path)
    content = load_file(tmp_path / FILE_NAME)
    change(content)
    save_file(content, tmp_path / FILE_NAME)
    with pytest.raises(CheckpointError, match="holds no semantic IDs") as caught:
        SemanticIds.load(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kept", [None, 0, 100, -1])
def test_a_file_that_is_not_there_or_cut_short_is_refused(kept: int | None, tmp_path: Path) -> None:
    if kept is not None:
        fit(clusters(2, 3)).save(tmp_path)
        whole = (tmp_path / FILE_NAME).read_bytes()
        (tmp_path / FILE_NAME).write_bytes(whole[:kept])
    with pytest.raises(CheckpointError, match="holds no semantic IDs"):
        SemanticIds.load(tmp_path)


def test_without_the_library_fitting_is_one_line_and_reading_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = clusters(2, 5)
    fit(vectors).save(tmp_path)
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(MissingLibraryError, match="pip install vector-quantize-pytorch"):
        fit(vectors)
    assert SemanticIds.load(tmp_path).with_items(vectors[3:]).item_num == 19
