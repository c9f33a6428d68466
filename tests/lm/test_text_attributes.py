from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import AutoModelForCausalLM

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.embedding import TextAttributeTable

from .decoders import ITEMS, VOCAB, decoder

VECTORS = np.random.default_rng(0).normal(size=(50, 7)).astype(np.float32) + 1
VECTORS[[0, 9]] = 0  # padding, and an item without text


def table(inner: int | None) -> TextAttributeTable:
    torch.manual_seed(0)
    items = TextAttributeTable(50, 16, inner, 0.02, text_size=7)
    items.load_text(VECTORS)
    return items


@pytest.mark.parametrize("inner", [None, 5])
def test_an_item_is_its_row_and_the_projection_of_its_text(inner: int | None) -> None:
    items = table(inner)
    rows = items.rows if items.up is None else items.rows @ items.up
    centred = torch.from_numpy(VECTORS) - torch.from_numpy(np.delete(VECTORS, [0, 9], 0).mean(0))
    text = F.normalize(centred, dim=1)
    text[[0, 9]] = 0
    full = rows + text @ items.projection
    torch.testing.assert_close(items.weight(), full)
    torch.testing.assert_close(
        items(torch.tensor([[1, 9], [0, 49]])), full[torch.tensor([[1, 9], [0, 49]])]
    )
    hidden_states = torch.randn(2, 3, 16)
    scores = items.logits(hidden_states)
    torch.testing.assert_close(scores[..., 1:], (hidden_states @ full.T)[..., 1:])
    assert (scores[..., 0] == -torch.inf).all() and not items.weight()[0].any()


def test_the_projection_starts_as_spread_as_the_rows() -> None:
    items = TextAttributeTable(4000, 64, None, 0.03, text_size=20)
    items.load_text(torch.randn(4000, 20))
    added = items.text @ items.projection
    assert added[1:].std().item() == pytest.approx(0.03, rel=0.1)


def test_projection_and_rows_train_and_the_text_stays() -> None:
    items = table(None)
    loss = F.cross_entropy(items.logits(items(torch.tensor([3, 4]))), torch.tensor([1, 2]))
    loss.backward()
    assert items.projection.grad.any() and items.rows.grad[1:].any()
    assert [name for name, _ in items.named_parameters()] == ["rows", "projection"]


def test_a_grown_table_places_items_by_row_and_text():
    items = table(5)
    before = items.weight()
    items.grow(52)
    assert torch.equal(items.weight()[:50], before) and not items.weight()[50:].any()
    rows, text = torch.randn(1, 5), torch.randn(1, 7)
    items.place(torch.tensor([51]), rows, text)
    torch.testing.assert_close(items.weight()[51:], rows @ items.up + text @ items.projection)
    assert items.logits(torch.randn(2, 16)).shape == (2, 52)


def test_vectors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(DataError, match="do not fit 50 items"):
        table(None).load_text(VECTORS[:-1])


def test_a_model_with_text_attributes_is_saved_and_loaded(tmp_path) -> None:
    model = IdiomoeForCausalLM.from_backbone(decoder(), ITEMS, item_text_size=7, seed=1)
    model.item_table.load_text(VECTORS[:ITEMS])
    tokens = torch.tensor([[3, VOCAB + 2, VOCAB + 1]])
    wanted = model(tokens).logits
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(tokens).logits, wanted)
    model.item_table.text.zero_()
    assert (model(tokens).logits - wanted)[..., VOCAB + 1 :].abs().max() > 1e-3


def test_the_projection_is_new_and_decays() -> None:
    model = IdiomoeForCausalLM.from_backbone(decoder(), ITEMS, item_text_size=7)
    model.freeze("backbone")
    groups = model.parameter_groups(0.1, 1e-3)
    [decayed] = [g for g in groups if g["name"] == "new/decayed"]
    assert any(p is model.item_table.projection for p in decayed["params"])
