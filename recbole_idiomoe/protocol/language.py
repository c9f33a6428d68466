"""How much language a model keeps: the likelihood of a text before and after training."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.backbone import no_progress_bars
from recbole_idiomoe.lm.likelihood import Likelihood, likelihood
from recbole_idiomoe.models.language.catalog_lm import untouched_backbone
from recbole_idiomoe.models.language.options import LanguageModelOptions
from recbole_idiomoe.report.extra_rows import nll_change

logger = logging.getLogger(__name__)

CONTEXT = 512
"""Tokens of a window, if the decoder can read that many. The next window begins half a window
later, so every token is predicted once, and after the first window from at least half a window."""


def language_kept(
    folder: Path, path: Path, settings: LanguageModelOptions, *, seed: int, device: torch.device
) -> dict[str, Any]:
    """The NLL of the text in ``path`` under a run's best model and under its untouched backbone.

    All tokens are text tokens. Both models compute in float32 and read the same windows, so equal
    weights give a change of exactly 0.

    Args:
        folder: the folder of the run, which holds the best model.
        path: a file of UTF-8 text.
        settings: the options of the run, which say where the backbone is loaded from.
        seed: the seed of the run.
        device: where to compute.

    Returns:
        ``file`` (the name of the text file), ``tokenizer`` (the name of its model), ``tokens``,
        ``context``, and in nats per token ``nll``, ``untouched_nll`` and their difference
        ``nll_change``.
    """
    backbone, tokenizer = untouched_backbone(settings, seed)
    with no_progress_bars():
        trained = IdiomoeForCausalLM.from_pretrained(folder)
    for model in (trained.backbone, backbone):
        model.set_attn_implementation(settings.attn_implementation)
    text = path.read_text(encoding="utf-8")
    after = text_likelihood(trained.language_model(), tokenizer, text, device)
    before = text_likelihood(backbone, tokenizer, text, device)
    nll, untouched = after.nll_per_token, before.nll_per_token
    change = nll_change(nll - untouched)
    logger.info(f"{path.name}: {nll:.4f} nats a token, a change of {change} from the backbone")
    return {
        "file": path.name,
        "tokenizer": tokenizer_name(settings),
        "tokens": after.token_num,
        "context": window_of(backbone),
        "nll": nll,
        "untouched_nll": untouched,
        "nll_change": nll - untouched,
    }


def text_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, device: torch.device
) -> Likelihood:
    """The likelihood of ``text`` under a decoder, computed on ``device``.

    Args:
        model: the decoder, which is moved back to the CPU afterwards. For a model with experts,
            pass :meth:`IdiomoeForCausalLM.language_model`.
        tokenizer: the tokenizer of the decoder.
        text: the text to measure.
        device: where to compute.
    """
    found = likelihood(model.eval().to(device), tokenizer, [text], window_of(model))
    model.cpu()
    return found


def window_of(model: PreTrainedModel) -> int:
    """The number of tokens in a window that ``model`` reads, at most :data:`CONTEXT`."""
    return min(CONTEXT, getattr(model.config, "max_position_embeddings", None) or CONTEXT)


def tokenizer_name(settings: LanguageModelOptions) -> str:
    """The name of the model whose tokenizer a run uses, without the folders of a local path."""
    path = Path(settings.backbone)
    return path.name if path.is_dir() else settings.backbone
