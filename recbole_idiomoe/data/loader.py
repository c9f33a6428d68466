"""Loading of training windows in batches of similar length."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import chain, pairwise
from typing import Any, TypeVar

import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from recbole_idiomoe.data.batch import SequenceBatch, collate, counts
from recbole_idiomoe.data.ragged import RaggedArray
from recbole_idiomoe.data.sequence import NOTHING, TokenSequence
from recbole_idiomoe.data.sequence_builder import SequenceBuilder

# Windows are sorted by length inside pools of this many batches. A large pool needs little padding;
# a small one mixes the windows of a batch better between epochs.
POOL_BATCHES = 50

Step = TypeVar("Step")


class WindowSampler(Sampler[list[int]]):
    """Batches of indices of windows with similar length; the order depends on seed and epoch only.

    A batch has ``batch_size`` windows; one batch of an epoch may be smaller.
    """

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size, self.seed, self.epoch = batch_size, seed, 0
        self.lengths = np.zeros(0, dtype=np.int64)
        self.batches: list[np.ndarray] = []
        """The batches of the last started iteration, in order."""

    def set_epoch(self, epoch: int, lengths: np.ndarray) -> None:
        """Set the epoch, and the number of tokens of each window in it, shape ``(windows,)``."""
        self.epoch, self.lengths = epoch, lengths

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        shuffled = rng.permutation(len(self.lengths))
        batches = []
        for pool in _chunks(shuffled, POOL_BATCHES * self.batch_size):
            by_length = pool[np.argsort(self.lengths[pool], kind="stable")]
            batches += _chunks(by_length, self.batch_size)
        self.batches = [batches[position] for position in rng.permutation(len(batches))]
        yield from (batch.tolist() for batch in self.batches)


def _chunks(values: np.ndarray, size: int) -> list[np.ndarray]:
    return [values[start : start + size] for start in range(0, len(values), size)]


class WindowLoader:
    """Iterates over an epoch's optimizer steps, each a list of :class:`SequenceBatch`.

    A step always has ``batch_size`` windows. ``max_batch_tokens`` splits it into several forward
    passes, and the sum of their gradients is the gradient of one pass. It may be lowered between
    steps; prefetched steps keep the old limit, and :meth:`step` rebuilds one with the new limit.

    With several processes, each one gets a share of the windows of every step, and the same number
    of batches, some of which may have zero weight.

    Args:
        windows: item rows, inputs and last target, from ``HistoryDataset.training_windows``.
        seed: seed of the order, of text mixing and of queries.
        num_workers: number of processes that prefetch sequences.
        device: device of the batches. A GPU gets them one step ahead from pinned memory.
        queries: token ids of the queries that each item answers, per catalogue row.
        rank, ranks: number of this process, from 0, and of all processes.
    """

    def __init__(
        self,
        windows: Sequence[np.ndarray],
        builder: SequenceBuilder,
        *,
        batch_size: int,
        max_batch_tokens: int,
        pad_token_id: int,
        seed: int,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
        queries: Sequence[Sequence[np.ndarray]] = (),
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.windows, self.builder = RaggedArray.of(windows), builder
        self.max_batch_tokens, self.pad_token_id = max_batch_tokens, pad_token_id
        self.seed, self.device, self.queries = seed, torch.device(device), queries
        self.rank, self.ranks = rank, ranks
        self.sampler = WindowSampler(batch_size, seed)
        self._lengths = [builder.lengths(self.windows, with_text) for with_text in (True, False)]
        self._loader: DataLoader[int] = DataLoader(
            range(len(windows)),  # type: ignore[arg-type]
            batch_sampler=self.sampler,
            collate_fn=self._step,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
        )
        self.set_epoch(0, 1.0)

    def set_epoch(self, epoch: int, text_share: float, query_share: float = 0.0) -> None:
        """Draw the epoch's order, and which windows have text and which end in a query.

        Args:
            text_share: expected share of windows with text, in [0, 1].
            query_share: expected share of windows that end in a query, in [0, 1], among those
                whose last item answers one.
        """
        rng = np.random.default_rng((self.seed, epoch, 1))
        self._with_text = rng.random(len(self.windows)) < text_share
        self.sampler.set_epoch(epoch, np.where(self._with_text, *self._lengths))
        self._window_queries = [NOTHING] * len(self.windows)
        if query_share:
            # Two draws for every window, so that the queries of one item do not change other draws.
            draws = np.random.default_rng((self.seed, epoch, 2)).random((len(self.windows), 2))
            for i in np.flatnonzero(draws[:, 0] < query_share).tolist():
                if queries := self.queries[self.windows[i][-1]]:
                    self._window_queries[i] = queries[int(draws[i, 1] * len(queries))]

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[SequenceBatch]]:
        if self.device.type != "cuda":
            return iter(self._loader)
        return prefetch_one([batch.to(self.device) for batch in step] for step in self._loader)

    def step(self, number: int) -> list[SequenceBatch]:
        """Rebuild a step of the last started iteration, counted from 0, with the current limit."""
        return self._step(self.sampler.batches[number].tolist())

    def _step(self, indices: list[int]) -> list[SequenceBatch]:
        sequences = self.builder.build_training(
            [self.windows[i] for i in indices],
            self._with_text[indices],
            [self._window_queries[i] for i in indices],
        )
        shares = [self._groups(sequences[rank :: self.ranks]) for rank in range(self.ranks)]
        own, of_step = shares[self.rank], counts(sequences)
        batches = [replace(collate(group, self.pad_token_id), **of_step) for group in own]
        if missing := max(map(len, shares)) - len(own):
            # The sums of a batch are divided by these counts, so its weight is zero.
            infinite: dict[str, Any] = dict.fromkeys(of_step, math.inf)
            spare = replace(collate(sequences[:1], self.pad_token_id), **infinite)
            # In front, because the last batch's backward pass overlaps with sending gradients.
            batches = [spare] * missing + batches
        return batches

    def _groups(self, sequences: Sequence[TokenSequence]) -> list[list[TokenSequence]]:
        lengths = [len(sequence.input_ids) for sequence in sequences]
        groups = token_groups(lengths, self.max_batch_tokens)
        return [[sequences[i] for i in group] for group in groups]


def prefetch_one(steps: Iterable[Step]) -> Iterator[Step]:
    """Yield the steps in their order, but request each one before its predecessor is yielded."""
    return (step for step, _ in pairwise(chain(steps, [None])) if step is not None)


def token_groups(
    lengths: Sequence[int], max_tokens: int, busy_tokens: float = math.inf
) -> list[list[int]]:
    """Group sequences of similar length so that a padded group has at most ``max_tokens`` tokens.

    Args:
        lengths: number of tokens of each sequence.
        max_tokens: most tokens of a group, padding included. A longer sequence is a group alone.
        busy_tokens: a group with this many tokens takes no sequence shorter than half of its
            longest one, because that would be padding for the most part.

    Returns:
        Groups of indices into ``lengths``, each index once, longest sequences first.
    """
    groups: list[list[int]] = []
    width = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        computed = len(groups[-1]) * width if groups else math.inf
        is_padding = 2 * lengths[i] < width and computed >= busy_tokens
        if computed + width > max_tokens or is_padding:
            groups.append([])
            width = lengths[i]
        groups[-1].append(i)
    return groups
