"""What can be done to a decoder so that it recommends: IDIOMoE, its controls, its baselines."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.configuration import TWO_EXPERT, IdiomoeConfig, initial_std
from recbole_idiomoe.lm.controls.blocks import install_appended, install_prepended, plan_blocks
from recbole_idiomoe.lm.controls.by_type import install_moa, install_mot
from recbole_idiomoe.lm.controls.dense import install_nothing
from recbole_idiomoe.lm.controls.lora import (
    install_adapters,
    install_ffn_adapters,
    install_lora,
    plan_lora,
)
from recbole_idiomoe.lm.controls.switch import (
    install_switch,
    plan_switch,
    switch_loss,
    switch_report,
)
from recbole_idiomoe.lm.controls.wide_ffn import install_wide_ffn, plan_wide_ffn
from recbole_idiomoe.lm.embedding import ItemTable
from recbole_idiomoe.lm.experts import install_experts
from recbole_idiomoe.lm.routing import TokenRouting
from recbole_idiomoe.lm.text_attributes import TextAttributeTable
from recbole_idiomoe.lm.untied_tables import HashedItemTable, ProjectedItemTable

Installer = Callable[[PreTrainedModel, IdiomoeConfig, TokenRouting, str, int], list[nn.Module]]
Plan = Callable[[PreTrainedModel, IdiomoeConfig], dict[str, Any]]


def no_plan(backbone: PreTrainedModel, config: IdiomoeConfig) -> dict[str, Any]:
    """Of an architecture that the backbone and ``config`` size by themselves."""
    return {}


def no_loss(
    backbone: PreTrainedModel, config: IdiomoeConfig, token_types: Tensor, counted: Tensor
) -> Tensor | None:
    """Of an architecture that learns from the predictions alone."""
    return None


def no_report(backbone: PreTrainedModel) -> dict[str, list[float]]:
    """Of an architecture that has nothing to tell about its training."""
    return {}


def tied_table(config: IdiomoeConfig) -> ItemTable:
    """The item table of most: the same vectors embed an item and score it."""
    sizes = (config.item_num, config.hidden_size, config.item_embedding_dim, initial_std(config))
    if config.item_text_size is None:
        return ItemTable(*sizes)
    return TextAttributeTable(*sizes, text_size=config.item_text_size)


def projected_table(config: IdiomoeConfig) -> ItemTable:
    """E4SRec's: given vectors, as wide as ``item_embedding_dim`` says, and a head of its own."""
    width = config.item_embedding_dim or config.hidden_size
    return ProjectedItemTable(config.item_num, config.hidden_size, width, initial_std(config))


def hashed_table(config: IdiomoeConfig) -> ItemTable:
    """CoVE's: fewer rows than items, and a head of its own."""
    options = config.architecture_args
    return HashedItemTable(
        config.item_num,
        config.hidden_size,
        initial_std(config),
        hashes=options["item_hashes"],
        compression=options["item_compression"],
    )


@dataclass(frozen=True)
class Architecture:
    """One architecture, as functions of a decoder."""

    install: Installer
    """Changes a backbone in place and returns the modules that the backbone did not bring.
    Takes the model's configuration and routing, ``expert_init`` and a seed."""
    options: dict[str, Any]
    """What may be chosen, with its default; kept in ``config.architecture_args``."""
    plan: Plan = no_plan
    """Numbers that follow from a backbone before anything is installed; kept there too."""
    loss: Callable[[PreTrainedModel, IdiomoeConfig, Tensor, Tensor], Tensor | None] = no_loss
    """What is added to the loss, from token types and which tokens count, both (B, T)."""
    report: Callable[[PreTrainedModel], dict[str, list[float]]] = no_report
    """What an epoch of training may tell: by name, one number a layer."""
    item_table: Callable[[IdiomoeConfig], ItemTable] = tied_table
    """The vectors of the items, from a model's configuration."""


_BLOCKS = {"block_start": "random"}
_LORA = {"lora_rank": 16, "lora_alpha": 16}
_HASHES = {"item_hashes": 4, "item_compression": 2}
ARCHITECTURES: dict[str, Architecture] = {
    TWO_EXPERT: Architecture(install_experts, {}),
    "dense": Architecture(install_nothing, {}),
    "wide_ffn": Architecture(install_wide_ffn, {}, plan_wide_ffn),
    "append_blocks": Architecture(install_appended, _BLOCKS, plan_blocks),
    "prepend_blocks": Architecture(install_prepended, _BLOCKS, plan_blocks),
    "lora": Architecture(install_lora, {}, plan_lora),
    "moa": Architecture(install_moa, {}),
    "mot": Architecture(install_mot, {}),
    "switch": Architecture(
        install_switch, {"load_balancing": 0.01}, plan_switch, switch_loss, switch_report
    ),
    "e4srec": Architecture(install_ffn_adapters, _LORA, item_table=projected_table),
    "cove": Architecture(install_adapters, _LORA | _HASHES, item_table=hashed_table),
}


def get_architecture(name: str) -> Architecture:
    """The architecture of this name.

    Raises:
        SettingError: there is none.
    """
    if name not in ARCHITECTURES:
        raise SettingError(f"architecture={name!r} is not one of {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]
