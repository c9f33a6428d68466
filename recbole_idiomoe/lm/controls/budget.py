"""How many parameters IDIOMoE would add to a decoder: what its capacity controls must match."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.decoder import backbone_ffns, decoder_layers, ffn_layout, neuron_count
from recbole_idiomoe.lm.experts import kept_neurons

logger = logging.getLogger(__name__)

TOLERANCE = 0.02


@dataclass(frozen=True)
class Budget:
    """Counts of parameters. The item table, alike in every model, is in none of them."""

    backbone: int
    """The decoder as it came, text embedding and head included."""
    layers: int
    """Its blocks alone."""
    experts: int
    """What item experts add to them."""

    def gap(self, added: int) -> float:
        """How much larger than IDIOMoE a model is that adds ``added``, relative to IDIOMoE.

        Embeddings and head are left out: beside a large vocabulary any two sizes look alike.
        """
        return (added - self.experts) / (self.layers + self.experts)


def parameter_count(module: nn.Module) -> int:
    """Parameters of a module, shared ones once."""
    return sum(parameter.numel() for parameter in module.parameters())


def ffn_size(ffn: nn.Module, neurons: int) -> int:
    """Parameters of an FFN like ``ffn`` with this many neurons."""
    layout = ffn_layout(ffn)
    assert layout is not None
    outer = getattr(ffn, layout[1])
    fixed = 0 if outer.bias is None else outer.bias.numel()
    return fixed + (parameter_count(ffn) - fixed) // neuron_count(ffn) * neurons


def expert_budget(backbone: PreTrainedModel, config: IdiomoeConfig) -> Budget:
    """What IDIOMoE with ``config``'s placement and width would be on ``backbone``.

    Raises:
        BackboneError: a decoder that cannot take experts.
    """
    ffns = backbone_ffns(backbone)
    width = config.expert_width
    experts = sum(
        ffn_size(ffns[layer], kept_neurons(neuron_count(ffns[layer]), width))
        for layer in config.expert_layers
    )
    layers = parameter_count(decoder_layers(backbone))
    return Budget(parameter_count(backbone), layers, experts)


def check_something_to_match(name: str, budget: Budget) -> None:
    """Refuse a capacity control of an IDIOMoE without experts.

    Raises:
        SettingError: ``budget`` holds no expert.
    """
    if not budget.experts:
        raise SettingError(
            f"{name}: expert_layers=none leaves IDIOMoE without experts to match; name layers."
        )


def check_match(name: str, budget: Budget, added: int) -> None:
    """Refuse a control that IDIOMoE's parameter count is too small or too uneven for.

    Raises:
        SettingError: ``added`` parameters miss the count by more than 2%.
    """
    if abs(budget.gap(added)) > TOLERANCE:
        raise SettingError(
            f"{name}: the nearest it comes to the {budget.experts:,} parameters that IDIOMoE adds "
            f"is {added:,}, {budget.gap(added):+.1%} of the layers' where {TOLERANCE:.0%} is the "
            "limit; widen the item experts (expert_width, expert_layers)."
        )


def log_size(name: str, budget: Budget, backbone: PreTrainedModel) -> None:
    """Say how many parameters ``backbone`` has now, and how many IDIOMoE would have."""
    now = parameter_count(backbone)
    logger.info(
        "%s: %s parameters, IDIOMoE %s, item table left out; %+.2f%% in the decoder's layers",
        name,
        f"{now:,}",
        f"{budget.backbone + budget.experts:,}",
        100 * budget.gap(now - budget.backbone),
    )
