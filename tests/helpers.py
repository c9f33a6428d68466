"""A small catalogue and settings that keep a run within seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from recbole_idiomoe.data.sequence import NOTHING, TokenSequence
from recbole_idiomoe.data.sequence_builder import SequenceBuilder
from recbole_idiomoe.models.language.options import LanguageModelOptions
from recbole_idiomoe.models.registry import LANGUAGE_MODELS, get_model, get_options

# 213 users of the ml-100k that ships with RecBole.
SMALL_ML_100K: dict[str, Any] = {
    "user_inter_num_interval": "[20,30]",
    "MAX_ITEM_LIST_LENGTH": 20,
    "show_progress": False,
    "eval_batch_size": 256,
    "gpu_id": "",
}
NAMES = ("who", "what", "when")
"""Names of the columns of users, items and times that are not RecBole's."""
OTHER_NAMES: dict[str, Any] = {
    "USER_ID_FIELD": "who",
    "ITEM_ID_FIELD": "what",
    "TIME_FIELD": "when",
    "LABEL_FIELD": "liked",
    "NEG_PREFIX": "not_",
    "LIST_SUFFIX": "_before",
    "ITEM_LIST_LENGTH_FIELD": "how_many",
    "load_col": {"inter": list(NAMES), "item": ["what", "title", "categories"]},
}
TINY_BACKBONE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
TINY_IDIOMOE: dict[str, Any] = SMALL_ML_100K | {
    "backbone": "untrained",
    "backbone_args": TINY_BACKBONE,
    "max_item_text_tokens": 8,
    "epochs": 2,
    "item_warmup": 0.0,
    "learning_rate": 0.003,
}


def sequence_of(
    builder: SequenceBuilder,
    history: np.ndarray,
    with_text: bool = True,
    query: np.ndarray = NOTHING,
) -> TokenSequence:
    """The sequence from which the item after one history is predicted."""
    return builder.build([history], np.array([with_text]), [query])[0]


def training_sequence(
    builder: SequenceBuilder,
    window: np.ndarray,
    with_text: bool = True,
    query: np.ndarray = NOTHING,
) -> TokenSequence:
    """The training sequence of one window."""
    return builder.build_training([window], np.array([with_text]), [query])[0]


def options_of(architecture: str) -> type[LanguageModelOptions]:
    """The options of the first language model that has this architecture."""
    found = (name for name in LANGUAGE_MODELS if get_model(name).architecture == architecture)
    options = get_options(next(found))
    assert issubclass(options, LanguageModelOptions)
    return options


def write_dataset(
    folder: Path,
    interactions: list[tuple[str, str, float]],
    items: list[tuple[str, str, str]] | None = None,
    names: tuple[str, str, str] = ("user_id", "item_id", "timestamp"),
) -> Path:
    """Atomic files of a dataset named after ``folder``; returns the folder's parent."""
    user_id, item_id, time = names
    folder.mkdir(parents=True)
    rows = "".join(f"{user}\t{item}\t{when}\n" for user, item, when in interactions)
    header = f"{user_id}:token\t{item_id}:token\t{time}:float\n"
    (folder / f"{folder.name}.inter").write_text(header + rows, encoding="utf-8")
    if items is not None:
        rows = "".join(f"{item}\t{title}\t{categories}\n" for item, title, categories in items)
        header = f"{item_id}:token\ttitle:token\tcategories:token_seq\n"
        (folder / f"{folder.name}.item").write_text(header + rows, encoding="utf-8")
    return folder.parent


DATASET_SETTINGS: dict[str, Any] = {
    "load_col": {
        "inter": ["user_id", "item_id", "timestamp"],
        "item": ["item_id", "title", "categories"],
    },
    "seq_separator": "|",
    "item_text_fields": {"title": "title", "category": "categories"},
    "user_inter_num_interval": None,
    "item_inter_num_interval": None,
    "show_progress": False,
    "gpu_id": "",
}
