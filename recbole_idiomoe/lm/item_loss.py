"""Cross entropy over a large catalogue with bounded memory."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Most bytes of float32 scores at a time; softmax and gradients take about twice as much on top.
# Smaller chunks are slower, because each chunk adds to the gradient of the whole item table.
SCORE_BYTES = 256 * 2**20


def summed_cross_entropy(
    score: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    hidden_states: Tensor,
    targets: Tensor,
    candidate_num: int,
) -> Tensor:
    """Sum over positions of the cross entropy, a scalar in nats; 0 if there is no position.

    If the scores of all positions take more than ``SCORE_BYTES``, positions are processed in
    chunks, and the backward pass computes each chunk's scores again. Memory then does not grow
    with positions times candidates; values and gradients are the same up to rounding. ``score``
    may be any head, unlike in ``torch.nn.functional.linear_cross_entropy``.

    Args:
        score: maps states (n, d) and targets (n,) to the candidates' scores (n, candidate_num),
            float32, and the targets' columns among them (n,). It must be deterministic, because
            it may be called twice per chunk.
        hidden_states: (N, d).
        targets: (N,), as ``score`` takes them.
        candidate_num: number of candidates.
    """

    def chunk_loss(states: Tensor, chosen: Tensor) -> Tensor:
        return F.cross_entropy(*score(states, chosen), reduction="sum")

    first, *others = in_chunks(chunk_loss, candidate_num, hidden_states, targets)
    return sum(others, start=first)


def in_chunks(
    compute: Callable[..., Tensor], candidate_num: int, *positions: Tensor
) -> list[Tensor]:
    """Apply ``compute`` to chunks of positions; the backward pass computes each chunk again.

    ``compute`` takes the tensors ``positions``, each (N, ...), and needs ``candidate_num`` scores
    for each position. Returns the results of the chunks, at least one.
    """
    size = max(1, SCORE_BYTES // (4 * candidate_num))
    if len(positions[0]) <= size:
        return [compute(*positions)]
    chunks = zip(*(each.split(size) for each in positions), strict=True)
    return [
        checkpoint(compute, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks
    ]
