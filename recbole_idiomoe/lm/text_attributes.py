"""An item table with text in the embeddings instead of the sequence (Text-Attr LLM)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import initialization as init

from recbole_idiomoe.lm.embedding import ItemTable, text_directions, weighted_sums


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
        """Set T from vectors of the items' texts (item_num, text_size).

        Rows are centred and scaled to length 1, so that ``T W`` starts with the standard deviation
        of E. An item without text, and the padding item, have zeros.

        Raises:
            DataError: the number of rows is wrong, or a value is not finite.
        """
        self.text.copy_(text_directions(vectors, self.item_num))
