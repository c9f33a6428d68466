"""Loading a decoder and its tokenizer from this package, a folder, or the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
import transformers.utils.logging
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
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, has_file

from recbole_idiomoe.base.backbones import BUNDLED, UNTRAINED
from recbole_idiomoe.base.errors import BackboneError, SettingError
from recbole_idiomoe.base.locks import loading
from recbole_idiomoe.lm.bundled import verified_folder
from recbole_idiomoe.lm.decoder import SUPPORTED, decoder_layers

logger = logging.getLogger(__name__)

HUB_TIMEOUT = 10.0  # seconds


@loading()
def load_backbone(
    name: str,
    *,
    backbone_args: dict[str, Any] | None = None,
    seed: int = 0,
    trust_remote_code: bool = False,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load a decoder, in float32 and in eval mode, and its tokenizer.

    Args:
        name: ``bundled`` for idiom-mini, the pretrained decoder of this package; ``untrained`` for
            the same architecture with random weights; a folder; or a name on the hub.
        backbone_args: fields of Qwen2Config that differ from idiom-mini's, for ``untrained``.
        seed: seed of the weights of ``untrained``; the global generator is not advanced.
        trust_remote_code: whether to run model code that comes with the weights.

    Raises:
        SettingError: ``backbone_args`` has a field that Qwen2Config lacks or refuses, or the
            backbone is not ``untrained``.
        BackboneError: the backbone is not found or not a decoder, has pickled weights, lacks
            weights, or has no usable tokenizer.
    """
    if name == UNTRAINED:
        folder = verified_folder(weights=False)
        tokenizer = _attempt(name, "tokenizer", _load_tokenizer, str(folder))
        return _build_decoder(folder, backbone_args or {}, seed), tokenizer
    if backbone_args:
        raise SettingError(
            f"backbone_args={backbone_args} sizes a decoder with random weights; backbone={name} "
            f"brings its own sizes: leave backbone_args out, or give backbone={UNTRAINED}."
        )
    source, local = (str(verified_folder()), True) if name == BUNDLED else _locate(name)
    options = {"trust_remote_code": trust_remote_code, "local_files_only": local}
    config = _attempt(name, "configuration", AutoConfig.from_pretrained, source, **options)
    _check_decoder(name, config)
    files = _attempt(name, "model", _weight_files, source, config=config, local_files_only=local)
    _check_safetensors(name, files)
    safely = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    with no_progress_bars() if local else nullcontext():
        load = AutoModelForCausalLM.from_pretrained
        backbone, info = _attempt(name, "model", load, source, **safely, **options)
    if missing := sorted(info["missing_keys"]):
        raise BackboneError(
            f"backbone={name} lacks {len(missing)} weights of a language model, first "
            f"{missing[0]}; take a checkpoint saved as a causal language model."
        )
    decoder_layers(backbone)
    tokenizer = _attempt(name, "tokenizer", _load_tokenizer, source, **options)
    if not tokenizer("words").input_ids:
        raise BackboneError(
            f"backbone={name} brings no tokenizer that reads text; put its tokenizer.json there."
        )
    # Instruct models come with top_k, top_p and a repetition penalty, which would silently prune an
    # exhaustive search, so only the special tokens are kept.
    ids = ("bos_token_id", "eos_token_id", "pad_token_id")
    given = {field: getattr(backbone.generation_config, field, None) for field in ids}
    backbone.generation_config = GenerationConfig(**given)
    backbone.config.name_or_path = name  # the given name instead of a path on this machine
    return backbone.eval(), tokenizer


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Hide transformers' progress bars inside the block, for weights on a local disk."""
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()


def random_decoder(config: Qwen2Config, seed: int) -> Qwen2ForCausalLM:
    """Build a decoder with random weights, in eval mode; the global generator is not advanced.

    Raises:
        Exception: the sizes do not fit together; transformers and torch raise various types.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = Qwen2ForCausalLM(config).eval()
    # Only a forward pass fails if the heads do not fit the width.
    with torch.no_grad():
        decoder(torch.zeros(1, 2, dtype=torch.long))
    return decoder


def with_random_weights(backbone: PreTrainedModel, seed: int) -> PreTrainedModel:
    """Build a decoder like ``backbone`` with random weights, in float32 and in eval mode.

    The global generator is not advanced.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        decoder = type(backbone)(backbone.config).eval()
    decoder.generation_config = backbone.generation_config
    return decoder


def _load_tokenizer(source: str, **options: Any) -> PreTrainedTokenizerBase:
    """Load a tokenizer; one without a normaliser stays without, as :func:`train_tokenizer` made it.

    AutoTokenizer turns the tokenizer of every Qwen2 into a Qwen2Tokenizer, which normalises to NFC.
    """
    file = Path(source) / "tokenizer.json"
    if file.exists() and json.loads(file.read_text(encoding="utf-8"))["normalizer"] is None:
        return PreTrainedTokenizerFast.from_pretrained(source, local_files_only=True)
    return AutoTokenizer.from_pretrained(source, **options)


def _build_decoder(folder: Path, sizes: dict[str, Any], seed: int) -> PreTrainedModel:
    """Build a decoder with random weights from ``folder``'s configuration, changed by ``sizes``."""
    known = {f.name for f in dataclasses.fields(Qwen2Config)}
    derived = {"vocab_size", "pad_token_id", "bos_token_id", "eos_token_id"}
    for field in sizes:
        if field not in known - derived:
            reason = "follows from the tokenizer" if field in derived else "is no field"
            raise SettingError(f"backbone_args: {field!r} {reason} of transformers.Qwen2Config.")
    bundled = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    # Qwen2Config derives layer_types from the number of layers; dtype is that of the weights file.
    own = {key: bundled[key] for key in known & bundled.keys() - {"layer_types", "dtype"}}
    try:
        decoder = random_decoder(Qwen2Config(**{**own, **sizes}), seed)
    except Exception as error:  # the config, torch and the attention raise various types
        raise SettingError(f"backbone_args={sizes}: {_one_line(error)}") from error
    logger.info("backbone=%s is not pretrained: it starts from random weights.", UNTRAINED)
    return decoder


def _locate(name: str) -> tuple[str, bool]:
    """Return where to load from, a folder or a hub name, and whether that needs no network."""
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
        # Once and with a timeout; without a network, transformers would try for half a minute.
        url = huggingface_hub.hf_hub_url(name, "config.json")
        huggingface_hub.get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
    except Exception as error:  # the hub client raises errors of its HTTP library too
        raise BackboneError(
            f"backbone={name} is not in the local cache and cannot be had from the hub "
            f"({type(error).__name__}); run 'hf download {name}' where there is a network, give a "
            f"folder, or use {BUNDLED!r}."
        ) from error
    return name, False


def _attempt(name: str, part: str, load: Any, source: str, **options: Any) -> Any:
    """Return ``load(source, **options)``; turn any failure into a one-line BackboneError."""
    try:
        return load(source, **options)
    except Exception as error:  # a broken file or remote code may raise any type
        if "trust_remote_code" in str(error):
            raise BackboneError(
                f"backbone={name}: its {part} is code of its own, which is not run; read it, and "
                "where you trust it set trust_remote_code: True."
            ) from error
        raise BackboneError(
            f"backbone={name}: its {part} cannot be loaded: {_one_line(error)}"
        ) from error


def _check_decoder(name: str, config: PreTrainedConfig) -> None:
    """Raise a BackboneError if the configuration is not that of a decoder-only language model."""
    is_remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    is_known = is_remote or type(config) in MODEL_FOR_CAUSAL_LM_MAPPING
    if config.is_encoder_decoder or not is_known:
        raise BackboneError(
            f"backbone={name} of type {config.model_type!r} is not a decoder-only language model; "
            f"supported are {SUPPORTED}."
        )


def _weight_files(source: str, *, config: PreTrainedConfig, local_files_only: bool) -> list[str]:
    """Names of the files that transformers would read as safetensors."""
    chosen = getattr(config, "transformers_weights", None)
    for name in [chosen] if chosen else [SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME]:
        if has_file(source, name, local_files_only=local_files_only):
            if not name.endswith(".index.json"):
                return [name]
            index = cached_file(source, name, local_files_only=local_files_only)
            assert index is not None
            return sorted(set(json.loads(Path(index).read_bytes())["weight_map"].values()))
    return []


def _check_safetensors(name: str, files: list[str]) -> None:
    """Raise a BackboneError if any weights are pickled, listed in a safetensors index or not.

    This comes before transformers loads them, because it would ask the hub to convert pickled
    weights, which opens a public pull request.
    """
    if not files or not all(file.endswith(".safetensors") for file in files):
        raise BackboneError(
            f"backbone={name} brings no safetensors weights; pickled ones (pytorch_model.bin) can "
            "run code and are not read. Where they are trusted, "
            "AutoModelForCausalLM.from_pretrained(NAME).save_pretrained(FOLDER) converts them; "
            "copy the tokenizer's files there too and give backbone=FOLDER."
        )


def _one_line(error: Exception) -> str:
    """The error's type and the first line of its message, at most 160 characters."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:160]
