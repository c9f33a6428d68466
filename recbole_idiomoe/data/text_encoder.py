"""Vectors of the items' texts, which initialise the item table (setting ``item_init: text``).

Items with similar texts then start with similar embeddings, at no cost in ranking.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer

from recbole_idiomoe.base.environment import one_thread
from recbole_idiomoe.base.errors import BackboneError, CheckpointError, SettingError, short_reason
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.lm.vocabulary import disable_word_cache

BATCH_TEXTS = 64
# More texts have more distinct word pairs, and the SVD needs memory for each of them.
FITTED_TEXTS = 2**16


def item_vectors(
    catalog: Catalog,
    encoder: str,
    *,
    dim: int,
    backbone: tuple[Any, Any] | None = None,
    device: torch.device | str = "cpu",
    seed: int = 0,
) -> np.ndarray:
    """Compute one vector per item, float32, shape ``(item_num, k)``; zeros for items without text.

    Encoders are fitted on the texts of trained items alone, so that a new item does not change
    the vectors of the others.

    Args:
        encoder: setting ``text_encoder``: ``tfidf``, ``backbone``, an ``.npz`` file of vectors,
            or the folder or hub name of a sentence encoder.
        dim: largest width k of ``tfidf``; other encoders have their own width.
        backbone: a language model and its tokenizer, for the encoder ``backbone``.

    Raises:
        SettingError: the file of vectors cannot be read, or does not fit the catalogue.
        BackboneError: the sentence encoder cannot be loaded.
    """
    if encoder.endswith(".npz"):
        return read_vectors(Path(encoder), catalog.item_ids, "text_encoder")
    texts = catalog.texts
    kept = [i for i, text in enumerate(texts) if text]
    if not kept:
        return np.zeros((len(texts), 1), dtype=np.float32)
    chosen = [texts[i] for i in kept]
    if encoder == "tfidf":
        trained = set(kept).difference(catalog.untrained)
        found = _tfidf(chosen, [texts[i] for i in sorted(trained)], dim, seed)
    else:
        model = backbone if encoder == "backbone" else _load(encoder)
        assert model is not None
        found = _mean_states(chosen, *model, device)
    vectors = np.zeros((len(texts), found.shape[1]), dtype=np.float32)
    vectors[kept] = found
    return vectors


def changed_encoder(encoder: str) -> CheckpointError:
    """The error for a setting ``text_encoder`` that gives other vectors than in training."""
    return CheckpointError(
        f"text_encoder={encoder!r} no longer gives the vectors that the model was trained on; "
        "restore its file, or the versions that run.json names."
    )


@one_thread()  # semantic IDs are made from these vectors, to the last bit
def _tfidf(texts: list[str], known: list[str], dim: int, seed: int) -> np.ndarray:
    """Latent semantic analysis: TF-IDF of words and word pairs, then a truncated SVD.

    Both are fitted on the ``known`` texts, or on ``FITTED_TEXTS`` random ones if there are more.
    """
    if len(known) > FITTED_TEXTS:
        drawn = np.random.default_rng(seed).choice(len(known), FITTED_TEXTS, replace=False)
        known = [known[i] for i in np.sort(drawn)]
    vectorizer = TfidfVectorizer(
        sublinear_tf=True, ngram_range=(1, 2), min_df=2 if len(known) > 100 else 1
    )
    try:
        known_counts = vectorizer.fit_transform(known)
    except ValueError:  # no text holds a word, only punctuation or symbols
        return np.zeros((len(texts), 1), dtype=np.float32)
    counts = vectorizer.transform(texts)
    components = min(dim, min(known_counts.shape) - 1)
    if components < 1:
        return counts.toarray().astype(np.float32)
    with np.errstate(invalid="ignore"):  # equal texts have no variance to explain
        axes = TruncatedSVD(components, random_state=seed).fit(known_counts)
    return axes.transform(counts).astype(np.float32)


@torch.no_grad()  # not inference_mode, in which weights that move to a GPU could never be trained
def _mean_states(
    texts: list[str], model: Any, tokenizer: Any, device: torch.device | str
) -> np.ndarray:
    """The mean of the last hidden states over each text's tokens, shape ``(texts, d)``."""
    trunk = getattr(model, "base_model", model)
    was_on, was_training = next(trunk.parameters()).device, trunk.training
    trunk.to(device).eval()
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    disable_word_cache(tokenizer)
    padding = {"padding": True, "padding_side": "right", "truncation": True, "max_length": 256}
    vectors = []
    for start in range(0, len(texts), BATCH_TEXTS):
        chosen = texts[start : start + BATCH_TEXTS]
        batch = tokenizer(chosen, return_tensors="pt", **padding).to(device)
        states = trunk(**batch).last_hidden_state.float()
        weights = batch["attention_mask"].unsqueeze(-1)
        vectors.append(((states * weights).sum(1) / weights.sum(1).clamp_min(1)).cpu().numpy())
    trunk.to(was_on).train(was_training)
    return np.concatenate(vectors)


def _load(encoder: str) -> tuple[Any, Any]:
    """Load a sentence encoder and its tokenizer."""
    from transformers import AutoModel, AutoTokenizer

    try:
        # If trust_remote_code is not given, transformers asks at the terminal.
        model = AutoModel.from_pretrained(encoder, trust_remote_code=False, use_safetensors=True)
        tokenizer = AutoTokenizer.from_pretrained(encoder, trust_remote_code=False)
        if model.config.is_encoder_decoder or not tokenizer("words").input_ids:
            raise ValueError
        return model, tokenizer
    except Exception as error:  # a broken file may raise any type
        raise BackboneError(
            f"text_encoder={encoder!r} could not be loaded ({type(error).__name__}); give the "
            "folder of a sentence encoder (safetensors, no code of its own), a hub name that is "
            "reachable, a file of vectors, or text_encoder: tfidf."
        ) from error


def read_vectors(path: Path, item_ids: Sequence[str], setting: str) -> np.ndarray:
    """Read float32 vectors ``(item_num, k)``, matched by item id; items without one get zeros.

    Args:
        path: a file with the arrays ``item_ids``, strings, and ``vectors``, one row for each.
        setting: name of the setting that gave ``path``, for error messages.

    Raises:
        SettingError: the file cannot be read, or holds none of these items.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            names, vectors = archive["item_ids"].astype(str), archive["vectors"].astype(np.float32)
    except Exception as error:  # zipfile and numpy raise various types for a broken file
        raise SettingError(
            f"{setting}={str(path)!r} cannot be read ({short_reason(error)}); an .npz file "
            "with the arrays item_ids (strings) and vectors (one row each) is wanted."
        ) from error
    fits = vectors.ndim == 2 and names.shape == vectors.shape[:1]
    if not fits or not np.isfinite(vectors).all():
        raise SettingError(
            f"{setting}={str(path)!r}: vectors has shape {vectors.shape} for {names.size} "
            "item_ids; finite numbers of shape (items, k) are wanted."
        )
    row_of = {name: row for row, name in enumerate(names)}
    matched = [(i, row_of[name]) for i, name in enumerate(item_ids) if name in row_of]
    if not matched:
        raise SettingError(f"{setting}={str(path)!r} has no item of this catalogue.")
    ours, theirs = map(list, zip(*matched, strict=True))
    found = np.zeros((len(item_ids), vectors.shape[1]), dtype=np.float32)
    found[ours] = vectors[theirs]
    return found
