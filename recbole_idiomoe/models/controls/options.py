"""Options of IDIOMoE's controls; a control that is not named here has ``IDIOMoEOptions``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recbole_idiomoe.base.options import NonNegativeFloat
from recbole_idiomoe.models.language.options import IDIOMoEOptions


@dataclass(frozen=True)
class IDTransformerOptions(IDIOMoEOptions):
    """Items start at random, although they give better results from text vectors."""

    recipe = {"item_init": "random"}


@dataclass(frozen=True)
class TitleLLMOptions(IDIOMoEOptions):
    """Computing every title's probability takes too long for a validation after every epoch."""

    recipe = {"eval_step": 0}  # validate only after the last epoch
    # IDIOMoE's without item_scale and soft targets: items have no tokens of their own.
    search_space = {
        "learning_rate": {"low": 0.0001, "high": 0.003, "log": True},
        "weight_decay": {"low": 0.001, "high": 0.3, "log": True},
        "dropout": {"low": 0.0, "high": 0.5, "step": 0.1},
        "epochs": {"low": 4, "high": 24},
    }


@dataclass(frozen=True)
class LoRALLMOptions(IDIOMoEOptions):
    """Adapters are meant for frozen weights."""

    recipe = {"freeze": "backbone"}


@dataclass(frozen=True)
class BlockOptions(IDIOMoEOptions):
    """Options of AppendBlocks and PrependBlocks."""

    block_start: Literal["random", "identity"] = "random"
    """Start of the added blocks: random weights, or identity (they add nothing at first)
    [section 4.2.1]."""


@dataclass(frozen=True)
class SwitchRoutingOptions(IDIOMoEOptions):
    """Options of SwitchRouting."""

    load_balancing: NonNegativeFloat = 0.01
    """Weight of the load-balancing loss [section 4.2.4]."""
