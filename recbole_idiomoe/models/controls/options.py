"""Options of IDIOMoE's controls: what each has beside IDIOMoE's own, or starts otherwise.

A control that is not named here has :class:`IDIOMoEOptions` unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recbole_idiomoe.base.options import NonNegativeFloat
from recbole_idiomoe.models.language.options import IDIOMoEOptions


@dataclass(frozen=True)
class IDTransformerOptions(IDIOMoEOptions):
    """Items start at random; from text vectors (item_init: text) the model is stronger."""

    recipe = {"item_init": "random"}


@dataclass(frozen=True)
class TitleLLMOptions(IDIOMoEOptions):
    """Every title's probability costs too much for a validation after every epoch."""

    recipe = {"eval_step": 0}  # validate after the last one alone
    # IDIOMoE's without item_scale and the soft targets: no item has a token here.
    search_space = {
        "learning_rate": {"low": 0.0001, "high": 0.003, "log": True},
        "weight_decay": {"low": 0.001, "high": 0.3, "log": True},
        "dropout": {"low": 0.0, "high": 0.5, "step": 0.1},
        "epochs": {"low": 4, "high": 24},
    }


@dataclass(frozen=True)
class LoRALLMOptions(IDIOMoEOptions):
    """Adapters are made to train beside frozen weights."""

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
