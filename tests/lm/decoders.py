"""Tiny random decoders, one a family, for the tests."""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForCausalLM,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    PhiConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

VOCAB = 31
ITEMS = 9
LAYERS = 3
# A larger spread than the usual .02, so that wrong routing moves the logits visibly.
_SHARED = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_NO_DROPOUT = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
_GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 16,
    "n_inner": 24,
    "n_layer": LAYERS,
    "n_head": 4,
    "n_positions": 64,
    "initializer_range": 0.2,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "bos_token_id": None,
    "eos_token_id": None,
}


def config(family: str) -> PreTrainedConfig:
    match family:
        case "qwen2":
            return Qwen2Config(**_SHARED, tie_word_embeddings=True)
        case "qwen3":
            return Qwen3Config(**_SHARED, head_dim=4)
        case "llama":
            return LlamaConfig(**_SHARED, mlp_bias=True)
        case "mistral":
            return MistralConfig(**_SHARED, sliding_window=None)
        case "gemma":
            return GemmaConfig(**_SHARED, head_dim=4)
        case "gpt2":
            return GPT2Config(**_GPT2)
        case "gpt_neox":
            return GPTNeoXConfig(**_SHARED, **_NO_DROPOUT)
        case "phi":
            return PhiConfig(**_SHARED)
    raise KeyError(family)


FAMILIES = ("qwen2", "qwen3", "llama", "mistral", "gemma", "gpt2", "gpt_neox", "phi")


def decoder(family: str = "qwen2", seed: int = 0) -> PreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config(family)).eval()


def text_batch(batch: int = 2, length: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, VOCAB, (batch, length), generator=generator)


def mixed_batch(batch: int = 2, length: int = 9, seed: int = 0) -> torch.Tensor:
    """Text with an item at every third position; item ids from 1."""
    tokens = text_batch(batch, length, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    items = torch.randint(1, ITEMS, tokens.shape, generator=generator)
    tokens[:, 1::3] = VOCAB + items[:, 1::3]
    return tokens
