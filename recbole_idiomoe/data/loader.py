"""Length-aware batches of training windows."""

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

# Windows are sorted by length inside pools of this many batches: long enough for little
# padding, short enough that a batch's company changes every epoch.
POOL_BATCHES = 50

# A batch in a step of so many predictions has no part in the step's mean.
COUNTS_NOTHING: dict[str, Any] = dict.fromkeys(
    ("item_count", "text_count", "token_count"), math.inf
)

Step = TypeVar("Step")


class WindowSampler(Sampler[list[int]]):
    """Batches of window indices of like length, in an order that depends on seed and epoch only.

    Args:
        batch_size: windows in a batch; the last batch of an epoch may be smaller.
        seed: of the order.
    """

    def __init__(self, batch_size: int, seed: int) -> None:
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        self.lengths = np.zeros(0, dtype=np.int64)
        self.batches: list[np.ndarray] = []
        """Those of the iteration begun last, in their order."""

    def set_epoch(self, epoch: int, lengths: np.ndarray) -> None:
        """Name the epoch, and the tokens of every window in it."""
        self.epoch, self.lengths = epoch, lengths

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        rng = np.random.default_rng((self.seed, self.epoch))
        shuffled = rng.permutation(len(self.lengths))
        pool = POOL_BATCHES * self.batch_size
        batches = []
        for start in range(0, len(shuffled), pool):
            indices = shuffled[start : start + pool]
            indices = indices[np.argsort(self.lengths[indices], kind="stable")]
            batches += [
                indices[i : i + self.batch_size] for i in range(0, len(indices), self.batch_size)
            ]
        self.batches = [batches[position] for position in rng.permutation(len(batches))]
        yield from (batch.tolist() for batch in self.batches)


class WindowLoader:
    """Iterates over an epoch's optimizer steps, each a list of :class:`SequenceBatch`.

    A step has ``batch_size`` windows whatever the memory: ``max_batch_tokens`` only cuts it
    into several forward passes, whose gradients add up to those of one. It may be lowered
    between steps; those that were made ahead keep the old one until :meth:`step` is asked.

    Of several processes each has its share of the windows of every step, which counts as a part
    of the whole, and as many batches as any other: of these, some may count nothing.

    Args:
        windows: item rows, inputs and last target, as ``HistoryDataset.training_windows`` gives.
        pad_token_id: what fills up a batch.
        seed: of order and text mixing.
        num_workers: processes that build sequences ahead.
        device: where batches are wanted. A GPU gets them from pinned memory and one step
            ahead, so that it need not wait for them; for the CPU they are left as they are.
        queries: token ids of the queries that each item answers, per catalogue row.
        rank: which of the processes this is, from 0.
        ranks: how many there are.
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
        self.rank, self.ranks = rank, ranks
        self.windows = RaggedArray.of(windows)
        self.queries = queries
        self.builder = builder
        self.max_batch_tokens = max_batch_tokens
        self.pad_token_id = pad_token_id
        self.seed = seed
        self.device = torch.device(device)
        self.sampler = WindowSampler(batch_size, seed)
        self._with_text = np.zeros(len(windows), dtype=bool)
        self._asked = [NOTHING] * len(windows)
        self._lengths = {
            with_text: builder.lengths(self.windows, with_text) for with_text in (False, True)
        }
        self._loader: DataLoader[int] = DataLoader(
            range(len(windows)),  # type: ignore[arg-type]
            batch_sampler=self.sampler,
            collate_fn=self._step,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
        )
        self.set_epoch(0, 1.0)

    def set_epoch(self, epoch: int, text_share: float, query_share: float = 0.0) -> None:
        """Choose the epoch's order and which of its windows carry text and end in a query.

        Args:
            text_share: expected share of windows with text, 0 to 1.
            query_share: of windows with a query that their last item answers, where it has one.
        """
        rng = np.random.default_rng((self.seed, epoch, 1))
        self._with_text = rng.random(len(self.windows)) < text_share
        lengths = np.where(self._with_text, self._lengths[True], self._lengths[False])
        self.sampler.set_epoch(epoch, lengths)
        if query_share:
            rng = np.random.default_rng((self.seed, epoch, 2))
            self._asked = [self._query(rng, window, query_share) for window in self.windows]
        else:
            self._asked = [NOTHING] * len(self.windows)

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[list[SequenceBatch]]:
        if self.device.type != "cuda":
            return iter(self._loader)
        return one_ahead([batch.to(self.device) for batch in step] for step in self._loader)

    def step(self, number: int) -> list[SequenceBatch]:
        """A step of the iteration begun last, from 0, made anew by ``max_batch_tokens``."""
        return self._step(self.sampler.batches[number].tolist())

    def _step(self, indices: list[int]) -> list[SequenceBatch]:
        sequences = self.builder.build_all_training(
            [self.windows[i] for i in indices],
            self._with_text[indices],
            [self._asked[i] for i in indices],
        )
        shares = [self._grouped(sequences[rank :: self.ranks]) for rank in range(self.ranks)]
        own, of_step = shares[self.rank], counts(sequences)
        batches = [replace(collate(group, self.pad_token_id), **of_step) for group in own]
        if missing := max(map(len, shares)) - len(own):
            spare = replace(collate(sequences[:1], self.pad_token_id), **COUNTS_NOTHING)
            # In front: gradients are sent while those of the last one are computed.
            batches = [spare] * missing + batches
        return batches

    def _grouped(self, sequences: Sequence[TokenSequence]) -> list[list[TokenSequence]]:
        lengths = [len(sequence.input_ids) for sequence in sequences]
        groups = token_groups(lengths, self.max_batch_tokens)
        return [[sequences[i] for i in group] for group in groups]

    def _query(self, rng: np.random.Generator, window: np.ndarray, share: float) -> np.ndarray:
        # As many draws for every window: one item's queries then change no other's.
        asked, which = rng.random(2)
        queries = self.queries[window[-1]]
        return queries[int(which * len(queries))] if asked < share and queries else NOTHING


def one_ahead(steps: Iterable[Step]) -> Iterator[Step]:
    """The same, each of them asked for before the one in front of it is handed on."""
    return (step for step, _ in pairwise(chain(steps, [None])) if step is not None)


def token_groups(
    lengths: Sequence[int], max_tokens: int, busy_tokens: float = math.inf
) -> list[list[int]]:
    """Group sequences of like length so that a padded group has at most ``max_tokens`` tokens.

    Args:
        busy_tokens: a group of so many takes in no sequence that is shorter than half of its
            longest one, and would be padding for the most part.

    Returns:
        Indices into ``lengths``, each once, longest first; a sequence that is longer than
        ``max_tokens`` alone has a group to itself.
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
