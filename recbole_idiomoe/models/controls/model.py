"""The paper's controls as RecBole recommenders: IDIOMoE in all but what each is about.

They share its loader, trainer, evaluation, checkpoints and settings, those that fit one data
set included. Where a control has fewer or more experts than IDIOMoE, or none,
``expert_layers`` and ``expert_width`` say which IDIOMoE it is compared to.
"""

from __future__ import annotations

from typing import Any, ClassVar

from recbole_idiomoe.models.language.recommender import IDIOMoE


class ItemLLM(IDIOMoE):
    """The vocabulary extended by items, explicit text, one FFN for both."""

    architecture = "dense"


class IDTransformer(ItemLLM):
    """A decoder of the backbone's sizes with random weights, on item tokens alone."""

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
    """Text alone: items are their titles, and ranked by the probability of the whole title."""

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
    """IDIOMoE's parameters as more neurons in each FFN."""

    architecture = "wide_ffn"


class AppendBlocks(IDIOMoE):
    """IDIOMoE's parameters as decoder blocks after the last."""

    architecture = "append_blocks"


class PrependBlocks(IDIOMoE):
    """IDIOMoE's parameters as decoder blocks before the first."""

    architecture = "prepend_blocks"


class LoRALLM(IDIOMoE):
    """IDIOMoE's parameters as low-rank adapters on all linear layers."""

    architecture = "lora"


class MoA(IDIOMoE):
    """Mixture of attention: q, k, v, o per token type, one FFN."""

    architecture = "moa"


class MoT(IDIOMoE):
    """Mixture of transformers: q, k, v, o, norms and FFN per token type."""

    architecture = "mot"


class SwitchRouting(IDIOMoE):
    """Two experts per FFN, chosen by a learned router."""

    architecture = "switch"
