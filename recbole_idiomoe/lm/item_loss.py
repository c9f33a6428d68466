"""Cross entropy over a large catalogue, never holding the scores of all positions at once."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

# Of the float32 scores that are held at once; softmax and gradients take about twice as much
# again. Shorter products would be slower: with each, the whole table's gradient is added to.
SCORE_BYTES = 256 * 2**20


def summed_cross_entropy(
    score: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    hidden_states: Tensor,
    targets: Tensor,
    candidate_num: int,
) -> Tensor:
    """Sum over positions of the cross entropy, nats; no position gives 0.

    Where the scores of all positions would take more than ``SCORE_BYTES``, positions are taken
    in chunks and each chunk's scores are computed again for the backward pass, so that memory
    does not grow with positions times candidates. Values and gradients are the same but for
    rounding. A whole row of scores is at hand in each chunk, so that any head can be scored,
    which ``torch.nn.functional.linear_cross_entropy``, of one matrix, does not allow.

    Args:
        score: states (n, d) and targets (n,) to candidates' scores (n, candidate_num), float32,
            and the targets' columns among them (n,); it is called twice a chunk, and draws
            nothing at random.
        hidden_states: (N, d).
        targets: (N,).
    """

    def chunk_loss(states: Tensor, chosen: Tensor) -> Tensor:
        return F.cross_entropy(*score(states, chosen), reduction="sum")

    first, *others = in_chunks(chunk_loss, candidate_num, hidden_states, targets)
    return sum(others, start=first)


def in_chunks(
    compute: Callable[..., Tensor], candidate_num: int, *positions: Tensor
) -> list[Tensor]:
    """What ``compute`` gives of chunks of positions, at least one, again for the backward pass.

    Args:
        compute: holds ``candidate_num`` scores a position.
        positions: its arguments, each of shape (N, ...).
    """
    size = max(1, SCORE_BYTES // (4 * candidate_num))
    if len(positions[0]) <= size:
        return [compute(*positions)]
    chunks = zip(*(each.split(size) for each in positions), strict=True)
    return [
        checkpoint(compute, *chunk, use_reentrant=False, preserve_rng_state=False)
        for chunk in chunks
    ]
