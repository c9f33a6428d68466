"""The input embedding of text tokens and items as one module."""

from __future__ import annotations

import weakref
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.embedding import ItemTable
from recbole_idiomoe.lm.routing import TokenRouting


class HybridEmbedding(nn.Module):
    """Embeds hybrid tokens: text by the backbone's embedding, items by the item table.

    It has no weights of its own, so that a saved model names each weight once.

    Args:
        model: the model whose embedding and table are used, whichever it has at the time.
    """

    def __init__(self, model: HasHybridEmbedding) -> None:
        super().__init__()
        self.serve(model)

    def serve(self, model: HasHybridEmbedding) -> None:
        """Use the embedding and the table of ``model``."""
        # Weakly, so that a model is freed at once, and is no submodule of its own part.
        self._model = weakref.ref(model)

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()  # type: ignore[assignment]
        del state["_model"]
        return state

    def _parts(self) -> tuple[Any, ItemTable, IdiomoeConfig]:
        model = self._model()
        assert model is not None, "the model of this embedding is gone"
        return model.backbone.get_input_embeddings(), model.item_table, model.config

    @property
    def weight(self) -> Tensor:
        """The embeddings of all tokens of the hybrid vocabulary, computed anew: (vocab_size, d)."""
        _, table, config = self._parts()
        return self(torch.arange(config.vocab_size, device=table.rows.device))

    def forward(self, input_ids: Tensor, routing: TokenRouting | None = None) -> Tensor:
        """Embed tokens: (...) -> (..., d).

        Args:
            routing: the types of ``input_ids`` (B, T), if these are known; the ids imply them.

        Raises:
            IndexError: a token is outside the vocabulary of its type.
        """
        text_embedding, table, config = self._parts()
        offset = config.item_token_offset
        # Gemma multiplies embeddings, and not the tied head, by sqrt(d).
        scale = getattr(text_embedding, "embed_scale", 1.0) * config.item_input_factor

        def item_embedding(tokens: Tensor) -> Tensor:
            return (table(tokens - offset) * scale).to(text_embedding.weight.dtype)

        if routing is not None:
            return routing.dispatch(input_ids, text_embedding, item_embedding)
        rows = input_ids.reshape(1, -1)
        embedded = TokenRouting(rows >= offset).dispatch(rows, text_embedding, item_embedding)
        return embedded.view(*input_ids.shape, -1)


class HasHybridEmbedding:
    """What transformers asks of a model about its embedding and its head."""

    config: IdiomoeConfig
    backbone: PreTrainedModel
    item_table: ItemTable
    embedding: HybridEmbedding

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[misc]
        self.embedding.serve(self)  # a copy's embedding is that of the copy

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of all tokens, text and items: (...) -> (..., d).

        Text alone is embedded by ``backbone.get_input_embeddings()``, items by ``item_table``.
        """
        return self.embedding

    def get_output_embeddings(self) -> nn.Module:
        """The head of text tokens; the head of items is ``item_table``."""
        return self.backbone.get_output_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> NoReturn:
        """Raise a SettingError, because text and items have an embedding each."""
        raise SettingError(
            "the embedding of text and items cannot be replaced as one; replace that of text with "
            "backbone.set_input_embeddings(), and item vectors with item_table.load_vectors()."
        )

    def set_output_embeddings(self, new_embeddings: nn.Module) -> NoReturn:
        """Raise a SettingError, because text and items have a head each."""
        raise SettingError(
            "the head of text and items cannot be replaced as one; replace that of text with "
            "backbone.set_output_embeddings()."
        )

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> Any:
        """Return the embedding if it has the wanted size already, as after loading a tokenizer.

        Raises:
            SettingError: the size differs, because items follow the text tokens without a gap.
        """
        size = wanted = self.config.vocab_size
        if new_num_tokens is not None:
            wanted = new_num_tokens
        if pad_to_multiple_of:
            wanted = -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
        if wanted != size:
            raise SettingError(
                f"the embedding has {size} tokens, text and items, and cannot be resized to "
                f"{wanted}; add items with Recommender.add_items(), text tokens to the backbone "
                "before IdiomoeForCausalLM.from_backbone()."
            )
        return self.embedding
