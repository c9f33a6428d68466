"""An optimizer step whose batches do not fit into the device's memory is cut into smaller ones."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import IdiomoeError
from recbole_idiomoe.data.batch import SequenceBatch
from recbole_idiomoe.data.loader import WindowLoader

logger = logging.getLogger(__name__)


class MicroBatches:
    """The forward and backward passes of each step, within the memory that there is.

    If a batch is too large, the loader's ``max_batch_tokens`` becomes half of the batch, the step
    starts again with smaller batches, and all later steps use them too. The gradients of a step
    stay the same.

    Args:
        loader: the loader of the steps.
        backward: adds the gradients of a batch to the present ones; returns its detached loss.
        zero_grad: resets all gradients.
        no_sync: a context in which a backward pass does not exchange gradients between processes.
            The last backward pass of a step runs outside of it.
    """

    def __init__(
        self,
        loader: WindowLoader,
        backward: Callable[[SequenceBatch], torch.Tensor],
        zero_grad: Callable[[], None],
        no_sync: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.loader, self.backward = loader, backward
        self.zero_grad, self.no_sync = zero_grad, no_sync

    def run(self, number: int, batches: list[SequenceBatch]) -> list[torch.Tensor]:
        """Compute the gradients of a step.

        Args:
            number: number of the step in the loader's iteration, from 0.
            batches: the step as the loader gave it, maybe before its limit was lowered.

        Returns:
            The detached losses of its batches, which add up to the loss of the step.

        Raises:
            IdiomoeError: a single sequence does not fit. With several processes, also if a batch
                does not fit, because the other processes cannot start the step again.
        """
        before = self.loader.max_batch_tokens
        if any(len(batch.input_ids) > 1 and _size(batch) > before for batch in batches):
            batches = self.loader.step(number)
        while True:
            losses = []
            try:
                for left, batch in enumerate(batches, start=1 - len(batches)):
                    with self.no_sync() if left else nullcontext():
                        losses.append(self.backward(batch))
                break
            except torch.OutOfMemoryError:
                pass
            # Not in the handler, because the error holds the activations until it is left.
            if len(batch.input_ids) == 1:
                raise IdiomoeError(
                    f"a sequence of {_size(batch)} tokens is too large for the device's memory, "
                    "even alone; lower max_tokens, or take a smaller backbone or a larger device."
                )
            if distributed.world_size() > 1:
                raise IdiomoeError(
                    f"a batch of {_size(batch)} tokens is too large for the memory of rank "
                    f"{distributed.rank()}, and with several processes none is made smaller by "
                    f"itself; go on with --resume and --max_batch_tokens={_size(batch) // 2}."
                )
            self.zero_grad()
            torch.cuda.empty_cache()
            self.loader.max_batch_tokens = _size(batch) // 2
            batches = self.loader.step(number)
        if self.loader.max_batch_tokens < before:
            logger.warning(
                "out of memory: from now on steps are cut into batches of %d tokens, with the same "
                "result; max_batch_tokens does so from the start",
                self.loader.max_batch_tokens,
            )
        return losses


def _size(batch: SequenceBatch) -> int:
    """Tokens of the batch, including padding."""
    return batch.input_ids.numel()
