import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from recbole_idiomoe.data.loader import WindowLoader, prefetch_one, token_groups
from recbole_idiomoe.data.sequence import ITEM
from recbole_idiomoe.data.sequence_builder import SequenceBuilder

OFFSET = 1000


def make_loader(seed: int = 0, **kwargs: Any) -> WindowLoader:
    rng = np.random.default_rng(3)
    texts = [[], *([int(row)] * int(rng.integers(1, 12)) for row in range(1, 50))]
    codes = [[OFFSET + row] for row in range(50)]
    windows = [rng.integers(1, 50, size=rng.integers(2, 30)) for _ in range(200)]
    options: dict[str, Any] = {
        "batch_size": 16,
        "max_batch_tokens": 100_000,
        "pad_token_id": 0,
    } | kwargs
    return WindowLoader(windows, SequenceBuilder(texts, codes, OFFSET), seed=seed, **options)


def supervised(loader: WindowLoader) -> list[tuple[int, int]]:
    """(item read last, item to predict) of everything the loader asks for, sorted."""
    pairs = []
    for step in loader:
        for batch in step:
            last = batch.input_ids.flatten()[batch.predict_at] - OFFSET
            pairs += list(zip(last.tolist(), (batch.targets - OFFSET).tolist(), strict=True))
    return sorted(pairs)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_every_target_is_asked_for_once(share: float) -> None:
    loader = make_loader()
    loader.set_epoch(2, share)
    expected = sorted(
        pair
        for window in loader.windows
        for pair in zip(window[:-1].tolist(), window[1:].tolist(), strict=True)
    )
    assert supervised(loader) == expected


@pytest.mark.parametrize("ranks", [2, 3])
def test_processes_share_every_step(ranks: int) -> None:
    # Of 200 windows 8 are left for the last step of 12, and 1 for that of 199.
    for size in (12, 199):
        options = {"batch_size": size, "max_batch_tokens": 400}
        whole = list(make_loader(**options))
        shares = [list(make_loader(rank=rank, ranks=ranks, **options)) for rank in range(ranks)]
        for step, *parts in zip(whole, *shares, strict=True):
            assert len({len(part) for part in parts}) == 1  # as many passes on each
            counted = [b for part in parts for b in part if b.item_count < math.inf]
            targets = sorted(t for batch in counted for t in batch.targets.tolist())
            assert targets == sorted(t for batch in step for t in batch.targets.tolist())
            for name in ("item_count", "text_count", "token_count"):
                assert {getattr(b, name) for b in counted} == {getattr(step[0], name)}


def test_padding_is_little() -> None:
    loader = make_loader()
    steps = [batch for step in loader for batch in step]
    real = sum(loader.sampler.lengths)
    padded = sum(batch.input_ids.numel() for batch in steps)
    assert 1 - real / padded < 0.10


def test_text_share() -> None:
    loader = make_loader()

    def has_text(share: float) -> float:
        loader.set_epoch(0, share)
        return float(loader._with_text.mean())

    assert has_text(0.0) == 0.0
    assert has_text(1.0) == 1.0
    assert 0.3 < has_text(0.5) < 0.7
    loader.set_epoch(0, 0.0)
    assert all((batch.token_types == ITEM).any() for step in loader for batch in step)


def test_order_depends_on_seed_and_epoch_alone() -> None:
    def order(seed: int, epoch: int) -> list[list[int]]:
        loader = make_loader(seed=seed)
        loader.set_epoch(epoch, 1.0)
        return [batch.targets.tolist() for step in loader for batch in step]

    assert order(0, 1) == order(0, 1)
    assert order(0, 1) != order(0, 2)
    assert order(0, 1) != order(1, 1)


def test_a_small_token_budget_cuts_steps_but_loses_nothing() -> None:
    whole, cut = make_loader(), make_loader(max_batch_tokens=300)
    assert supervised(whole) == supervised(cut)
    assert len(whole) == len(cut)
    for step in cut:
        assert all(b.input_ids.numel() <= 300 or len(b.input_ids) == 1 for b in step)
        assert sum(len(b.targets) for b in step) == step[0].item_count
        assert sum(len(b.predict_text_at) for b in step) == step[0].text_count


def test_workers_change_nothing() -> None:
    def batches(workers: int) -> list[list[int]]:
        loader = make_loader(num_workers=workers)
        loader.set_epoch(1, 0.5)
        return [batch.input_ids.flatten().tolist() for step in loader for batch in step]

    assert batches(0) == batches(2)


def test_token_groups() -> None:
    groups = token_groups([5, 1, 9, 5, 1, 20], max_tokens=10)
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert groups[0] == [5]  # longer than the budget: alone
    for group in groups[1:]:
        assert max([5, 1, 9, 5, 1, 20][i] for i in group) * len(group) <= 10


def test_a_group_that_is_busy_takes_in_no_padding() -> None:
    lengths = [50, 3, 25, 24, 2, 50]
    assert token_groups(lengths, max_tokens=1000) == [[0, 5, 2, 3, 1, 4]]
    assert token_groups(lengths, max_tokens=1000, busy_tokens=100) == [[0, 5, 2], [3, 1, 4]]
    assert token_groups(lengths, max_tokens=1000, busy_tokens=20) == [[0, 5, 2], [3], [1, 4]]


def test_some_windows_end_in_a_query_that_their_last_item_answers() -> None:
    # Item n answers a query of one token, n; odd items answer none.
    queries = [[np.array([row])] if row % 2 == 0 else [] for row in range(50)]
    loader = make_loader(queries=queries)

    def asked(share: float, epoch: int = 0) -> list[tuple[int, int]]:
        loader.set_epoch(epoch, 0.0, share)
        pairs = []
        for step in loader:
            for batch in step:
                at = batch.predict_at[batch.targets % 2 == 0]
                tokens = batch.input_ids.flatten()[at]
                items = batch.targets[batch.targets % 2 == 0] - OFFSET
                is_query = tokens < OFFSET
                pairs += list(zip(tokens[is_query].tolist(), items[is_query].tolist(), strict=True))
        return pairs

    even = sum(window[-1] % 2 == 0 for window in loader.windows)
    assert len(asked(1.0)) == even and all(query == item for query, item in asked(1.0))
    assert 0.2 * even < len(asked(0.5)) < 0.8 * even
    assert asked(0.5, 1) == asked(0.5, 1) != asked(0.5, 2)
    assert asked(0.0) == []


@pytest.mark.parametrize("workers", [0, 2])
def test_a_step_is_made_again(workers: int) -> None:
    loader = make_loader(num_workers=workers, max_batch_tokens=500)
    for epoch in range(2):
        loader.set_epoch(epoch, 0.5)
        for number, step in enumerate(loader):
            again = loader.step(number)
            assert len(again) == len(step)
            for one, other in zip(step, again, strict=True):
                assert one.input_ids.equal(other.input_ids) and one.targets.equal(other.targets)


def test_prefetch_one() -> None:
    asked = []

    def steps() -> Iterator[int]:
        for step in range(3):
            asked.append(step)
            yield step

    seen = [(step, len(asked)) for step in prefetch_one(steps())]
    assert seen == [(0, 2), (1, 3), (2, 3)]
    assert list(prefetch_one([])) == []
