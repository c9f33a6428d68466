"""Controls without an item expert: one FFN for text and items, as wide as before or wider."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from recbole_idiomoe.lm.architecture import Architecture, Setup
from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.decoder import ExtendedFFN, output_projection
from recbole_idiomoe.lm.experts import add_ffn_dropout, extend_ffns
from recbole_idiomoe.lm.variants.budget import budget_to_match


def install_dense(setup: Setup) -> list[nn.Module]:
    """Leave the decoder unchanged, except for IDIOMoE's dropout on FFN outputs (section 4.1)."""
    add_ffn_dropout(setup)
    return []


class WidenedFFN(ExtendedFFN):
    """An FFN with additional neurons, used by every token.

    An FFN is the sum of its neurons, so a wider FFN is the sum of two. The additional neurons stay
    a separate module, because they count as new weights, and because the sum equals the output of
    the original FFN bit for bit while their value vectors are zero.

    Args:
        ffn, extra: the backbone's own FFN and the additional neurons, of the same width.
        dropout: dropout probability on the output.
    """

    own = "ffn"

    def __init__(self, ffn: nn.Module, extra: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.ffn = ffn
        self.extra = extra
        self.dropout = dropout

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        outputs = self.ffn(hidden_states) + self.extra(hidden_states)
        return F.dropout(outputs, self.dropout, self.training)


def plan_wide_ffn(backbone: PreTrainedModel, config: IdiomoeConfig) -> dict[str, Any]:
    """Return an empty plan: the item experts' number of neurons gives the same parameter count."""
    budget_to_match(backbone, config)
    return {}


def install_wide_ffn(setup: Setup) -> list[nn.Module]:
    """Widen the FFNs of ``config.expert_layers`` by the neurons of an item expert (section 4.2.1).

    The new neurons have random input weights and zero value vectors, so that the model starts as
    the dense one. Returns the new neurons of each layer.
    """

    def extend(ffn: nn.Module, extra: nn.Module, _: torch.Generator) -> ExtendedFFN:
        for parameter in output_projection(extra).parameters():
            parameter.detach().zero_()
        return WidenedFFN(ffn, extra, setup.config.dropout)

    return extend_ffns(replace(setup, init="random"), extend)


DENSE = Architecture(install_dense)
WIDE_FFN = Architecture(install_wide_ffn, plan=plan_wide_ffn)
