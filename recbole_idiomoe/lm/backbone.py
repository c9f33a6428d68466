"""Where a decoder comes from: built here, a local folder, or the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from recbole_idiomoe.errors import BackboneError, SettingError
from recbole_idiomoe.lm.experts import SUPPORTED, decoder_layers
from recbole_idiomoe.lm.vocabulary import clean_text

logger = logging.getLogger(__name__)

BUNDLED = "bundled"
BUNDLED_SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
    "attention_dropout": 0.0,
}
BUNDLED_VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"
# Words with the one mark or blank before them, single digits, runs of marks, blanks.
WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}[\p{L}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+(?!\S)|\s+"
HUB_TIMEOUT = 10.0  # seconds


def load_backbone(
    name: str,
    *,
    corpus: Sequence[str],
    backbone_args: dict[str, Any] | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A decoder in float32, in eval mode, and its tokenizer.

    Args:
        name: ``bundled``, a folder, or a name on the hub.
        corpus: texts that the bundled tokenizer learns from; others ignore it.
        backbone_args: fields of Qwen2Config for ``bundled``.
        seed: of the bundled decoder's weights; the global generator is left as it was.
        trust_remote_code: run model code that comes with the weights.

    Raises:
        SettingError: ``backbone_args`` with a field that Qwen2Config lacks or refuses, or
            for a backbone that brings its own sizes.
        BackboneError: nothing to be found, nothing to be used, or no decoder.
    """
    if name == BUNDLED:
        tokenizer = _train_tokenizer(corpus)
        return _build_decoder(tokenizer, backbone_args or {}, seed), tokenizer
    if backbone_args:
        raise SettingError(
            f"backbone_args={backbone_args} sizes the bundled decoder; backbone={name} brings "
            "its own sizes."
        )
    source, local = _locate(name)
    options = {"trust_remote_code": trust_remote_code, "local_files_only": local}
    config = _attempt(name, "configuration", AutoConfig.from_pretrained, source, **options)
    _check_decoder(name, config)
    backbone, info = _attempt(
        name,
        "model",
        AutoModelForCausalLM.from_pretrained,
        source,
        dtype=torch.float32,
        output_loading_info=True,
        **options,
    )
    if missing := sorted(info["missing_keys"]):
        raise BackboneError(
            f"backbone={name} lacks {len(missing)} weights of a language model, first "
            f"{missing[0]}; take a checkpoint saved as a causal language model."
        )
    decoder_layers(backbone)
    tokenizer = _attempt(name, "tokenizer", AutoTokenizer.from_pretrained, source, **options)
    if not tokenizer("words").input_ids:
        raise BackboneError(
            f"backbone={name} brings no tokenizer that reads text; put its tokenizer.json there."
        )
    _forget_sampling(backbone)
    return backbone.eval(), tokenizer


def _build_decoder(
    tokenizer: PreTrainedTokenizerBase, sizes: dict[str, Any], seed: int
) -> PreTrainedModel:
    """A Qwen2-shaped decoder with random weights."""
    known = {f.name for f in dataclasses.fields(Qwen2Config)}
    derived = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
    for field in sizes:
        if field not in known - derived:
            reason = "follows from the tokenizer" if field in derived else "is no field"
            raise SettingError(f"backbone_args: {field!r} {reason} of transformers.Qwen2Config.")
    sizes = {**BUNDLED_SIZES, **sizes}
    end = tokenizer.eos_token_id
    try:
        config = Qwen2Config(**sizes, vocab_size=len(tokenizer), pad_token_id=end, eos_token_id=end)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            decoder = Qwen2ForCausalLM(config).eval()
        # Heads that do not fit the width show in a forward pass only.
        with torch.no_grad():
            decoder(torch.zeros(1, 2, dtype=torch.long))
    except Exception as error:  # the config, torch and the attention each raise their own kind
        raise SettingError(f"backbone_args={sizes}: {_one_line(error)}") from error
    logger.info("The bundled backbone is not pretrained: it starts from random weights.")
    return decoder


def _train_tokenizer(corpus: Sequence[str]) -> PreTrainedTokenizerBase:
    """Byte-level BPE, at most :data:`BUNDLED_VOCABULARY` tokens; decodes NFC text exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=BUNDLED_VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[END_OF_TEXT],
        show_progress=False,
    )
    tokenizer.train_from_iterator((clean_text(text) for text in corpus), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END_OF_TEXT,
        pad_token=END_OF_TEXT,
        clean_up_tokenization_spaces=False,
    )


def _locate(name: str) -> tuple[str, bool]:
    """Where to load from, and whether without the network.

    One request with a timeout asks the hub first: transformers would try six times, for
    half a minute, before it says that there is no network.
    """
    if name and Path(name).expanduser().is_dir():
        return str(Path(name).expanduser()), True
    if name.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise BackboneError(
            f"backbone={name}: there is no such folder; give a folder that holds config.json, a "
            f"hub name such as Qwen/Qwen2.5-0.5B, or {BUNDLED!r}."
        )
    if isinstance(huggingface_hub.try_to_load_from_cache(name, "config.json"), str):
        return name, True
    try:
        if huggingface_hub.constants.is_offline_mode():
            raise ConnectionError("offline mode is on")
        url = huggingface_hub.hf_hub_url(name, "config.json")
        huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
    except Exception as error:  # the hub client raises its HTTP library's errors too
        raise BackboneError(
            f"backbone={name} is not in the local cache and cannot be had from the hub "
            f"({type(error).__name__}); run 'hf download {name}' where there is a network, give a "
            f"folder, or use {BUNDLED!r}."
        ) from error
    return name, False


def _attempt(name: str, part: str, load: Any, source: str, **options: Any) -> Any:
    """``load(source, **options)``, any failure as one line."""
    try:
        return load(source, **options)
    except Exception as error:  # whatever a broken file or remote code may raise
        raise BackboneError(
            f"backbone={name}: its {part} cannot be loaded: {_one_line(error)}"
        ) from error


def _check_decoder(name: str, config: PreTrainedConfig) -> None:
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    known = remote or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if config.is_encoder_decoder or not known:
        raise BackboneError(
            f"backbone={name} of type {config.model_type!r} is not a decoder-only language model; "
            f"supported are {SUPPORTED}."
        )


def _forget_sampling(backbone: PreTrainedModel) -> None:
    """Keep only the token ids of a generation_config.

    Instruct models bring top_k, top_p and a repetition penalty, which would silently
    prune generation that is meant to be exhaustive.
    """
    old = backbone.generation_config
    assert old is not None
    ids = {f: getattr(old, f, None) for f in ("bos_token_id", "eos_token_id", "pad_token_id")}
    backbone.generation_config = GenerationConfig(**ids)


def _one_line(error: Exception) -> str:
    """The first line of a message, at most 160 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:160]
