"""RecBole's S3Rec pre-trained in a fraction of the time: its class and its losses stay RecBole's.

Two things cost most of RecBole's step. The tensors that it learns from are put together in Python,
a list of all features for every place of every row; and four Transformer passes, and both losses on
features, compute places that are padding, five of six on amazon-toys.
"""

from __future__ import annotations

from typing import Any

import torch
from recbole.model.sequential_recommender.s3rec import S3Rec

SHORTEST = 8
"""Rows of up to so many places are computed together: passes for each length gain little more."""


class PretrainingS3Rec(S3Rec):  # type: ignore[misc]
    """RecBole's S3Rec in the stage ``pretrain``, with tensors and losses computed as here.

    Weights and their names are those of RecBole's class, which fine-tunes them.
    """

    def __init__(self, config: Any, dataset: Any) -> None:
        super().__init__(config, dataset)
        self._tensors = PretrainingTensors(self)
        self.position_embedding.register_forward_pre_hook(self._counted_from_the_end)

    def reconstruct_pretrain_data(
        self, item_seq: torch.Tensor, item_seq_len: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """See :meth:`PretrainingTensors.__call__`."""
        return self._tensors(item_seq, item_seq_len)

    def pretrain(self, features: torch.Tensor, masked: torch.Tensor, *others: torch.Tensor) -> Any:
        """RecBole's loss, with rows of similar length computed together without common padding.

        The four losses are sums over rows, padding has no part in any of them, and nothing
        attends to it. So the loss and its gradients are RecBole's but for rounding, and for which
        activations dropout draws.
        """
        lengths = (masked > 0).sum(1).cpu()
        shortest, longest = min(SHORTEST, self.max_seq_length), self.max_seq_length
        # Powers of two: at most half of what is computed is padding.
        widths = lengths.log2().ceil().exp2().int().clamp(shortest, longest)
        tensors = (features, masked, *others)
        return sum(
            super(PretrainingS3Rec, self).pretrain(
                *(tensor[widths == width][:, -width:].contiguous() for tensor in tensors)
            )
            for width in widths.unique().tolist()
        )

    def _counted_from_the_end(self, _: Any, args: tuple[torch.Tensor]) -> torch.Tensor:
        """Positions of rows without their padding: the last is always ``max_seq_length - 1``."""
        (places,) = args
        return places + (self.max_seq_length - places.size(1))


class PretrainingTensors:
    """What ``S3Rec.reconstruct_pretrain_data`` returns, computed on the model's device.

    What is drawn has RecBole's distributions, but is drawn by torch, from the run's seed, where
    RecBole takes Python's ``random``: the same seed gives other numbers. Two of its habits are
    kept: the mask token is one of the items that negatives are drawn from, and a segment to tell
    apart may come from the same row, or cross from one row into the next. One is not: where
    features are a single-class field, RecBole gives items without a class the last one there is;
    here they have none, as in a multi-class field.

    Args:
        model: an S3Rec, on its device.
    """

    def __init__(self, model: Any) -> None:
        # One ID an item (single class), or several with zeros behind them (multi class).
        ids = model.item_feat[model.FEATURE_FIELD].reshape(len(model.item_feat), -1)
        table = torch.zeros(len(ids), model.n_features + 1, dtype=torch.bool)
        # RecBole's embedding of features has no row for ID 0, which is padding.
        self._features = table.scatter_(1, ids, True)[:, 1:].to(model.device)
        self._longest, self._mask_token = model.max_seq_length, model.mask_token
        self._mask_ratio = model.mask_ratio

    def __call__(
        self, item_seq: torch.Tensor, item_seq_len: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """The tensors of one step, all of int64 and padded with zeros on the left.

        Args:
            item_seq: histories, padded with zeros on the right, shape ``(batch, longest)``.
            item_seq_len: how many items each has, at least one, shape ``(batch,)``.

        Returns:
            Which features each item has, 0 or 1, shape ``(batch, longest, features)``; and six of
            shape ``(batch, longest)``: histories with masked items, histories, histories with
            negatives in place of masked items, histories with a masked segment, that segment
            among masked items, another segment in its place.
        """
        lengths = item_seq_len.unsqueeze(1)
        # Of every place, which item of the history it has; negative in the padding.
        positions = torch.arange(self._longest, device=item_seq.device) - self._longest + lengths
        held = positions >= 0
        items = item_seq.gather(1, positions.clamp(min=0)).masked_fill(~held, 0)
        masked = held & (torch.rand(items.shape, device=items.device) < self._mask_ratio)
        return (
            self._features[items].long(),
            items.masked_fill(masked, self._mask_token),
            items,
            torch.where(masked, self._negatives(items), items),
            *self._segments(items, positions, lengths),
        )

    def _negatives(self, items: torch.Tensor) -> torch.Tensor:
        """For every place an item that is not in its row."""
        drawn = torch.randint_like(items, 1, self._mask_token + 1)
        # The mask token is in no row, so this ends.
        while (taken := (drawn.unsqueeze(2) == items.unsqueeze(1)).any(2)).any():
            drawn = torch.where(taken, torch.randint_like(items, 1, self._mask_token + 1), drawn)
        return drawn

    def _segments(
        self, items: torch.Tensor, positions: torch.Tensor, lengths: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Histories without a segment, the segment alone, and another alone in its place."""
        sizes = 1 + _drawn_below(lengths // 2)
        starts = _drawn_below(lengths - sizes + 1)
        every_item = items[items > 0]  # of the step, one history after the other
        other_starts = _drawn_below(len(every_item) - sizes + 1)
        places = positions - starts
        segment = (places >= 0) & (places < sizes)
        others = every_item[(other_starts + places).clamp(0, len(every_item) - 1)]
        kept = (positions < 0) | (lengths < 2)  # padding, and histories too short for a segment
        return (
            torch.where(segment & ~kept, self._mask_token, items),
            torch.where(segment | kept, items, self._mask_token),
            torch.where(kept, items, torch.where(segment, others, self._mask_token)),
        )


def _drawn_below(bounds: torch.Tensor) -> torch.Tensor:
    """Whole numbers from 0 to below ``bounds``, as likely as each other; 0 where those are 0."""
    return torch.randint_like(bounds, 2**62) % bounds.clamp(min=1)
