"""An item table cut over two processes: the loss, the gradients, the ranking and the run of one."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given as given_any
from hypothesis import strategies as st
from torch.nn import functional as F

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm import item_loss
from recbole_idiomoe.lm.embedding import ItemTable
from recbole_idiomoe.lm.item_shard import ItemTableShard, OwnRows, RowExchange
from recbole_idiomoe.lm.untied_tables import ProjectedItemTable
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.models.language.item_codes.factory import ITEM_CODES
from recbole_idiomoe.models.language.options import LanguageModelOptions
from recbole_idiomoe.training import model_folder, sharding
from tests.distributed.ranks import interrupted_in_epoch, runs, started
from tests.distributed.test_training import (
    assert_alike,
    in_folder,
    runs_and_norms,
    wanted,
)
from tests.helpers import TINY_BACKBONE
from tests.training.cycle import write_cycle

WIDTH = 8
# (items, each rank's positions): rows that do not share out evenly, a rank without any item.
TABLES = [(11, [5, 2, 4]), (12, [3, 3, 3]), (4, [1, 0, 6])]
CHOSEN: dict[str, dict[str, Any]] = {
    "with text, frozen": {"variant": "with text, frozen"},
    "the table alone": {"variant": "with text, frozen", "model": "ItemLLM", "freeze": "backbone"},
    "soft, averaged": {"variant": "soft, averaged"},
}


def drawn(item_num: int, positions: list[int]) -> list[tuple[torch.Tensor, ...]]:
    """States, items read, and soft targets (three items each, the last of no weight)."""
    generator = torch.Generator().manual_seed(item_num)
    found = []
    for count in positions:
        states = torch.randn(count, WIDTH, generator=generator)
        items = torch.randint(1, item_num, (count, 3), generator=generator)
        items[:, 2] = 0
        weights = torch.tensor([[0.7, 0.3, 0.0]]).repeat(count, 1)
        found.append((states.requires_grad_(), items, weights))
    return found


def table_of(item_num: int) -> ItemTable:
    torch.manual_seed(1)
    return ItemTable(item_num, WIDTH, std=0.7)


def read_and_scored(
    table: Any, cross_entropy: Any, asked: tuple[torch.Tensor, ...]
) -> tuple[torch.Tensor, ...]:
    """A loss whose gradient reaches rows by all ways, and the scores."""
    states, items, weights = asked
    read = table(items[:, :1]).squeeze(1)
    loss = (cross_entropy(states + read, items, weights) * torch.arange(len(items))).sum()
    return loss, read.detach(), table.logits(states.detach())


class CountedExchange(RowExchange):
    """Knows the bytes that this rank has sent to others."""

    sent = 0

    def _gather(self, rows: torch.Tensor, sizes: Sequence[int]) -> torch.Tensor:
        self.sent += rows.nbytes * (self.ranks - 1)
        return super()._gather(rows, sizes)

    def all_to_all(self, blocks: torch.Tensor) -> torch.Tensor:
        self.sent += blocks.nbytes * (self.ranks - 1) // self.ranks
        return super().all_to_all(blocks)


def by_shards_and_sent() -> tuple[list[Any], int]:
    """As the two below: several functions, one launch."""
    return by_shards(), sent_in_a_step(positions=4)


def sent_in_a_step(positions: int) -> int:
    """Bytes that this rank sends where each reads and predicts as many items."""
    exchange = CountedExchange()
    shard = ItemTableShard(table_of(12), exchange)
    items = torch.arange(1, positions + 1)
    states = torch.ones(positions, WIDTH) + shard(items)
    shard.cross_entropy(states, items[:, None], torch.ones(positions, 1)).sum().backward()
    return exchange.sent


def by_shards() -> list[Any]:
    """What this rank has of the loss, its gradients and scores, for every one of ``TABLES``."""
    item_loss.SCORE_BYTES = 4 * 3 * 4  # three positions at once, or fewer
    found = []
    for item_num, positions in TABLES:
        shard = ItemTableShard(table_of(item_num), RowExchange())
        asked = drawn(item_num, positions)[dist.get_rank()]
        loss, read, scores = read_and_scored(shard, shard.cross_entropy, asked)
        (dist.get_world_size() * loss).backward()  # as the trainer does
        states = asked[0].grad / dist.get_world_size()
        found.append((loss.detach(), read, scores, states, shard.rows.grad, shard.own))
    return found


def test_losses_gradients_and_scores_are_those_of_the_whole_table(tmp_path: Path) -> None:
    given = started(3, tmp_path, by_shards_and_sent).given()
    # (G - 1) / G x (16 d + 8 G + 28) m, as SCALING.md says.
    assert [sent for _, sent in given] == [2 / 3 * (16 * WIDTH + 8 * 3 + 28) * 4 * 3] * 3
    ranks = [found for found, _ in given]
    for number, (item_num, positions) in enumerate(TABLES):
        table, given_to = table_of(item_num), drawn(item_num, positions)

        def cross_entropy(states: Any, items: Any, weights: Any, table: Any = table) -> Any:
            scores = states @ table.rows[1:].T  # all but the padding item
            targets = torch.zeros(len(items), table.item_num).scatter_add(1, items, weights)
            return F.cross_entropy(scores, targets[:, 1:], reduction="none")

        for of_rank, own in zip(ranks, given_to, strict=True):
            loss, read, scores = read_and_scored(table, cross_entropy, own)
            loss.backward()
            found = of_rank[number]
            torch.testing.assert_close(found[0], loss.detach())
            assert torch.equal(found[1], read)  # read to the last bit
            torch.testing.assert_close(found[2], scores)
            torch.testing.assert_close(found[3], own[0].grad)
        for of_rank in ranks:
            *_, gradient, rows = of_rank[number]
            torch.testing.assert_close(gradient, rows.of(table.rows.grad))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("data") / "cycle", users=17, both_ways=True)


def asked_of(data: Path, **settings: Any) -> list[dict[str, Any]]:
    """Arguments of ``run``, for what goes with a cut table."""
    settings = {"item_embedding_dim": None, **settings}
    return [wanted(data, **chosen, **settings) for chosen in CHOSEN.values()]


def runs_norms_and_bytes(*asked: dict[str, Any]) -> tuple[Any, list[float], list[Any]]:
    """Results, gradients' norms, and what this rank held of the item table at every run's end."""
    norms, held, clip = [], [], sharding.clip_gradients
    write = model_folder.write_state

    def clip_gradients(*args: Any, **options: Any) -> Any:
        norms.append(float(norm := clip(*args, **options)))
        return norm

    def write_state(ours: Any, *args: Any, **more: Any) -> None:
        rows = ours.catalog_lm.lm.item_table.rows
        rows.grad = torch.zeros_like(rows) if rows.grad is None else rows.grad
        optimizer = getattr(ours.optimizer, "optimizer", ours.optimizer)  # Accelerate's or torch's
        moments = optimizer.state[rows]
        tensors = [rows, rows.grad, moments["exp_avg"], moments["exp_avg_sq"]]
        held.append([tensor.untyped_storage().nbytes() for tensor in tensors])
        write(ours, *args, **more)

    sharding.clip_gradients, model_folder.write_state = clip_gradients, write_state
    item_loss.SCORE_BYTES = 4 * 21 * 10  # ten positions at once
    return runs(*asked), norms, held


@pytest.fixture(scope="module")
def of_one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one process makes of them; that the table is to be cut is nothing to it."""
    folder = tmp_path_factory.mktemp("one")
    asked = asked_of(data, shard_items=True)
    [(results, norms)] = started(1, folder, runs_and_norms, *asked).given()
    found = zip(CHOSEN, results, strict=True)
    return {name: in_folder(result, folder) for name, result in found} | {"norms": norms}


def test_two_processes_with_half_a_table_each_train_and_rank_as_one(
    data: Path, tmp_path: Path, of_one: dict[str, Any]
) -> None:
    asked = asked_of(data, shard_items=True)
    (first, norms, held), (second, *_, others) = started(
        2, tmp_path, runs_norms_and_bytes, *asked
    ).given()
    np.testing.assert_allclose(norms, of_one["norms"], rtol=1e-4)
    for name, result, other in zip(CHOSEN, first, second, strict=True):
        one = of_one[name]
        assert_alike(one, in_folder(result, tmp_path))
        assert result["test_result"] == other["test_result"] == one["test_result"]
        assert result["parameters"] == one["parameters"]
        ranks = (
            np.load(Path(run["folder"]) / "ranks.npz") for run in (in_folder(result, tmp_path), one)
        )
        np.testing.assert_array_equal(*(each["rank"] for each in ranks))
    # 40 items and the padding item, float32: 21 rows a rank.
    assert held == others == [[21 * TINY_BACKBONE["hidden_size"] * 4] * 4] * 6


def test_a_run_goes_on_with_more_or_fewer_processes(
    data: Path, tmp_path: Path, of_one: dict[str, Any]
) -> None:
    cut_off = partial(interrupted_in_epoch, 1)
    *_, arguments = asked_of(data, shard_items=True)
    two, one = tmp_path / "two", tmp_path / "one"
    assert started(2, two, partial(runs, patches=[cut_off]), arguments).given() == [[None]] * 2
    assert started(1, one, partial(runs, patches=[cut_off]), arguments).given() == [[None]]
    [of_two], [by_one] = two.glob("saved/*"), one.glob("saved/*")
    ended_by_one = started(1, two, runs, {"resume": of_two})
    ended_by_two = started(2, one, runs, {"resume": by_one})
    for result in ended_by_one.given()[0] + ended_by_two.given()[0]:
        assert result["epochs"] == 2
        assert_alike(of_one["soft, averaged"], in_folder(result, tmp_path))


def with_table(table: ItemTable, untrained: Sequence[int] = (), **options: Any) -> CatalogLM:
    """What is asked of a model before its ``table`` is cut; ``untrained``: rows of a cold start."""
    settings = LanguageModelOptions(**options)
    model = SimpleNamespace(
        settings=settings,
        catalog=SimpleNamespace(untrained=untrained),
        item_codes=ITEM_CODES[settings.item_tokens],
        lm=SimpleNamespace(item_table=table),
    )
    return cast(CatalogLM, model)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"sharding": "fsdp2"}, "sharding=fsdp2"),
        ({"untrained": [6]}, "cold_start"),
        ({"item_tokens": "semantic", "use_text": False}, "item_tokens=semantic"),
        ({"softmax": "hybrid"}, "softmax=hybrid"),
        ({"item_text_added": True}, "item_text_added"),
        ({"item_embedding_dim": 4}, "item_embedding_dim"),
    ],
)
def test_what_needs_the_whole_table_is_refused(settings: dict[str, Any], named: str) -> None:
    table = ItemTable(7, WIDTH, settings.get("item_embedding_dim"))
    with pytest.raises(SettingError, match=f"shard_items does not go with {named}; leave one"):
        sharding.cut_items(with_table(table, **settings))


def test_other_kinds_of_tables_are_refused() -> None:
    table = ProjectedItemTable(7, WIDTH, 3, 0.02)
    model = with_table(table, softmax="hybrid", item_embedding_dim=3)  # as such a model sets them
    with pytest.raises(SettingError, match="a model with item tables of its own"):
        sharding.cut_items(model)


@given_any(item_num=st.integers(1, 40), ranks=st.integers(1, 9))
def test_every_row_is_of_one_rank(item_num: int, ranks: int) -> None:
    table = torch.arange(1.0, item_num + 1).unsqueeze(1)
    size = -(-item_num // ranks)
    parts = [OwnRows(rank, size, item_num).of(table) for rank in range(ranks)]
    assert {len(part) for part in parts} == {size}
    together = torch.cat(parts)
    assert torch.equal(together[:item_num], table) and not together[item_num:].any()
