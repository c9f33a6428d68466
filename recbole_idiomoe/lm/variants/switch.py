"""SwitchRouting: two experts per FFN and a learned router between them (section 4.2.4)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.architecture import Architecture, Setup
from recbole_idiomoe.lm.configuration import IdiomoeConfig, initial_std
from recbole_idiomoe.lm.decoder import ExtendedFFN, mark_initialized
from recbole_idiomoe.lm.experts import draw_weights, extend_ffns
from recbole_idiomoe.lm.routing import TokenRouting

EXPERTS = 2


class SwitchFFN(ExtendedFFN):
    """Two FFNs and a router that chooses one of them for each token (top 1, as in Switch).

    With p = softmax(W x), the output is 2 max(p) times the output of the chosen FFN. The factor 2
    is not in Switch: with it, an undecided router and two copies of the backbone's FFN give the
    output of that FFN, which the later layers of a pretrained decoder expect.

    Args:
        ffn, other: the backbone's own FFN and the second expert, of the same width.
        router: W, a linear map from the model's width to 2 scores.
        dropout: dropout probability on the output.

    Attributes:
        probabilities: p of the last forward pass in training, (B, T, 2); None after
            :meth:`balance_loss` has used it.
        counts: number of tokens by type (row 0 text, row 1 items) and expert, (2, 2), or None.
    """

    own = "experts.0"

    def __init__(
        self, ffn: nn.Module, other: nn.Module, router: nn.Linear, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.experts = nn.ModuleList((ffn, other))
        self.router = router
        self.dropout = dropout
        self.probabilities: Tensor | None = None
        self.counts: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        # In float32, because bfloat16 would round nearly equal scores to ties.
        with torch.autocast(hidden_states.device.type, enabled=False):
            scores = F.linear(hidden_states.float(), self.router.weight.float())
            probabilities = scores.softmax(-1)
        self.probabilities = probabilities if self.training else None
        gates, chosen = probabilities.max(-1)
        first, second = self.experts
        outputs = TokenRouting(chosen).dispatch(hidden_states, first, second)
        outputs = outputs * (EXPERTS * gates)[..., None].to(outputs.dtype)
        return F.dropout(outputs, self.dropout, self.training)

    def balance_loss(self, token_types: Tensor, counted: Tensor) -> Tensor:
        """Switch's load-balancing loss of the last forward pass, a scalar: ``2 sum_i f_i P_i``.

        f_i is the share of tokens that went to expert i and P_i is the mean of p_i. The loss is 1
        when both experts get half of the tokens. Every call needs a forward pass in training.

        Args:
            token_types: (B, T), 0 text, 1 item; ``counts`` is kept per type.
            counted: (B, T), False for padding, which is left out.
        """
        assert self.probabilities is not None
        probabilities, self.probabilities = self.probabilities, None
        chosen = F.one_hot(probabilities.argmax(-1), EXPERTS) * counted[..., None]
        items = token_types.bool()[..., None]
        counts = torch.stack(((chosen * ~items).sum((0, 1)), (chosen * items).sum((0, 1))))
        self.counts = counts if self.counts is None else self.counts + counts
        total = counted.sum().clamp_min(1)
        shares = counts.sum(0) / total
        means = (probabilities * counted[..., None]).sum((0, 1)) / total
        return EXPERTS * (shares * means).sum()


def plan_switch(backbone: PreTrainedModel, config: IdiomoeConfig) -> dict[str, Any]:
    """Return an empty plan; raise a SettingError if ``load_balancing`` is negative."""
    weight = config.architecture_args["load_balancing"]
    if not weight >= 0:
        raise SettingError(f"load_balancing={weight} must be at least 0.")
    return {}


def install_switch(setup: Setup) -> list[nn.Module]:
    """Give the layers ``config.expert_layers`` IDIOMoE's two experts and a router, in place.

    The second expert has the width and start of IDIOMoE's item expert; the router starts random.
    Returns the second experts, then the routers.
    """
    backbone, config = setup.backbone, setup.config
    routers: list[nn.Module] = []

    def extend(ffn: nn.Module, other: nn.Module, generator: torch.Generator) -> ExtendedFFN:
        router = nn.Linear(config.hidden_size, EXPERTS, bias=False)
        draw_weights(router, initial_std(backbone.config), generator)
        router.to(device=backbone.device, dtype=backbone.dtype)
        routers.append(mark_initialized(router))
        return SwitchFFN(ffn, other, router, config.dropout)

    return extend_ffns(setup, extend) + routers


def switch_loss(
    backbone: PreTrainedModel, config: IdiomoeConfig, token_types: Tensor, counted: Tensor
) -> Tensor | None:
    """``load_balancing`` times the sum of all layers' losses; None after a pass in evaluation."""
    switches = [switch for switch in _switches(backbone) if switch.probabilities is not None]
    losses = [switch.balance_loss(token_types, counted) for switch in switches]
    return (
        config.architecture_args["load_balancing"] * torch.stack(losses).sum() if losses else None
    )


def switch_report(backbone: PreTrainedModel) -> dict[str, list[float]]:
    """Share of the tokens of each type that each expert got, one number per layer with a router.

    The shares cover the training passes since the last report; a type without tokens is left out.
    """
    counts = [s.counts.tolist() for s in _switches(backbone) if s.counts is not None]
    for switch in _switches(backbone):
        switch.counts = None
    return {
        f"load/{kind}/expert_{expert}": [layer[row][expert] / sum(layer[row]) for layer in counts]
        for row, kind in enumerate(("text", "items"))
        for expert in range(EXPERTS)
        if counts and sum(counts[0][row])
    }


def _switches(backbone: PreTrainedModel) -> list[SwitchFFN]:
    return [module for module in backbone.modules() if isinstance(module, SwitchFFN)]


SWITCH = Architecture(
    install_switch, {"load_balancing": 0.01}, plan_switch, switch_loss, switch_report
)
