"""Item tables, which embed items and score them (sections 3.2.1 and B.5)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from recbole_idiomoe.base.errors import DataError

# Length of the random vectors of items without text; other items start with length 1.
_TEXTLESS = 0.1


class ItemTable(nn.Module):
    """Item vectors E (item_num, d), as one table or factorised as W_l W_u (section B.5, item 7).

    The same vectors embed an item and score it. Row 0, the padding item, stays zero, and its score
    is -inf.

    Args:
        item_num: rows, the padding item included.
        hidden_size: d, the width of the model.
        inner_size: columns of W_l, at most d; None for one table.
        std: standard deviation of the elements of E at the start.
    """

    def __init__(
        self, item_num: int, hidden_size: int, inner_size: int | None = None, std: float = 0.02
    ) -> None:
        super().__init__()
        self.item_num = item_num
        self.hidden_size = hidden_size
        self.std = std
        self.rows = nn.Parameter(torch.empty(item_num, inner_size or hidden_size))
        self.up = nn.Parameter(torch.empty(inner_size, hidden_size)) if inner_size else None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw normal rows and an orthonormal W_u, which keeps all lengths and angles."""
        if not getattr(self.rows, "_is_hf_initialized", False):
            spread = math.sqrt(self.hidden_size / self.rows.shape[1])
            init.normal_(self.rows, std=self.std * spread)
            self.rows[0].zero_()
        if self.up is not None:
            init.orthogonal_(self.up)

    def forward(self, items: Tensor) -> Tensor:
        """Embed item ids: (...) -> (..., d)."""
        rows = F.embedding(items, self.rows, padding_idx=0)
        return rows if self.up is None else rows @ self.up

    def logits(self, hidden_states: Tensor) -> Tensor:
        """Scores of all items: (..., d) -> (..., item_num), float32; column 0 is -inf.

        The product is (h W_u^T) W_l^T, without building E. It is never in bfloat16, which would
        round the scores of thousands of items to ties that metrics break by item id.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            inner = hidden_states.float()
            if self.up is not None:
                inner = F.linear(inner, self.up.float())
            scores = F.linear(inner, self.rows.float())
        scores[..., 0] = -torch.inf
        return scores

    def mixed_logits(self, hidden_states: Tensor, items: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of the scores of k items: (N, d), (N, k), (N, k) -> (N,), float32.

        Scores are linear in the items' vectors, so the vectors are summed first, and memory grows
        with N (k + d) alone. An item of weight 0 may be any item, 0 too.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            return (hidden_states.float() * self._mixture(items, weights)).sum(dim=-1)

    def _mixture(self, items: Tensor, weights: Tensor) -> Tensor:
        """Weighted sums of the vectors that score items: (N, k), (N, k) -> (N, d), float32."""
        rows = weighted_sums(self.rows, items, weights)
        return rows if self.up is None else rows @ self.up.float()

    def weight(self) -> Tensor:
        """Build E (item_num, d), float32, for the analysis of section 3.3."""
        rows = self.rows.float()
        return rows if self.up is None else rows @ self.up.float()

    @torch.no_grad()
    def load_vectors(self, vectors: np.ndarray | Tensor, seed: int = 0) -> None:
        """Initialise E from vectors of the items' texts, so that similar texts stay close.

        The vectors are centred over the items that have text and scaled to length 1. They are then
        narrowed to the table's inner width by a PCA without further centring, or widened by a
        random orthonormal map, which keeps all cosines. W_u is random orthonormal. Finally, one
        factor gives the elements of E the standard deviation ``std``. An item without text (a row
        of zeros), or with the mean vector, gets a short random vector.

        Args:
            vectors: (item_num, k), finite; row 0 is ignored.
            seed: seed of all random numbers; the global generators are not advanced.

        Raises:
            DataError: the number of rows is wrong, or a value is not finite.
        """
        directions = text_directions(vectors, self.item_num)
        generator = torch.Generator().manual_seed(seed)
        rows = _fit_width(directions, self.rows.shape[1], generator)
        textless = rows.norm(dim=1) < 1e-6
        textless[0] = False
        noise = torch.randn(int(textless.sum()), rows.shape[1], generator=generator)
        rows[textless] = _TEXTLESS * F.normalize(noise, dim=1)
        rows[0] = 0
        if self.up is not None:
            self.up.copy_(_orthonormal_rows(self.up.shape[0], self.up.shape[1], generator))
        self.rows.copy_(rows)
        if self.item_num > 1 and rows.any():
            self.rows.mul_(self.std / self._element_std())

    def grow(self, item_num: int) -> None:
        """Append rows of zeros until the table has ``item_num`` items."""
        added = self.rows.new_zeros(item_num - self.item_num, self.rows.shape[1])
        trains = self.rows.requires_grad
        self.rows = nn.Parameter(torch.cat((self.rows.detach(), added)), requires_grad=trains)
        self.item_num = item_num

    def compose(self, rows: Tensor, text: Tensor) -> Tensor:
        """Compute the vectors (n, d) of items from their rows (n, w) of the table.

        Tables that use text add vectors ``text`` (n, k) from :func:`text_directions`.
        """
        return rows if self.up is None else rows @ self.up.to(rows)

    @torch.no_grad()
    def place(self, items: Tensor, rows: Tensor, text: Tensor) -> None:
        """Store the parts of items (n,), which are described in :meth:`compose`."""
        self.rows[items] = rows.to(self.rows)

    def _element_std(self) -> float:
        """The standard deviation of E's elements without row 0, computed without building E."""
        rows = self.rows[1:].float()
        if self.up is None:
            return float(rows.std(correction=0))
        up = self.up.float()
        mean = float((rows.mean(0) @ up).mean())
        square = float(((rows.T @ rows) * (up @ up.T)).sum()) / (len(rows) * up.shape[1])
        return math.sqrt(square - mean**2)


class TextAttributeTable(ItemTable):
    """An item table plus a projection of fixed text vectors: ``E + T W`` (section 3.1, b).

    The sum embeds an item and scores it, as in :class:`ItemTable`. W (text_size, d) is trained.
    T (item_num, text_size) is fixed, and is saved with the model.

    Args:
        text_size: columns of T.
    """

    text: Tensor

    def __init__(
        self,
        item_num: int,
        hidden_size: int,
        inner_size: int | None = None,
        std: float = 0.02,
        *,
        text_size: int,
    ) -> None:
        super().__init__(item_num, hidden_size, inner_size, std)
        self.register_buffer("text", torch.zeros(item_num, text_size))
        self.projection = nn.Parameter(torch.empty(text_size, hidden_size))
        init.normal_(self.projection, std=std)

    def reset_parameters(self) -> None:
        super().reset_parameters()
        if hasattr(self, "projection"):  # the base class calls this before it exists
            init.normal_(self.projection, std=self.std)

    def forward(self, items: Tensor) -> Tensor:
        return super().forward(items) + F.embedding(items, self.text) @ self.projection

    def logits(self, hidden_states: Tensor) -> Tensor:
        scores = super().logits(hidden_states)
        with torch.autocast(hidden_states.device.type, enabled=False):
            projected = F.linear(hidden_states.float(), self.projection.float())
            return scores + F.linear(projected, self.text.float())

    def _mixture(self, items: Tensor, weights: Tensor) -> Tensor:
        text = weighted_sums(self.text, items, weights)
        return super()._mixture(items, weights) + text @ self.projection.float()

    def weight(self) -> Tensor:
        return super().weight() + self.text.float() @ self.projection.float()

    def grow(self, item_num: int) -> None:
        added = self.text.new_zeros(item_num - self.item_num, self.text.shape[1])
        self.text = torch.cat((self.text, added))
        super().grow(item_num)

    def compose(self, rows: Tensor, text: Tensor) -> Tensor:
        return super().compose(rows, text) + text @ self.projection.to(text)

    @torch.no_grad()
    def place(self, items: Tensor, rows: Tensor, text: Tensor) -> None:
        super().place(items, rows, text)
        self.text[items] = text.to(self.text)

    @torch.no_grad()
    def load_text(self, vectors: np.ndarray | Tensor) -> None:
        """Set T to :func:`text_directions` of vectors of the items' texts (item_num, text_size).

        Rows have length 1, so that ``T W`` starts with the standard deviation of E.

        Raises:
            DataError: the number of rows is wrong, or a value is not finite.
        """
        self.text.copy_(text_directions(vectors, self.item_num))


def weighted_sums(rows: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums, (N, d) in float32, of the rows (m, d) with the indices ``chosen`` (N, k)."""
    return F.embedding_bag(chosen, rows.float(), per_sample_weights=weights, mode="sum")


def text_directions(
    given: np.ndarray | Tensor, item_num: int, untrained: Sequence[int] = ()
) -> Tensor:
    """Centre text vectors and scale them to length 1: (item_num, k) -> (item_num, k), float32.

    Row 0 and rows of zeros (items without text) give zeros. The mean leaves out ``untrained`` rows.

    Raises:
        DataError: the number of rows is wrong, or a value is not finite.
    """
    vectors = torch.as_tensor(given).detach().to("cpu", torch.float32)
    if vectors.ndim != 2 or vectors.shape[0] != item_num:
        raise DataError(
            f"item vectors of shape {tuple(vectors.shape)} do not fit {item_num} items, the "
            "padding item included."
        )
    if not torch.isfinite(vectors).all():
        raise DataError("item vectors hold values that are not finite.")
    described = vectors.any(dim=1)
    described[0] = False
    if not described.any():
        return torch.zeros_like(vectors)
    averaged = described.clone()
    averaged[list(untrained)] = False
    return centred_directions(vectors, vectors[averaged].mean(0)) * described[:, None]


def centred_directions(vectors: Tensor, mean: Tensor) -> Tensor:
    """Subtract ``mean`` (k,) and scale rows to length 1: (n, k) -> (n, k); zero rows stay zero."""
    centred = (vectors - mean) * vectors.any(dim=1, keepdim=True)
    lengths = centred.norm(dim=1, keepdim=True)
    # A row that equals the mean up to rounding has no direction.
    noise = 1e-5 * vectors.norm(dim=1, keepdim=True)
    return torch.where(lengths > noise, centred / lengths.clamp_min(1e-30), 0.0)


def _fit_width(rows: Tensor, width: int, generator: torch.Generator) -> Tensor:
    """Project rows (n, k) -> (n, width): a PCA if width is less than k, else an isometry."""
    size = rows.shape[1]
    if size == width:
        return rows.clone()
    if size < width:
        return rows @ _orthonormal_rows(size, width, generator)
    axes = torch.linalg.eigh((rows.T @ rows).double()).eigenvectors.flip(1)[:, :width]
    # The sign of an eigenvector is arbitrary; here its largest element is positive.
    largest = axes.gather(0, axes.abs().argmax(0, keepdim=True))
    return rows @ (axes * largest.sign()).float()


def _orthonormal_rows(height: int, width: int, generator: torch.Generator) -> Tensor:
    """A random (height, width) matrix, height at most width, with orthonormal rows."""
    return torch.linalg.qr(torch.randn(width, height, generator=generator)).Q.T
