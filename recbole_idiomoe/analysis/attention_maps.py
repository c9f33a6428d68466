"""Attention weights, reduced layer by layer as they are made (paper, section B.6.3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import BackboneError
from recbole_idiomoe.lm.decoder import attention_of, decoder_layers


@dataclass(frozen=True)
class TextAttention:
    """Of one layer on text, means over queries (paper, section B.6.3)."""

    previous: float
    """A[i, i - 1], over the queries that have a token before them."""
    first: float
    """A[i, 0], over all queries, the first among them, whose only key it is."""
    entropy: float
    """Of A[i, :], nats, over all queries."""
    distances: list[float]
    """A[i, i - d] for d = 0, 1 ..., each over the queries that have a token d before them."""


@dataclass(frozen=True)
class HistoryAttention:
    """Of one layer on histories: shares of attention, means over the queries of one type."""

    item_to_itself: float
    """Of item tokens, to themselves."""
    item_to_items: float
    """Of item tokens, to other item tokens."""
    item_to_text: float
    """Of item tokens, to text; the three add up to 1."""
    item_to_first: float
    """What of these goes to the first token of all, text or item."""
    text_to_items: float
    """Of text tokens, to item tokens; the rest goes to text."""
    text_to_first: float
    """Of text tokens, to the first token of all."""


@contextmanager
def attention_read(
    backbone: PreTrainedModel, take: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """While the block runs, hand each layer's attention to ``take`` as soon as it is computed.

    Attention is eager there, which alone makes its weights. A layer's are let go before the next
    computes its own, so that memory holds one layer's (B, heads, T, T).

    Args:
        take: is given the layer and A, (B, T, T), float64 on the CPU: the mean over heads, each
            query's weights brought to a sum of 1.

    Raises:
        BackboneError: the decoder's attention gives no weights.
    """
    before = backbone.config._attn_implementation
    hooks = [
        attention_of(layer).register_forward_hook(_reader(index, take))
        for index, layer in enumerate(decoder_layers(backbone))
    ]
    backbone.set_attn_implementation("eager")
    try:
        yield
    finally:
        backbone.set_attn_implementation(before)
        for hook in hooks:
            hook.remove()


def _reader(layer: int, take: Callable[[int, Tensor], None]) -> Callable[..., None]:
    def read(module: nn.Module, args: Any, output: Any) -> None:
        weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
        if not isinstance(weights, Tensor) or weights.ndim != 4:
            raise BackboneError(
                f"{type(module).__name__} gives no attention weights; its attention cannot be "
                "looked into."
            )
        mean = weights.detach().mean(1, dtype=torch.float32).cpu().double()
        take(layer, mean / mean.sum(-1, keepdim=True))

    return read


class Means:
    """Means of quantities that come in parts, by layer and name."""

    def __init__(self) -> None:
        self._sums: dict[tuple[int, str], Tensor] = {}
        self._counts: dict[tuple[int, str], Tensor] = {}

    def add(self, layer: int, name: str, values: Tensor, counts: Tensor | None = None) -> None:
        """Take single values (n,); or, with ``counts``, sums of that many values each."""
        if counts is None:
            values, counts = values.sum(), torch.tensor(float(len(values)))
        key = layer, name
        self._sums[key] = self._sums.get(key, torch.zeros(())) + values
        self._counts[key] = self._counts.get(key, torch.zeros(())) + counts

    def layer(self, layer: int) -> dict[str, Any]:
        """The means of a layer; nan of what was never seen."""
        return {
            name: (total / self._counts[at, name]).tolist()
            for (at, name), total in self._sums.items()
            if at == layer
        }

    @property
    def depth(self) -> int:
        """Number of layers."""
        return 1 + max(layer for layer, _ in self._sums)


def read_text(attention: Tensor, layer: int, means: Means, distances: int) -> None:
    """Add what :class:`TextAttention` has of one sequence's A, (T, T), T at least 2."""
    length = len(attention)
    means.add(layer, "previous", attention.diagonal(-1))
    means.add(layer, "first", attention[:, 0])
    means.add(layer, "entropy", torch.special.entr(attention).sum(-1))
    query, key = torch.tril_indices(length, length)
    back = query - key
    near = back <= distances
    sums = torch.bincount(
        back[near], weights=attention[query[near], key[near]], minlength=distances + 1
    )
    counts = (length - torch.arange(distances + 1)).clamp_min(0).double()
    means.add(layer, "distances", sums, counts)


def read_items(attention: Tensor, layer: int, means: Means, is_item: Tensor) -> None:
    """Add what :class:`HistoryAttention` has of one sequence's A, (T, T).

    Args:
        is_item: (T,), which tokens are items.
    """
    to_items = attention[:, is_item].sum(-1)
    to_text = attention[:, ~is_item].sum(-1)
    itself = attention.diagonal()
    for name, values in (
        ("item_to_itself", itself[is_item]),
        ("item_to_items", (to_items - itself)[is_item]),
        ("item_to_text", to_text[is_item]),
        ("item_to_first", attention[is_item, 0]),
        ("text_to_items", to_items[~is_item]),
        ("text_to_first", attention[~is_item, 0]),
    ):
        means.add(layer, name, values)


def even_attention(length: int) -> Tensor:
    """A (T, T) that is spread evenly over what causal attention sees."""
    seen = torch.ones(length, length, dtype=torch.float64).tril()
    return seen / seen.sum(-1, keepdim=True)


@torch.no_grad()
def text_attention(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], distances: int
) -> list[TextAttention]:
    """Each layer's attention on prompts, one at a time, so that nothing is padding.

    Args:
        model: a decoder of text tokens.
        prompts: token ids, at least two each.
        distances: the largest d of the distance profile.
    """
    means = Means()
    with attention_read(model, lambda layer, found: read_text(found[0], layer, means, distances)):
        for prompt in prompts:
            model.base_model(torch.tensor([list(prompt)], device=model.device), use_cache=False)
    return [TextAttention(**means.layer(layer)) for layer in range(means.depth)]
