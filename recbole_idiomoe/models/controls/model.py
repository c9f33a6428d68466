"""The paper's controls as RecBole recommenders. Each differs from IDIOMoE in one respect.

They share IDIOMoE's loader, trainer, evaluation, checkpoints and settings. In a control without
IDIOMoE's experts, ``expert_layers`` and ``expert_width`` describe the IDIOMoE that it is compared
with.
"""

from __future__ import annotations

from typing import Any, ClassVar

from recbole_idiomoe.models.language.recommender import IDIOMoE


class ItemLLM(IDIOMoE):
    """Items as tokens of the vocabulary, explicit text, one FFN for both."""

    architecture = "dense"


class IDTransformer(ItemLLM):
    """A decoder with the backbone's sizes and random weights, on item tokens alone."""

    pretrained = False
    forced_settings: ClassVar[dict[str, Any]] = {"use_text": False}


class TextAttrLLM(ItemLLM):
    """Item tokens alone; an item's embedding is a learned row plus its projected text vector."""

    forced_settings: ClassVar[dict[str, Any]] = {
        "use_text": False,
        "item_init": "random",
        "item_text_added": True,
    }


class TitleLLM(ItemLLM):
    """Text alone: items are their titles, ranked by the probability of the whole title."""

    forced_settings: ClassVar[dict[str, Any]] = {
        "item_tokens": "title",
        "use_text": False,
        "item_init": "random",
        "text_smoothing": 0.0,
        "transition_smoothing": 0.0,
    }


class IAM(ItemLLM):
    """Item-aware attention: layers attend within items and between items in turn, one FFN."""

    forced_settings: ClassVar[dict[str, Any]] = {"attention": "intra_inter"}


class WideFFN(IDIOMoE):
    """More neurons in each FFN, with as many parameters as IDIOMoE."""

    architecture = "wide_ffn"


class AppendBlocks(IDIOMoE):
    """Decoder blocks after the last one, with as many parameters as IDIOMoE."""

    architecture = "append_blocks"


class PrependBlocks(IDIOMoE):
    """Decoder blocks before the first one, with as many parameters as IDIOMoE."""

    architecture = "prepend_blocks"


class LoRALLM(IDIOMoE):
    """Low-rank adapters on all linear layers, with as many parameters as IDIOMoE."""

    architecture = "lora"


class MoA(IDIOMoE):
    """Mixture of attention: separate q, k, v, o for each token type, one FFN."""

    architecture = "moa"


class MoT(IDIOMoE):
    """Mixture of transformers: separate q, k, v, o, norms and FFN for each token type."""

    architecture = "mot"


class SwitchRouting(IDIOMoE):
    """Two experts per FFN, chosen by a learned router."""

    architecture = "switch"
