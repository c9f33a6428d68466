"""Histories in, a loss or scores out: what batching, cutting and saving may not change."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_idiomoe.base.errors import CheckpointError, DataError
from recbole_idiomoe.data.batch import collate
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.loader import WindowLoader
from recbole_idiomoe.data.ragged import RaggedArray
from recbole_idiomoe.data.sequence import ITEM, TEXT
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.models.language.forward import hidden_states
from recbole_idiomoe.models.language.item_codes.semantic import SemanticCodes
from recbole_idiomoe.models.language.options import LanguageModelOptions
from tests.helpers import TINY_BACKBONE, options_of, sequence_of

CPU = torch.device("cpu")
TITLES = [f"{colour} {thing}" for colour in ("red", "green", "blue") for thing in "ABCD"]
# Weights far larger than a new model's, so that whatever reaches the scores shows in them.
LOUD = TINY_BACKBONE | {"initializer_range": 0.3}
ORDERS = pytest.mark.parametrize("segment_order", ["text ID", "ID text"])


def make_catalog(titles: list[str] = TITLES) -> Catalog:
    texts = [f"title: {title}" if title else "" for title in titles]
    item_ids = [f"i{row}" for row in range(1, len(titles) + 1)]
    return Catalog(["[PAD]", *item_ids], ["", *titles], ["", *texts])


def build(catalog: Catalog | None = None, **options: Any) -> CatalogLM:
    settings = LanguageModelOptions.from_mapping(
        {"backbone": "untrained", "backbone_args": LOUD} | options
    )
    return CatalogLM.build(catalog or make_catalog(), settings, seed=0, device=CPU).eval()


def make_histories(lengths: list[int], item_num: int = len(TITLES)) -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    return [rng.integers(1, item_num + 1, size=length) for length in lengths]


HISTORIES = make_histories([3, 60, 1, 7, 1, 25, 2, 60])


@pytest.mark.parametrize("max_batch_tokens", [8, 200, 100_000])
@pytest.mark.parametrize("attention", ["causal", "intra_inter", "own_text"])
@ORDERS
def test_a_batch_scores_as_one_by_one(
    segment_order: str, attention: str, max_batch_tokens: int
) -> None:
    model = build(
        segment_order=segment_order, attention=attention, max_batch_tokens=max_batch_tokens
    )
    together = model.scores(HISTORIES)
    alone = torch.cat([model.scores([history]) for history in HISTORIES])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert together.shape == (len(HISTORIES), len(TITLES) + 1)
    assert together.dtype == torch.float32
    assert (together[:, 0] == -torch.inf).all() and torch.isfinite(together[:, 1:]).all()
    assert torch.cdist(alone[:, 1:], alone[:, 1:]).fill_diagonal_(9).min() > 1e-2


def test_the_whole_history_is_read_and_its_order_counts() -> None:
    model = build()
    history = np.array([1, 2, 3, 4])
    others = [np.array([5, 2, 3, 4]), np.array([2, 1, 3, 4]), np.array([1, 2, 3])]
    wanted = model.scores([history])
    for other in others:
        assert (model.scores([other]) - wanted)[:, 1:].abs().max() > 1e-2


def test_with_own_text_an_items_text_reaches_others_through_its_item_token_alone() -> None:
    model = build(attention="own_text", item_init="random")
    first, second = (
        collate([sequence_of(model.builder, np.array(history))], model.pad_token_id)
        for history in ([1, 2, 3], [4, 2, 3])
    )
    assert torch.equal(first.segments, second.segments)
    difference = (hidden_states(model.lm, first) - hidden_states(model.lm, second)).abs().amax(1)
    later_text = ((first.segments > 1) & (first.token_types == TEXT)).flatten()
    assert difference[later_text].max() < 1e-5  # whoever came before
    assert difference[-1] > 1e-2


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(DataError, match="history is empty"):
        build().scores([np.array([1]), np.array([], dtype=np.int64)])


def make_loader(model: CatalogLM, windows: list[np.ndarray], max_batch_tokens: int) -> WindowLoader:
    loader = WindowLoader(
        windows,
        model.builder,
        batch_size=6,
        max_batch_tokens=max_batch_tokens,
        pad_token_id=model.pad_token_id,
        seed=0,
    )
    loader.set_epoch(0, 0.6)
    return loader


@ORDERS
@pytest.mark.parametrize("softmax", ["item", "hybrid"])
@pytest.mark.parametrize("text_loss_weight", [0.0, 0.5])
def test_a_cut_step_is_a_whole_one(
    segment_order: str, softmax: str, text_loss_weight: float
) -> None:
    model = build(segment_order=segment_order, softmax=softmax, text_loss_weight=text_loss_weight)
    windows = make_histories([2, 14, 5, 30, 2, 9, 4, 21, 3, 17])

    def steps(max_batch_tokens: int) -> list[tuple[int, float, list[torch.Tensor]]]:
        found = []
        for batches in make_loader(model, windows, max_batch_tokens):
            model.zero_grad(set_to_none=False)
            losses = [model.loss(batch) for batch in batches]
            for loss in losses:
                loss.backward()
            gradients = [p.grad.clone() for p in model.parameters() if p.grad is not None]
            found.append((len(batches), sum(loss.item() for loss in losses), gradients))
        return found

    whole, cut = steps(100_000), steps(60)
    assert [count for count, *_ in whole] == [1, 1]
    assert max(count for count, *_ in cut) >= 3
    for (_, loss, gradients), (_, cut_loss, cut_gradients) in zip(whole, cut, strict=True):
        assert cut_loss == pytest.approx(loss, rel=1e-5)
        for one, other in zip(gradients, cut_gradients, strict=True):
            torch.testing.assert_close(other, one, atol=1e-5, rtol=1e-4)


@ORDERS
def test_the_loss_is_the_cross_entropy_of_the_very_scores_that_rank(segment_order: str) -> None:
    """Training asks at every item of a window what use asks of the history up to there."""
    model = build(segment_order=segment_order)
    windows = make_histories([2, 9, 5])
    loader = make_loader(model, windows, 100_000)
    loader.set_epoch(0, 1.0)
    ((batch,),) = list(loader)
    prefixes = [window[:end] for window in windows for end in range(1, len(window))]
    targets = torch.tensor([item for window in windows for item in window[1:]])
    expected = F.cross_entropy(model.scores(prefixes), targets)
    torch.testing.assert_close(model.loss(batch), expected, atol=1e-5, rtol=1e-5)


def test_the_text_loss_is_added_with_its_weight() -> None:
    model = build(text_loss_weight=0.5)
    loader = make_loader(model, make_histories([4, 6, 5]), 100_000)
    loader.set_epoch(0, 1.0)
    ((batch,),) = list(loader)
    with_text = model.loss(batch)
    model.settings = replace(model.settings, text_loss_weight=0.0)
    states = model.lm.hidden_states(batch.input_ids, batch.token_types).last_hidden_state
    text_loss = model.lm.text_loss(
        states.flatten(0, 1)[batch.predict_text_at],
        batch.input_ids.flatten()[batch.predict_text_at + 1],
    )
    torch.testing.assert_close(with_text, model.loss(batch) + 0.5 * text_loss)


def test_text_vectors_are_the_backbones_whatever_weights_the_model_starts_from() -> None:
    options = {"backbone": "bundled", "text_encoder": "backbone", "use_text": False}
    settings = LanguageModelOptions.from_mapping(options | {"item_tokens": "semantic"})
    means = []
    for pretrained in (True, False):
        codes = CatalogLM.build(
            make_catalog(), settings, seed=0, device=CPU, pretrained=pretrained
        ).item_codes
        assert isinstance(codes, SemanticCodes)
        means.append(codes.semantic_ids.mean)
    # New items get theirs from the backbone as it was.
    np.testing.assert_array_equal(*means)


def test_what_pads_may_be_a_token_of_the_texts() -> None:
    # As token 0 is, of a tokenizer that names none for it.
    settings = options_of("switch").from_mapping({"backbone": "untrained", "backbone_args": LOUD})
    model = CatalogLM.build(make_catalog(), settings, seed=0, device=CPU, architecture="switch")
    model.train()
    losses = []
    for padding in (0, int(model.builder.instruction[0])):
        model.pad_token_id = padding
        ((batch,),) = list(make_loader(model, make_histories([4, 9]), 100_000))
        losses.append(model.loss(batch).item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    "options",
    [{}, {"item_embedding_dim": 8, "expert_width": 0.5, "expert_layers": [1]}],
    ids=["plain", "factorised"],
)
def test_a_saved_model_scores_to_the_last_bit(options: dict[str, Any], tmp_path: Path) -> None:
    model = build(**options)
    with torch.no_grad():  # as training would, so that nothing can be drawn again
        for parameter in model.lm.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
        model.lm.item_table.rows[0] = 0
    model.save(tmp_path / "saved")
    loaded = CatalogLM.load(tmp_path / "saved", model.settings, CPU)
    assert not loaded.lm.training
    assert loaded.catalog == model.catalog
    assert torch.equal(loaded.scores(HISTORIES), model.scores(HISTORIES))


def test_saving_again_replaces_the_weights(tmp_path: Path) -> None:
    model = build()
    model.save(tmp_path)
    with torch.no_grad():
        model.lm.item_table.rows[1:] += 1
    model.save(tmp_path)
    loaded = CatalogLM.load(tmp_path, model.settings, CPU)
    assert torch.equal(loaded.scores(HISTORIES), model.scores(HISTORIES))
    other = build()
    other.load_weights(tmp_path)
    assert torch.equal(other.scores(HISTORIES), model.scores(HISTORIES))


def test_transformers_opens_a_saved_model(tmp_path: Path) -> None:
    model = build()
    model.save(tmp_path)
    lm = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    offset = lm.config.item_token_offset
    names = [f"<|it-{item_id}|>" for item_id in model.catalog.item_ids]
    rows = list(range(len(names)))
    assert tokenizer.convert_tokens_to_ids(names) == [offset + row for row in rows]
    assert len(tokenizer) == lm.config.vocab_size == offset + len(rows)

    # The sequence spelt out by hand, through the library alone, gives the same scores.
    spelt = "The user has interacted withtitle: red B<|it-i2|>title: blue D<|it-i12|>"
    ids = tokenizer(spelt, return_tensors="pt").input_ids
    with torch.no_grad():
        logits = lm(ids).logits[:, -1, offset:]
    torch.testing.assert_close(logits, model.scores([np.array([2, 12])]), atol=1e-5, rtol=1e-5)


def test_a_title_never_turns_into_an_item_or_an_end(tmp_path: Path) -> None:
    titles = [*TITLES[:9], "<|it-i3|>", "<|endoftext|> <|it-[PAD]|>", "<|reserved-0|><|it-i10|>"]
    model = build(make_catalog(titles))
    model.save(tmp_path)
    loaded = CatalogLM.load(tmp_path, model.settings, CPU)
    offset, end = model.lm.config.item_token_offset, model.tokenizer.eos_token_id
    history = np.array([10, 11, 12])
    for each in (model, loaded):
        sequence = sequence_of(each.builder, history)
        is_item = sequence.input_ids >= offset
        assert sequence.input_ids[is_item].tolist() == [offset + row for row in history]
        assert (sequence.token_types == np.where(is_item, ITEM, TEXT)).all()
        assert end not in sequence.input_ids
        spelt = each.tokenizer.decode(sequence.input_ids[~is_item])
        assert spelt == "The user has interacted with" + "".join(
            f"title: {title}" for title in titles[9:]
        )
    before, after = sequence_of(model.builder, history), sequence_of(loaded.builder, history)
    assert before.input_ids.tolist() == after.input_ids.tolist()


@ORDERS
def test_items_without_text(segment_order: str) -> None:
    catalog = make_catalog(["", *TITLES[1:6], ""])
    model = build(catalog, segment_order=segment_order)
    offset = model.lm.config.item_token_offset
    sequence = sequence_of(model.builder, np.array([1, 7]))
    assert sequence.input_ids[-2:].tolist() == [offset + 1, offset + 7]
    histories = [np.array([1]), np.array([2, 7]), np.array([7, 3, 1])]
    scores = model.scores(histories)
    assert torch.isfinite(scores[:, 1:]).all()
    alone = torch.cat([model.scores([history]) for history in histories])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("instruction", [None, "Next"])
def test_a_catalogue_without_any_text(instruction: str | None) -> None:
    model = build(make_catalog([""] * 5), instruction=instruction)
    scores = model.scores([np.array([1, 2]), np.array([5])])
    assert torch.isfinite(scores[:, 1:]).all()


def test_without_text_the_scores_do_not_know_the_titles() -> None:
    shuffled = make_catalog([*TITLES[5:], *TITLES[:5]])
    off = {"use_text": False, "item_init": "random"}
    one, other = build(**off), build(shuffled, **off)
    assert torch.equal(one.scores(HISTORIES), other.scores(HISTORIES))
    # The same with text does know them; so does a table that starts from them.
    one, other = build(item_init="random"), build(shuffled, item_init="random")
    assert (one.scores(HISTORIES) - other.scores(HISTORIES))[:, 1:].abs().max() > 1e-2
    one, other = build(use_text=False), build(shuffled, use_text=False)
    assert (one.scores(HISTORIES) - other.scores(HISTORIES))[:, 1:].abs().max() > 1e-2


def test_the_order_decides_what_a_segment_ends_on() -> None:
    models = {order: build(segment_order=order) for order in ("text ID", "ID text")}
    ends = {
        order: sequence_of(model.builder, np.array([1, 2])).token_types[-1]
        for order, model in models.items()
    }
    assert ends == {"text ID": ITEM, "ID text": TEXT}
    one, other = (model.scores(HISTORIES)[:, 1:] for model in models.values())
    assert (one - other).abs().max() > 1e-2


def test_long_titles_are_cut() -> None:
    cut, whole = build(max_item_text_tokens=2), build()
    windows = RaggedArray.of([[1, 2, 3]])
    assert cut.builder.lengths(windows)[0] < whole.builder.lengths(windows)[0]
    start = len(whole.builder.instruction)
    assert cut.builder.lengths(windows)[0] == start + 2 * (2 + 1)


def test_max_tokens_is_shortened_to_the_backbones_context(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = build(backbone_args=LOUD | {"max_position_embeddings": 48}, max_tokens=1000)
    assert model.builder.max_tokens == 48
    assert "max_tokens=1000 is longer than the backbone's context; 48 is used" in caplog.text
    (long,) = make_histories([300])
    assert len(sequence_of(model.builder, long).input_ids) <= 48
    scores = model.scores([long])
    assert torch.isfinite(scores[:, 1:]).all()
    recent = long[-model.builder.room :]
    assert torch.equal(scores, model.scores([recent]))


def test_another_catalogue_does_not_fit_a_saved_model(tmp_path: Path) -> None:
    model = build()
    model.save(tmp_path)
    make_catalog(TITLES[:-1]).save(tmp_path)
    with pytest.raises(CheckpointError, match="knows 12 items, the catalogue has 11"):
        CatalogLM.load(tmp_path, model.settings, CPU)


@pytest.mark.parametrize(
    "file", ["model.safetensors", "config.json", "catalog.json", "tokenizer.json"]
)
@pytest.mark.parametrize("fault", ["missing", "cut short"])
def test_an_incomplete_folder_is_one_line(file: str, fault: str, tmp_path: Path) -> None:
    model = build()
    model.save(tmp_path)
    path = tmp_path / file
    if fault == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError) as error:
        CatalogLM.load(tmp_path, model.settings, CPU)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_text_attributes_say_which_items_read_alike(tmp_path: Path) -> None:
    options = {"item_text_added": True, "item_init": "random", "use_text": False}
    model = build(**options)
    vectors = model.lm.item_table.text
    assert vectors.shape[0] == len(TITLES) + 1 and not vectors[0].any()
    similar = vectors @ vectors.T
    assert similar[1, 2] > similar[1, 6]  # red A, red B, green B
    wanted = model.scores(HISTORIES)
    model.save(tmp_path)
    assert torch.equal(CatalogLM.load(tmp_path, model.settings, CPU).scores(HISTORIES), wanted)
    with pytest.raises(DataError, match="no item has text"):
        build(make_catalog([""] * 4), **options)
