"""WideFFN: a wider FFN with as many parameters as IDIOMoE's experts (section 4.2.1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.decoder import ExtendedFFN, ffn_layout
from recbole_idiomoe.lm.experts import extend_ffns
from recbole_idiomoe.lm.routing import TokenRouting
from recbole_idiomoe.lm.variants.architecture import Architecture
from recbole_idiomoe.lm.variants.budget import check_something_to_match, expert_budget


class WidenedFFN(ExtendedFFN):
    """An FFN with additional neurons, used by every token.

    An FFN is the sum of its neurons, so a wider FFN is the sum of two. The additional neurons stay
    a separate module, because they count as new weights, and because the sum equals the output of
    the original FFN bit for bit while their value vectors are zero.

    Args:
        ffn, extra: the backbone's own FFN and the additional neurons, of the same width.
        dropout: dropout probability on the output.
    """

    def __init__(self, ffn: nn.Module, extra: nn.Module, dropout: float = 0.0) -> None:
        super().__init__()
        self.ffn = ffn
        self.extra = extra
        self.dropout = dropout

    @property
    def original(self) -> nn.Module:
        return self.ffn

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        outputs = self.ffn(hidden_states) + self.extra(hidden_states)
        return F.dropout(outputs, self.dropout, self.training) if self.dropout else outputs


def plan_wide_ffn(backbone: PreTrainedModel, config: IdiomoeConfig) -> dict[str, Any]:
    """Return an empty plan: the item experts' number of neurons gives the same parameter count.

    Raises:
        SettingError: IDIOMoE has no expert to match.
    """
    check_something_to_match("wide_ffn", expert_budget(backbone, config))
    return {}


def install_wide_ffn(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Widen the FFNs of the layers ``config.expert_layers`` by the neurons of an item expert.

    The new neurons have random input weights and zero value vectors, so that the model starts as
    the dense one. Returns the new neurons of each layer. Raises as :func:`extend_ffns`.
    """

    def extend(ffn: nn.Module, extra: nn.Module, _: torch.Generator) -> ExtendedFFN:
        zero_output(extra)
        return WidenedFFN(ffn, extra, config.dropout)

    return extend_ffns(backbone, config, "random", seed, extend)


@torch.no_grad()
def zero_output(ffn: nn.Module) -> None:
    """Set an FFN's output projection and its bias to zero."""
    layout = ffn_layout(ffn)
    assert layout is not None
    for parameter in getattr(ffn, layout[1]).parameters():
        parameter.zero_()


WIDE_FFN = Architecture(install_wide_ffn, plan=plan_wide_ffn)
