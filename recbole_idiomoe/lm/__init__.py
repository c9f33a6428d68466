"""The language model, on torch and transformers alone: RecBole need not be installed.

Importing this package registers the model type ``idiomoe`` with ``AutoConfig`` and
``AutoModelForCausalLM``, so that they load a saved folder like any other checkpoint.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from recbole_idiomoe.lm.backbone import load_backbone, with_random_weights
from recbole_idiomoe.lm.configuration import TWO_EXPERT, IdiomoeConfig, expert_placement
from recbole_idiomoe.lm.decoder import decoder_layers
from recbole_idiomoe.lm.embedding import ItemTable
from recbole_idiomoe.lm.experts import TwoExpertFFN, make_item_expert
from recbole_idiomoe.lm.modeling import IdiomoeForCausalLM
from recbole_idiomoe.lm.routing import TokenRouting
from recbole_idiomoe.lm.variants import ARCHITECTURES
from recbole_idiomoe.lm.vocabulary import add_item_tokens, encode_text, item_token, item_tokens

AutoConfig.register(IdiomoeConfig.model_type, IdiomoeConfig, exist_ok=True)
AutoModelForCausalLM.register(IdiomoeConfig, IdiomoeForCausalLM, exist_ok=True)

__all__ = [
    "ARCHITECTURES",
    "TWO_EXPERT",
    "IdiomoeConfig",
    "IdiomoeForCausalLM",
    "ItemTable",
    "TokenRouting",
    "TwoExpertFFN",
    "add_item_tokens",
    "decoder_layers",
    "encode_text",
    "expert_placement",
    "item_token",
    "item_tokens",
    "load_backbone",
    "make_item_expert",
    "with_random_weights",
]
