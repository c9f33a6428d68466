"""What an architecture, a variant of the decoder, consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_idiomoe.lm.configuration import IdiomoeConfig, initial_std
from recbole_idiomoe.lm.embedding import ItemTable, TextAttributeTable


@dataclass(frozen=True)
class Setup:
    """A decoder that an architecture changes in place, and how new modules start."""

    backbone: PreTrainedModel
    config: IdiomoeConfig
    init: str
    """``copy`` or ``random``: the start of modules that item tokens use instead of text tokens'."""
    seed: int


def tied_table(config: IdiomoeConfig) -> ItemTable:
    """An item table whose vectors both embed an item and score it (section 3.2.1)."""
    sizes = (config.item_num, config.hidden_size, config.item_embedding_dim, initial_std(config))
    if config.item_text_size is None:
        return ItemTable(*sizes)
    return TextAttributeTable(*sizes, text_size=config.item_text_size)


@dataclass(frozen=True)
class Architecture:
    """One variant of the decoder, as functions that change and describe it."""

    install: Callable[[Setup], list[nn.Module]]
    """Changes a backbone in place and returns the modules that it adds. They are trained under
    ``freeze=backbone``."""
    options: dict[str, Any] = field(default_factory=dict)
    """Settings of the variant with their defaults; saved in ``config.architecture_args``."""
    plan: Callable[[PreTrainedModel, IdiomoeConfig], dict[str, Any]] = lambda backbone, config: {}
    """Computes sizes from a backbone before installation; saved in ``config.architecture_args``."""
    loss: Callable[[PreTrainedModel, IdiomoeConfig, Tensor, Tensor], Tensor | None] = (
        lambda backbone, config, token_types, counted: None
    )
    """The auxiliary loss, a scalar, from token types (B, T) and the mask of real tokens (B, T)."""
    report: Callable[[PreTrainedModel], dict[str, list[float]]] = lambda backbone: {}
    """Statistics of the training steps since the last report: by name, one number per layer."""
    item_table: Callable[[IdiomoeConfig], ItemTable] = tied_table
    """Makes the item table from a model's configuration."""
