"""LoRALLM: low-rank adapters with as many parameters as IDIOMoE's experts (section 4.2.1)."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.routing import TokenRouting
from recbole_idiomoe.lm.variants.adapters import block_projections, install_adapters
from recbole_idiomoe.lm.variants.architecture import Architecture
from recbole_idiomoe.lm.variants.budget import check_match, check_something_to_match, expert_budget


def plan_lora(backbone: PreTrainedModel, config: IdiomoeConfig) -> dict[str, Any]:
    """Choose the ``rank`` that gives the adapters as many parameters as IDIOMoE's item experts.

    All projections of all blocks get the same rank, which may exceed the width of a small one.

    Raises:
        SettingError: IDIOMoE has no expert to match, or its experts are too small for rank 1.
    """
    budget = expert_budget(backbone, config)
    check_something_to_match("lora", budget)
    # A is (rank, in) and B is (out, rank), so each rank costs in + out, the sum of the shape.
    per_rank = sum(sum(module.weight.shape) for module in block_projections(backbone).values())
    rank = max(1, round(budget.experts / per_rank))
    check_match("lora", budget, rank * per_rank)
    return {"rank": rank}


def install_lora(
    backbone: PreTrainedModel, config: IdiomoeConfig, routing: TokenRouting, init: str, seed: int
) -> list[nn.Module]:
    """Adapt all linear maps of the blocks with the planned rank and a scale of 2.

    Returns and raises as :func:`~recbole_idiomoe.lm.variants.adapters.install_adapters`.
    """
    rank = config.architecture_args["rank"]
    return install_adapters(backbone, config, block_projections(backbone), rank, 2 * rank)


LORA = Architecture(install_lora, plan=plan_lora)
