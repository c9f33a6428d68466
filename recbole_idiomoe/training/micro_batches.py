"""An optimizer step whose batches do not fit into the device's memory is made of smaller ones."""

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
    """Forward and backward passes of one step after another, within the memory that there is.

    A batch that is too large halves ``max_batch_tokens`` of the loader, for its step, which is
    done again from its first batch, and for all later ones. What a step learns from stays the
    same.

    Args:
        loader: of the steps.
        backward: adds a batch's gradients to those that are there; gives its loss, detached.
        zero_grad: forgets all gradients.
        kept_here: inside, a backward pass leaves its gradients to this process alone. The last
            one of a step is outside of it, and brings those of all processes together.
    """

    def __init__(
        self,
        loader: WindowLoader,
        backward: Callable[[SequenceBatch], torch.Tensor],
        zero_grad: Callable[[], None],
        kept_here: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        self.loader = loader
        self.backward = backward
        self.zero_grad = zero_grad
        self.kept_here = kept_here

    def run(self, number: int, batches: list[SequenceBatch]) -> list[torch.Tensor]:
        """Leave a step's gradients in the model.

        Args:
            number: of the step in the loader's iteration, from 0.
            batches: the step as the loader gave it, maybe before another one did not fit.

        Returns:
            The losses of its batches, detached; they add up to the step's.

        Raises:
            IdiomoeError: a sequence does not fit alone; or a batch does not, of one of several
                processes: the others are in the midst of theirs, and cannot begin again.
        """
        before = self.loader.max_batch_tokens
        if any(len(batch.input_ids) > 1 and _size(batch) > before for batch in batches):
            batches = self.loader.step(number)
        while True:
            losses = []
            try:
                for left, batch in enumerate(batches, start=1 - len(batches)):
                    with self.kept_here() if left else nullcontext():
                        losses.append(self.backward(batch))
                break
            except torch.OutOfMemoryError:
                pass
            # Here, not in the handler: until it is left, the error keeps the activations.
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
    """Tokens, padding included."""
    return batch.input_ids.numel()
