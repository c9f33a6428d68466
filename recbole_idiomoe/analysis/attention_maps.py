"""Attention weights, reduced to means layer by layer (paper, section B.6.3)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import BackboneError
from recbole_idiomoe.lm.decoder import attention_of, decoder_layers


@dataclass(frozen=True)
class TextAttention:
    """Attention of one layer on text, as means over queries (paper, section B.6.3)."""

    previous: float
    """A[i, i - 1], over all queries but the first."""
    first: float
    """A[i, 0], over all queries, including the first, for which it is 1."""
    entropy: float
    """Entropy of A[i, :] in nats, over all queries."""
    distances: list[float]
    """A[i, i - d] for d = 0, 1 ..., each over the queries i >= d."""


@dataclass(frozen=True)
class HistoryAttention:
    """Shares of one layer's attention on histories, as means over the queries of one type."""

    item_to_itself: float
    """From an item token to itself."""
    item_to_items: float
    """From an item token to other item tokens."""
    item_to_text: float
    """From an item token to text; with the two shares above it adds up to 1."""
    item_to_first: float
    """From an item token to the first token of the sequence, text or item."""
    text_to_items: float
    """From a text token to item tokens; the rest goes to text."""
    text_to_first: float
    """From a text token to the first token of the sequence."""


@contextmanager
def reading_attention(
    backbone: PreTrainedModel, take: Callable[[int, Tensor], None]
) -> Iterator[None]:
    """Inside the block, pass each layer's attention to ``take`` as soon as it is computed.

    Attention is computed eagerly there, since other kernels return no weights. Memory holds the
    weights (B, heads, T, T) of one layer at a time.

    Args:
        take: is called with the layer's index and A (B, T, T), float64 on the CPU: the mean over
            heads, with each query's weights normalised to a sum of 1.

    Raises:
        BackboneError: the decoder's attention returns no weights.
    """
    with ExitStack() as undo:
        for index, layer in enumerate(decoder_layers(backbone)):
            hook = partial(_read, partial(take, index))
            undo.enter_context(attention_of(layer).register_forward_hook(hook))
        undo.callback(backbone.set_attn_implementation, backbone.config._attn_implementation)
        backbone.set_attn_implementation("eager")
        yield


def _read(take: Callable[[Tensor], None], module: nn.Module, args: Any, output: Any) -> None:
    weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    if not isinstance(weights, Tensor) or weights.ndim != 4:
        name = type(module).__name__
        raise BackboneError(
            f"{name} gives no attention weights; its attention cannot be looked into."
        )
    mean = weights.detach().mean(1, dtype=torch.float32).cpu().double()
    take(mean / mean.sum(-1, keepdim=True))


class Means:
    """Running means of quantities, by layer and name."""

    def __init__(self) -> None:
        self._totals: dict[int, dict[str, Any]] = defaultdict(lambda: defaultdict(int))

    def add(self, layer: int, name: str, values: Tensor, counts: Tensor | None = None) -> None:
        """Add values (n,); or, with ``counts``, one sum of that many values for each mean."""
        if counts is None:
            values, counts = values.sum(), values.new_tensor(len(values))
        self._totals[layer][name] += torch.stack((values, counts))

    def layer(self, layer: int) -> dict[str, Any]:
        """The means of a layer, by name; nan where no value was added."""
        totals = self._totals[layer].items()
        return {name: (sums / counts).tolist() for name, (sums, counts) in totals}

    @property
    def depth(self) -> int:
        """The number of layers."""
        return len(self._totals)


def read_text(attention: Tensor, layer: int, means: Means, distances: int) -> None:
    """Add one sequence's attention A (T, T), T >= 2, to the means of :class:`TextAttention`."""
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
    """Add one sequence's attention A (T, T) to the means of :class:`HistoryAttention`.

    ``is_item`` (T,), boolean, marks the tokens that are items.
    """
    to_items = attention[:, is_item].sum(-1)
    to_text = attention[:, ~is_item].sum(-1)
    itself = attention.diagonal()
    means.add(layer, "item_to_itself", itself[is_item])
    means.add(layer, "item_to_items", (to_items - itself)[is_item])
    means.add(layer, "item_to_text", to_text[is_item])
    means.add(layer, "item_to_first", attention[is_item, 0])
    means.add(layer, "text_to_items", to_items[~is_item])
    means.add(layer, "text_to_first", attention[~is_item, 0])


def even_attention(length: int) -> Tensor:
    """Attention (T, T) that is spread evenly over all earlier tokens and the token itself."""
    seen = torch.ones(length, length, dtype=torch.float64).tril()
    return seen / seen.sum(-1, keepdim=True)


@torch.no_grad()
def text_attention(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], distances: int
) -> list[TextAttention]:
    """Each layer's attention on prompts, which are read one at a time to avoid padding.

    Args:
        prompts: token ids of each prompt, at least two.
        distances: the largest distance d of the profile, in tokens.
    """
    means = Means()
    with reading_attention(model, lambda layer, a: read_text(a[0], layer, means, distances)):
        for prompt in prompts:
            model.base_model(torch.tensor([list(prompt)], device=model.device), use_cache=False)
    return [TextAttention(**means.layer(layer)) for layer in range(means.depth)]
