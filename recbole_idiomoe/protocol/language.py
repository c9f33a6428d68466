"""How much of its language a trained model has kept: its likelihood of a text, before and after."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_idiomoe.base.backbones import UNTRAINED
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.backbone import no_progress_bars
from recbole_idiomoe.lm.likelihood import Likelihood, likelihood
from recbole_idiomoe.models.language.catalog_lm import untouched_backbone
from recbole_idiomoe.models.language.options import LanguageModelOptions
from recbole_idiomoe.models.language.recommender import LanguageModelRecommender
from recbole_idiomoe.report.extra_rows import nll_change

logger = logging.getLogger(__name__)

CONTEXT = 512
"""Tokens of a window, where the decoder can read as many. The next begins half a window later, so
that every token is predicted once, and all but the first from at least half a window before it."""


def has_language(model: Any, settings: LanguageModelOptions) -> bool:
    """Whether ``model`` started from a pretrained language model."""
    return (
        isinstance(model, LanguageModelRecommender)
        and model.pretrained
        and settings.backbone != UNTRAINED
    )


def language_kept(
    folder: Path, path: Path, settings: LanguageModelOptions, *, seed: int, device: torch.device
) -> dict[str, Any]:
    """The NLL of the text in ``path`` under a run's best model and under its backbone.

    The model reads text alone, every token through the text path; both compute in float32 and read
    the same windows, so that weights that are equal give a change of exactly 0. The model is read
    from its folder, the backbone from where it came.

    Args:
        folder: a run's.
        path: a file of UTF-8 text.
        settings: its own.
        seed: likewise.
        device: where to compute.

    Returns:
        ``file`` (its name), ``tokenizer`` (whose), ``tokens``, ``context``, and in nats a token
        ``nll``, ``untouched_nll`` and ``nll_change``, the one minus the other.
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
    kept = {
        "file": path.name,
        "tokenizer": tokenizer_name(settings),
        "tokens": after.token_num,
        "context": window_of(backbone),
        "nll": nll,
        "untouched_nll": untouched,
        "nll_change": nll - untouched,
    }
    change = nll_change(nll - untouched)
    logger.info(f"{path.name}: {nll:.4f} nats a token, a change of {change} from the backbone")
    return kept


def text_likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str, device: torch.device
) -> Likelihood:
    """The likelihood of ``text`` under a decoder, which computes on ``device``.

    Args:
        model: left on the CPU; a run's is set to text, :meth:`IdiomoeForCausalLM.language_model`.
    """
    found = likelihood(model.eval().to(device), tokenizer, [text], window_of(model))
    model.cpu()
    return found


def window_of(model: PreTrainedModel) -> int:
    """Tokens of a window that ``model`` reads."""
    return min(CONTEXT, getattr(model.config, "max_position_embeddings", None) or CONTEXT)


def tokenizer_name(settings: LanguageModelOptions) -> str:
    """Whose tokenizer a run has."""
    path = Path(settings.backbone)
    return path.name if path.is_dir() else settings.backbone  # where it lies is its owner's affair
