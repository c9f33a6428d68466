"""S3Rec's first stage, pre-training, in a fraction of RecBole's time with RecBole's losses.

Two things take most of the time of RecBole's steps. Its training tensors are built in Python, with
a list of all features for every position of every row. And four Transformer passes, and both losses
on features, compute padding too, which is five of six positions on amazon-toys.
"""

from __future__ import annotations

from logging import getLogger
from typing import Any

import torch
from recbole.model.sequential_recommender.s3rec import S3Rec

from recbole_idiomoe.models.first_stage import StageRun

SHORTEST = 8
"""Rows of up to this length are computed together; more passes would gain little."""


class PretrainingStage:
    """Pre-trains the weights that RecBole's fine-tuning starts from.

    With RecBole alone, a user makes two runs and changes settings between them. A user who gives
    ``train_stage: finetune`` and a ``pre_model_path`` skips this stage.
    """

    def is_needed(self, config: Any) -> bool:
        """Whether no pre-trained model is given."""
        return bool(config["train_stage"] == "pretrain")

    def train(self, run: StageRun) -> None:
        """Pre-train, and point ``pre_model_path`` at the weights."""
        config = run.config
        config["save_step"] = config["pretrain_epochs"]
        getLogger().info(f"S3Rec, stage 1 of 2: pre-training, {config['pretrain_epochs']} epochs")
        checkpoint_dir, config["checkpoint_dir"] = config["checkpoint_dir"], str(run.folder)
        model = PretrainingS3Rec(config, run.train_data._dataset)
        trainer = run.fit(config, model, run.train_data)
        config["checkpoint_dir"] = checkpoint_dir
        config["train_stage"] = "finetune"
        config["pre_model_path"] = trainer.saved_model_file
        getLogger().info("S3Rec, stage 2 of 2: fine-tuning")


class PretrainingS3Rec(S3Rec):  # type: ignore[misc]
    """RecBole's S3Rec in the stage ``pretrain``, with faster tensors and losses.

    It has the weights of RecBole's class, which fine-tunes them.
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
        """RecBole's loss, with rows of similar length computed together.

        The four losses are sums over rows, without padding, and nothing attends to padding. So the
        loss and its gradients equal RecBole's, except for rounding and the draws of dropout.
        """
        lengths = (masked > 0).sum(1).cpu()
        shortest, longest = min(SHORTEST, self.max_seq_length), self.max_seq_length
        # Powers of two: at most half of each row is padding.
        widths = lengths.log2().ceil().exp2().int().clamp(shortest, longest)
        tensors = (features, masked, *others)
        return sum(
            super(PretrainingS3Rec, self).pretrain(
                *(tensor[widths == width][:, -width:].contiguous() for tensor in tensors)
            )
            for width in widths.unique().tolist()
        )

    def _counted_from_the_end(self, _: Any, args: tuple[torch.Tensor]) -> torch.Tensor:
        """Positions of rows without padding: the last one is always ``max_seq_length - 1``."""
        (places,) = args
        return places + (self.max_seq_length - places.size(1))


class PretrainingTensors:
    """The tensors of ``S3Rec.reconstruct_pretrain_data``, computed on the model's device.

    Random numbers have RecBole's distributions, but torch draws them, where RecBole uses Python's
    ``random``. As in RecBole, the mask token is one of the items that negatives are drawn from, and
    a negative segment may come from the same row, or cross from one row into the next. Unlike in
    RecBole, an item without a class in a single-class field has no feature; RecBole gives it the
    last class.

    Args:
        model: an S3Rec, on its device.
    """

    def __init__(self, model: Any) -> None:
        # One ID per item (single class), or several followed by zeros (multi class).
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
            item_seq_len: number of items in each history, at least one, shape ``(batch,)``.

        Returns:
            The features of each item, 0 or 1, shape ``(batch, longest, features)``; and six tensors
            of shape ``(batch, longest)``: histories with masked items, histories, histories with
            negatives in place of masked items, histories with a masked segment, that segment
            among masked items, another segment in its place.
        """
        lengths = item_seq_len.unsqueeze(1)
        # The index in the history of each position; negative in the padding.
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
        """For every position an item that is not in its row."""
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
        every_item = items[items > 0]  # the histories of the step, one after the other
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
    """Uniform whole numbers from 0 to below ``bounds``; 0 where a bound is 0."""
    return torch.randint_like(bounds, 2**62) % bounds.clamp(min=1)
