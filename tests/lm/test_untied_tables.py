"""Item tables that read an item by one vector and score it by another."""

import math

import pytest
import torch

from recbole_idiomoe.lm.untied_tables import HashedItemTable, ProjectedItemTable

from .test_controls import build, mixed_batch

ITEMS, WIDTH = 41, 16


def hashed(compression: int = 4, hashes: int = 4, seed: int = 0) -> HashedItemTable:
    torch.manual_seed(seed)
    return HashedItemTable(ITEMS, WIDTH, 0.02, hashes=hashes, compression=compression)


def test_an_item_is_the_mean_of_the_rows_that_its_codes_name() -> None:
    table = hashed()
    items, states = torch.tensor([[3, 40], [1, 3]]), torch.randn(2, WIDTH)
    found, scores = table(items), table.logits(states)
    assert scores[:, 0].tolist() == [-math.inf, -math.inf]
    for item in range(1, ITEMS):
        codes = table.codes[item].tolist()
        assert len(codes) == 4
        read = sum(table.inputs.weight[code] for code in codes) / 4
        scored = sum(states @ table.rows[code] for code in codes) / 4
        torch.testing.assert_close(scores[:, item], scored)
        torch.testing.assert_close(
            found[items == item], read.expand(int((items == item).sum()), -1)
        )


@pytest.mark.parametrize("compression", [1, 4])
def test_weighted_sums_are_of_what_scores(compression: int) -> None:
    torch.manual_seed(1)
    items, weights = torch.randint(1, ITEMS, (5, 7)), torch.randn(5, 7)
    states = torch.randn(5, WIDTH)
    for table in (hashed(compression), ProjectedItemTable(ITEMS, WIDTH, 6, 0.02)):
        wanted = (table.logits(states).gather(1, items) * weights).sum(1)
        torch.testing.assert_close(table.mixed_logits(states, items.int(), weights), wanted)


@pytest.mark.parametrize(("compression", "rows"), [(1, 40), (2, 20), (3, 13), (8, 5), (100, 1)])
def test_the_table_has_a_row_for_so_many_items(compression: int, rows: int) -> None:
    table = hashed(compression)
    shapes = {name: tuple(p.shape) for name, p in table.named_parameters()}
    assert shapes == {"rows": (rows, WIDTH), "inputs.weight": (rows, WIDTH)}
    assert table.codes.min() >= 0 and table.codes.max() < rows
    assert table.weight().shape == (ITEMS, WIDTH)


def test_every_row_learns() -> None:
    """From reading and scoring each item once, gradients reach all rows of both kinds."""
    table = hashed(2)
    states = table(torch.arange(1, ITEMS))
    targets = torch.arange(1, ITEMS).roll(1)
    torch.nn.functional.cross_entropy(table.logits(states), targets).backward()
    for weight in (table.rows, table.inputs.weight):
        assert weight.grad is not None and (weight.grad.abs().sum(1) > 0).all()


def test_codes_use_every_row_and_tell_items_apart() -> None:
    torch.manual_seed(0)
    table = HashedItemTable(20_001, 2, 0.02, hashes=4, compression=8)
    uses = torch.bincount(table.codes[1:].flatten(), minlength=2500)
    assert uses.min() > 0 and uses.max() < 4 * 32  # 32 on the mean
    assert len(torch.unique(table.codes[1:].sort(1).values, dim=0)) == 20_000


def test_without_compression_every_item_has_a_row_of_its_own() -> None:
    table = hashed(1)
    assert torch.equal(table(torch.arange(1, ITEMS)), table.inputs.weight)
    assert torch.equal(table.weight()[1:], table.rows)


@pytest.mark.parametrize("hashes", [1, 4])
def test_items_start_as_spread_as_in_other_tables(hashes: int) -> None:
    torch.manual_seed(0)
    table = HashedItemTable(4001, 64, 0.02, hashes=hashes, compression=2)
    assert table.weight()[1:].std().item() == pytest.approx(0.02, rel=0.05)
    assert table(torch.arange(1, 4001)).std().item() == pytest.approx(0.02, rel=0.05)


def test_given_vectors_are_read_through_a_linear_map_and_scored_by_rows() -> None:
    torch.manual_seed(0)
    table = ProjectedItemTable(ITEMS, WIDTH, 6, 0.02)
    given = torch.randn(ITEMS, 6) * 3
    table.take_vectors(given)
    assert torch.equal(table.vectors, given)
    with torch.no_grad():
        table.projection.bias.normal_()
    items, states = torch.tensor([5, 9, 5]), torch.randn(2, WIDTH)
    wanted = given[items] @ table.projection.weight.T + table.projection.bias
    torch.testing.assert_close(table(items), wanted)
    scores = table.logits(states)
    torch.testing.assert_close(scores[:, 1:], states @ table.rows[1:].T)
    assert (scores[:, 0] == -math.inf).all()


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_given_vectors_of_any_size_are_read_as_large_as_rows(size: float) -> None:
    torch.manual_seed(0)
    table = ProjectedItemTable(4001, 64, 16, 0.02)
    assert table(torch.arange(1, 4001)).std().item() == pytest.approx(0.02, rel=0.15)
    table.take_vectors(torch.randn(4001, 16) * size)
    assert table(torch.arange(1, 4001)).std().item() == pytest.approx(0.02, rel=0.01)


def test_rows_do_not_decay() -> None:
    for architecture, plain in (("cove", 2), ("e4srec", 2)):  # rows; inputs or the map's bias
        model = build(architecture)
        model.freeze("backbone")
        groups = {g["name"]: g["params"] for g in model.parameter_groups(0.1, 1e-3)}
        own = {id(p) for p in model.item_table.parameters()}
        found = [p for p in groups["new/plain"] if id(p) in own]
        assert len(found) == plain and any(p is model.item_table.rows for p in found)


def test_given_vectors_stay_bit_for_bit_while_all_else_of_the_table_learns() -> None:
    model = build("e4srec").train()
    model.freeze("backbone")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameter_groups(0.1, 1e-2))
    tokens = mixed_batch(4)
    for _ in range(3):
        optimizer.zero_grad()
        model(tokens, labels=tokens).loss.backward()
        optimizer.step()
    after = model.state_dict()
    moved = {name for name in after if not torch.equal(after[name], before[name])}
    table = {"item_table.rows", "item_table.projection.weight", "item_table.projection.bias"}
    assert {name for name in moved if "lora" not in name} == table
    adapted = {name for name in moved if "lora" in name}
    assert len(adapted) == 3 * 3 * 2 and all(".mlp." in name for name in adapted)
