"""Counts of the parameters that IDIOMoE adds; capacity controls match them (section 4.2.1)."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.decoder import (
    backbone_ffns,
    decoder_layers,
    neuron_count,
    output_projection,
)
from recbole_idiomoe.lm.experts import kept_neurons

logger = logging.getLogger(__name__)

TOLERANCE = 0.02


@dataclass(frozen=True)
class Budget:
    """Parameter counts of an IDIOMoE model, without the item table, which all variants share."""

    backbone: int
    """The unchanged decoder, text embedding and head included."""
    layers: int
    """The decoder's blocks alone."""
    experts: int
    """The item experts that IDIOMoE adds."""

    def gap(self, added: int) -> float:
        """Relative size difference to IDIOMoE of a model that adds ``added`` parameters.

        Embeddings and head are not counted, because a large vocabulary would hide the difference.
        """
        return (added - self.experts) / (self.layers + self.experts)


def parameter_count(module: nn.Module) -> int:
    """Number of parameters of a module; shared parameters count once."""
    return sum(parameter.numel() for parameter in module.parameters())


def ffn_size(ffn: nn.Module, neurons: int) -> int:
    """Number of parameters of an FFN like ``ffn`` but with ``neurons`` neurons."""
    bias = output_projection(ffn).bias
    fixed = 0 if bias is None else bias.numel()
    return fixed + (parameter_count(ffn) - fixed) // neuron_count(ffn) * neurons


def expert_budget(backbone: PreTrainedModel, config: IdiomoeConfig) -> Budget:
    """Parameter counts of IDIOMoE on ``backbone`` with the placement and width in ``config``."""
    ffns = backbone_ffns(backbone)
    experts = sum(
        ffn_size(ffns[layer], kept_neurons(neuron_count(ffns[layer]), config.expert_width))
        for layer in config.expert_layers
    )
    return Budget(parameter_count(backbone), parameter_count(decoder_layers(backbone)), experts)


def budget_to_match(backbone: PreTrainedModel, config: IdiomoeConfig) -> Budget:
    """The :func:`expert_budget`; a SettingError if it has no experts that a control can match."""
    budget = expert_budget(backbone, config)
    if not budget.experts:
        raise SettingError(
            f"{config.architecture}: expert_layers=none leaves IDIOMoE without experts to match; "
            "name layers."
        )
    return budget


def check_match(name: str, budget: Budget, added: int) -> None:
    """Raise a SettingError if ``added`` parameters differ from IDIOMoE by over 2% of its layers."""
    if abs(budget.gap(added)) > TOLERANCE:
        raise SettingError(
            f"{name}: its nearest size adds {added:,} parameters instead of the {budget.experts:,} "
            f"parameters that IDIOMoE adds, {budget.gap(added):+.1%} of the layers; the limit is "
            f"{TOLERANCE:.0%}; widen the item experts (expert_width, expert_layers)."
        )


def log_size(name: str, budget: Budget, backbone: PreTrainedModel) -> None:
    """Log the number of parameters of ``backbone``, now changed, and of IDIOMoE."""
    now = parameter_count(backbone)
    idiomoe = budget.backbone + budget.experts
    logger.info(
        f"{name}: {now:,} parameters, IDIOMoE {idiomoe:,}, item table left out; "
        f"{100 * budget.gap(now - budget.backbone):+.2f}% in the decoder's layers"
    )
