"""WideFFN: IDIOMoE's parameters as more neurons in the one FFN of a layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.controls.budget import check_something_to_match, expert_budget
from recbole_idiomoe.lm.decoder import ExtendedFFN, ffn_layout
from recbole_idiomoe.lm.experts import extend_ffns
from recbole_idiomoe.lm.routing import TokenRouting


class WidenedFFN(ExtendedFFN):
    """An FFN with further neurons, for every token.

    An FFN is the sum of its neurons, so a wider one is the sum of two. The further neurons
    stay a module of their own: they are what is new, and while their value vectors are zero
    the sum is the narrow FFN's output bit for bit, which one wider product would not be.

    Args:
        ffn: the backbone's own FFN, kept as the object it is.
        extra: the further neurons, an FFN of the same input and output width.
        dropout: probability on the output, in training.
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
    """Nothing to compute: as many neurons as the item experts have make as many parameters.

    Raises:
        SettingError: no expert to match.
    """
    check_something_to_match("wide_ffn", expert_budget(backbone, config))
    return {}


def install_wide_ffn(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Widen the FFNs that IDIOMoE would give an item expert by that expert's neurons.

    The further neurons read at random and their value vectors are zero: the start is the
    dense model. Returns them. Raises BackboneError as :func:`install_experts` does.
    """

    def extend(ffn: nn.Module, extra: nn.Module, _: torch.Generator) -> ExtendedFFN:
        zero_output(extra)
        return WidenedFFN(ffn, extra, config.dropout)

    return extend_ffns(backbone, config, "random", seed, extend)


@torch.no_grad()
def zero_output(ffn: nn.Module) -> None:
    """Set an FFN's value vectors, and the bias added to them, to zero."""
    layout = ffn_layout(ffn)
    assert layout is not None
    for parameter in getattr(ffn, layout[1]).parameters():
        parameter.zero_()
