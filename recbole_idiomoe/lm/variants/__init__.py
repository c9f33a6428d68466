"""The architectures by name: IDIOMoE, its controls and the language model baselines."""

from __future__ import annotations

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm.architecture import Architecture
from recbole_idiomoe.lm.configuration import TWO_EXPERT
from recbole_idiomoe.lm.experts import install_experts
from recbole_idiomoe.lm.variants.adapters import COVE, E4SREC, LORA
from recbole_idiomoe.lm.variants.blocks import APPEND_BLOCKS, PREPEND_BLOCKS
from recbole_idiomoe.lm.variants.by_type import MOA, MOT
from recbole_idiomoe.lm.variants.dense import DENSE, WIDE_FFN
from recbole_idiomoe.lm.variants.switch import SWITCH

ARCHITECTURES: dict[str, Architecture] = {
    TWO_EXPERT: Architecture(install_experts),
    "dense": DENSE,
    "wide_ffn": WIDE_FFN,
    "append_blocks": APPEND_BLOCKS,
    "prepend_blocks": PREPEND_BLOCKS,
    "lora": LORA,
    "moa": MOA,
    "mot": MOT,
    "switch": SWITCH,
    "e4srec": E4SREC,
    "cove": COVE,
}


def get_architecture(name: str) -> Architecture:
    """Return the architecture of this name; raise a SettingError if there is none."""
    if name not in ARCHITECTURES:
        raise SettingError(f"architecture={name!r} is not one of {', '.join(ARCHITECTURES)}.")
    return ARCHITECTURES[name]
