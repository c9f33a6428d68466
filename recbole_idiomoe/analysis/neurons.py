"""FFN neurons as key-value memories: what their value vectors point to (paper, section 3.3).

Choices that the paper leaves open: a setting picks the category of an item with several; items
without a category count among the k neighbours, but for no category; the median of an even number
of values is the mean of the middle two; zero value vectors are left out; and the text tokens are
the tokenizer's whole vocabulary without tokens that only pad the embedding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from recbole_idiomoe.analysis.results import Row
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm import TwoExpertFFN
from recbole_idiomoe.lm.decoder import ffn_layout
from recbole_idiomoe.lm.variants.dense import WidenedFFN
from recbole_idiomoe.lm.variants.switch import SwitchFFN
from recbole_idiomoe.models.language.catalog_lm import CatalogLM

ITEM_EXPERT, TEXT_EXPERT, FFN = "item expert", "text expert", "FFN"
NO_CATEGORY = -1
AT_ONCE = 1 << 26
"""Elements of a block of a matrix product: 256 MB in float32."""


@dataclass(frozen=True)
class References:
    """Vectors to compare with, computed in blocks.

    Args:
        what: their name in messages, for example ``items``.
        ids: ids of the vectors, (n,).
        vectors: maps ids (m,) to vectors (m, d).
    """

    what: str
    ids: Tensor
    vectors: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Neurons:
    """The m neurons of one FFN or expert, compared with items and text tokens.

    Affinity and purity of a neuron whose value vector is zero are nan.
    """

    affinity: Tensor
    """Affinity a(w), equation 2, (m,)."""
    purity: Tensor
    """Purity p(w), equation 3, (m,)."""
    category: Tensor
    """The most frequent category, (m,); :data:`NO_CATEGORY` if no neighbour has one."""
    items: Tensor
    """Catalogue rows of the nearest items, (m, k), nearest first."""
    item_cosines: Tensor
    """Cosines of the nearest items, (m, k)."""
    tokens: Tensor
    """The nearest text tokens, (m, k), nearest first."""
    token_cosines: Tensor
    """Cosines of the nearest text tokens, (m, k)."""


@torch.no_grad()
def nearest(
    queries: Tensor, references: References, k: int, at_once: int = AT_ONCE
) -> tuple[Tensor, Tensor]:
    """The ``k`` references with the greatest cosine to each of the queries (q, d), greatest first.

    At most ``at_once`` cosines, or elements of reference vectors, exist at a time. A zero vector
    is never a neighbour; all cosines of a zero query are 0.

    Returns:
        Cosines (q, k), float32, and the ids of the references (q, k).

    Raises:
        SettingError: fewer than ``k`` references are not zero.
    """
    queries = F.normalize(queries.float(), dim=1)
    ids = references.ids.to(queries.device)
    best = queries.new_full((len(queries), k), -torch.inf)
    best_ids = ids.new_zeros((len(queries), k))
    for piece in ids.split(max(1, at_once // max(queries.shape))):
        vectors = references.vectors(piece).float()
        cosines = queries @ F.normalize(vectors, dim=1).T
        cosines.masked_fill_(~vectors.any(dim=1), -torch.inf)
        found, columns = cosines.topk(min(k, len(piece)), dim=1)
        merged = torch.cat((best, found), dim=1)
        best, kept = merged.topk(k, dim=1)
        best_ids = torch.cat((best_ids, piece[columns]), dim=1).gather(1, kept)
    if torch.isneginf(best).any():
        raise SettingError(f"k={k} asks for more {references.what} than there are; lower it.")
    return best, best_ids


def measure(
    values: Tensor, items: References, tokens: References, categories: Tensor, k: int
) -> Neurons:
    """Affinity and purity of value vectors (m, d), each from its ``k`` nearest items and tokens.

    Args:
        items: the items, with catalogue rows as ids.
        categories: number of each row's category or :data:`NO_CATEGORY`, (item_num,).

    Raises:
        SettingError: there are fewer than ``k`` items or tokens.
    """
    item_cosines, near_items = nearest(values, items, k)
    token_cosines, near_tokens = nearest(values, tokens, k)
    middle = [(k - 1) // 2, k // 2]
    nowhere = ~values.any(dim=1)
    affinity = item_cosines[:, middle].mean(1) - token_cosines[:, middle].mean(1)
    affinity = affinity.masked_fill(nowhere, torch.nan)
    found = categories.to(values.device)[near_items]
    # For each neighbour, how many of the k have its category, itself included.
    alike = (found.unsqueeze(2) == found.unsqueeze(1)).sum(2).masked_fill(found == NO_CATEGORY, 0)
    most, first = alike.max(1)
    purity = (most / k).masked_fill(nowhere, torch.nan)
    category = found.gather(1, first.unsqueeze(1)).squeeze(1).masked_fill(nowhere, NO_CATEGORY)
    return Neurons(affinity, purity, category, near_items, item_cosines, near_tokens, token_cosines)


def is_clustered(purity: Tensor, tau: float) -> Tensor:
    """Whether purity >= tau (equation 4), with a tolerance for float32 multiples of 1/k."""
    return purity >= tau - 1e-6


def summary(neurons: Sequence[Neurons], tau: float) -> Row:
    """Means and medians over neurons, and the share of clustered neurons (equation 4)."""
    affinity = torch.cat([each.affinity for each in neurons])
    purity = torch.cat([each.purity for each in neurons])
    counted = ~purity.isnan()
    affinity, purity = affinity[counted].double(), purity[counted].double()
    clustered = is_clustered(purity, tau).double()
    return {
        "neurons": int(counted.sum()),
        "affinity": float(affinity.mean()),
        "affinity_median": float(affinity.quantile(0.5)) if len(affinity) else float("nan"),
        "purity": float(purity.mean()),
        "purity_median": float(purity.quantile(0.5)) if len(purity) else float("nan"),
        "clustered": float(clustered.mean()),
    }


def value_vectors(layer: nn.Module, name: str) -> dict[str, Tensor]:
    """Value vectors (m, d), float32, of the FFN ``name`` of a decoder block, by expert."""
    ffn = getattr(layer, name)
    if isinstance(ffn, TwoExpertFFN):
        experts = {ITEM_EXPERT: [ffn.item_expert], TEXT_EXPERT: [ffn.text_expert]}
    elif isinstance(ffn, SwitchFFN):
        experts = {f"expert {number}": [each] for number, each in enumerate(ffn.experts)}
    elif isinstance(ffn, WidenedFFN):
        experts = {FFN: [ffn.ffn, ffn.extra]}
    else:
        experts = {FFN: [ffn]}
    return {
        expert: torch.cat([_output_rows(part) for part in parts])
        for expert, parts in experts.items()
    }


def _output_rows(ffn: nn.Module) -> Tensor:
    """W_out with a row for each neuron, including a low-rank adapter if there is one."""
    layout = ffn_layout(ffn)
    assert layout is not None
    projection = getattr(ffn, layout[1])
    base = getattr(projection, "base_layer", projection)
    weight = base.weight.detach().float()
    for adapter in getattr(projection, "active_adapters", ()):
        weight = weight + projection.get_delta_weight(adapter).detach().float()
    return weight if isinstance(base, Conv1D) else weight.T


def references(catalog_lm: CatalogLM) -> tuple[References, References]:
    """The input embeddings of items and of the backbone's text tokens: E_items and E_text."""
    lm, catalog = catalog_lm.lm, catalog_lm.catalog
    left_out = [0] if catalog_lm.ranks_unseen_items else [0, *catalog.untrained]
    rows = np.setdiff1d(np.arange(catalog.item_num), left_out)
    offset = lm.config.item_token_offset
    names = catalog_lm.tokenizer.convert_ids_to_tokens(list(range(offset)))
    # add_item_tokens has named the ids that the tokenizer does not use.
    kept = [i for i, name in enumerate(names) if not str(name).startswith("<|reserved-")]
    embedding = lm.backbone.get_input_embeddings()
    assert isinstance(embedding.weight, Tensor)
    weight = embedding.weight
    return (
        References("items", torch.from_numpy(rows), lm.item_table),
        References("text tokens", torch.tensor(kept), lambda ids: weight[ids]),
    )
