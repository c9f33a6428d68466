from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_idiomoe.lm import IdiomoeForCausalLM, item_loss

from .decoders import VOCAB, decoder

ITEMS = 61
POSITIONS = 23
TABLES = pytest.mark.parametrize(
    "table",
    [{}, {"item_embedding_dim": 5}, {"item_text_size": 7},
     {"item_embedding_dim": 5, "item_text_size": 7}],
    ids=["plain", "factorised", "text", "factorised text"],
)  # fmt: skip
SOFTMAX = pytest.mark.parametrize("softmax", ["item", "hybrid"])


def build(**kwargs) -> IdiomoeForCausalLM:
    model = IdiomoeForCausalLM.from_backbone(decoder(), ITEMS, seed=1, **kwargs)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weights in (*model.item_table.parameters(), *model.item_table.buffers()):
            weights.normal_(std=0.7, generator=generator)
    return model


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    hidden = torch.randn(POSITIONS, 16, generator=generator, requires_grad=True)
    return hidden, torch.randint(1, 50, (POSITIONS,), generator=generator)


def loss_and_gradients(
    model, excluded=None, bfloat16: bool = False
) -> tuple[Tensor, dict[str, Tensor]]:
    hidden, items = inputs()
    model.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
        loss = model.item_loss(hidden, items, excluded)
    (3 * loss).backward()
    learnt = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return loss.detach(), {"hidden": hidden.grad, **learnt}


def hold(monkeypatch, positions: int, candidates: int) -> None:
    monkeypatch.setattr(item_loss, "SCORE_BYTES", 4 * candidates * positions)


@pytest.mark.parametrize("positions", [1, 7, POSITIONS - 1])
@pytest.mark.parametrize("excluded", [None, [50, 51, 60]])
@SOFTMAX
@TABLES
def test_chunks_give_the_loss_and_gradients_of_the_whole(
    table, softmax, excluded, positions, monkeypatch
):
    model = build(softmax=softmax, **table)
    rows = None if excluded is None else torch.tensor(excluded)
    loss, gradients = loss_and_gradients(model, rows)
    hold(monkeypatch, positions, ITEMS + VOCAB * (softmax == "hybrid"))
    in_chunks, chunk_gradients = loss_and_gradients(model, rows)
    torch.testing.assert_close(in_chunks, loss, atol=1e-5, rtol=0)
    assert chunk_gradients.keys() == gradients.keys()
    learnt = {name for name, _ in model.item_table.named_parameters(prefix="item_table")}
    assert learnt <= gradients.keys() and len(gradients) == 1 + len(learnt) + (softmax == "hybrid")
    for name, gradient in gradients.items():
        torch.testing.assert_close(chunk_gradients[name], gradient, atol=1e-5, rtol=0, msg=name)


@SOFTMAX
@TABLES
def test_chunks_give_the_cross_entropy_over_the_vectors_written_out(table, softmax, monkeypatch):
    model = build(softmax=softmax, **table)
    hidden, items = inputs()
    excluded = torch.tensor([50, 60])
    kept = [item for item in range(1, ITEMS) if item not in (50, 60)]
    candidates = model.item_table.weight()[kept]
    columns = torch.tensor([kept.index(item) for item in items.tolist()])
    if softmax == "hybrid":
        candidates = torch.cat((model.get_output_embeddings().weight, candidates))
        columns = columns + VOCAB
    wanted = F.cross_entropy(hidden @ candidates.T, columns)
    hold(monkeypatch, 4, ITEMS + VOCAB * (softmax == "hybrid"))
    got = model.item_loss(hidden, items, excluded)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=0)
    got.backward()
    rows = model.item_table.rows.grad
    assert not rows[[0, 50, 60]].any() and rows[kept].any(dim=1).all()


class Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.elements = max(self.elements, result.numel())
        return result


@TABLES
def test_weighted_sums_of_scores_hold_no_vector_of_each_item(table):
    model = build(**table)
    hidden, _ = inputs()
    generator = torch.Generator().manual_seed(5)
    items = torch.randint(1, ITEMS, (POSITIONS, 40), generator=generator)
    weights = torch.randn(POSITIONS, 40, generator=generator)
    items[::2, :7] = weights[::2, :7] = 0
    vectors = model.item_table.weight()
    wanted = torch.einsum("nd,nkd,nk->n", hidden, vectors[items], weights)
    wanted_gradients = torch.autograd.grad(wanted.sum(), [hidden, *model.item_table.parameters()])
    with Largest() as largest:
        found = model.item_table.mixed_logits(hidden, items.int(), weights)
        gradients = torch.autograd.grad(found.sum(), [hidden, *model.item_table.parameters()])
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(gradients, wanted_gradients, atol=1e-4, rtol=1e-5)
    assert largest.elements <= ITEMS * 16
    assert found.dtype == torch.float32


@SOFTMAX
def test_neither_pass_holds_the_scores_of_more_positions_than_fit(softmax, monkeypatch):
    model = build(softmax=softmax)
    candidates = ITEMS + VOCAB * (softmax == "hybrid")
    with Largest() as plain:
        loss_and_gradients(model)
    assert plain.elements == POSITIONS * candidates
    hold(monkeypatch, 17, candidates)  # just more than the table itself holds
    with Largest() as chunked:
        loss_and_gradients(model)
    assert chunked.elements == 17 * candidates


def test_no_scores_wait_for_the_backward_pass(monkeypatch):
    model = build()
    hidden, items = inputs()
    hold(monkeypatch, 3, ITEMS)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.numel()), lambda x: x):
        model.item_loss(hidden, items)
    assert kept and max(kept) < ITEMS


def test_scores_that_fit_are_not_computed_twice(monkeypatch):
    model = build()
    calls = []
    logits = model.item_table.logits
    monkeypatch.setattr(model.item_table, "logits", lambda h: calls.append(len(h)) or logits(h))
    hold(monkeypatch, POSITIONS, ITEMS)
    loss_and_gradients(model)
    assert calls == [POSITIONS]
    calls.clear()
    hold(monkeypatch, POSITIONS - 1, ITEMS)
    loss_and_gradients(model)
    assert sorted(calls) == [1, 1, POSITIONS - 1, POSITIONS - 1]


def test_one_position_goes_on_where_even_its_scores_are_too_many(monkeypatch):
    model = build()
    wanted, _ = loss_and_gradients(model)
    monkeypatch.setattr(item_loss, "SCORE_BYTES", 1)
    torch.testing.assert_close(loss_and_gradients(model)[0], wanted)


def test_the_loss_of_labels_is_chunked_alike(monkeypatch):
    model = build(softmax="hybrid")
    tokens = torch.randint(0, VOCAB + ITEMS, (3, 12), generator=torch.Generator().manual_seed(4))
    tokens[tokens == VOCAB] = 1  # padding is no target
    wanted = model(tokens, labels=tokens).loss
    hold(monkeypatch, 2, VOCAB + ITEMS)
    torch.testing.assert_close(model(tokens, labels=tokens).loss, wanted)


def test_under_bfloat16_chunks_are_scored_as_the_whole_is(monkeypatch):
    model = build(softmax="hybrid")
    loss, gradients = loss_and_gradients(model, bfloat16=True)
    hold(monkeypatch, 5, ITEMS + VOCAB)
    in_chunks, chunk_gradients = loss_and_gradients(model, bfloat16=True)
    torch.testing.assert_close(in_chunks, loss, atol=1e-5, rtol=0)
    # The text head's gradient is rounded to bfloat16, in each chunk; the items' is not.
    rows = "item_table.rows"
    torch.testing.assert_close(chunk_gradients[rows], gradients[rows], atol=1e-5, rtol=0)


@pytest.mark.slow
def test_half_a_million_items_take_a_fifth_of_the_memory():
    script = Path(__file__).parents[2] / "benchmarks" / "item_loss.py"
    run = subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True)
    (ratio,) = re.findall(r"peak memory \| ([\d.]+) times less", run.stdout)
    (difference,) = re.findall(r"losses \| (\S+) nats", run.stdout)
    assert float(ratio) >= 5 and float(difference) < 1e-4
