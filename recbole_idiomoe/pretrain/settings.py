"""The settings of ``python -m recbole_idiomoe.pretrain``."""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, field
from pathlib import Path
from typing import Any

from recbole_idiomoe.base.errors import SettingError

_AT_LEAST_0 = ("weight_decay", "warmup_steps", "seed")
_OWN_LIMITS = ("holdout", "vocab_size", "context")


def _setting(default: Any, help: str, metavar: str = "N") -> Any:
    """A field for HfArgumentParser, which passes its metadata to ``add_argument``."""
    metadata = {"help": help} if isinstance(default, bool) else {"help": help, "metavar": metavar}
    return field(default=default, metadata=metadata)


def _files(help: str, **options: Any) -> Any:
    return field(metadata={"help": help, "metavar": "FILE", "action": "extend"}, **options)


@dataclass(frozen=True)
class PretrainSettings:
    """Input text, output folder, sizes of the model, and settings of the training.

    Raises:
        SettingError: a value is out of range, or two values do not fit together.
    """

    text: list[str] = _files(
        "files to learn from: UTF-8, plain or .xz or .gz; texts in a file are separated by a line "
        "that holds the character U+001E"
    )
    out: str = _setting(
        MISSING, "folder for the model; an interrupted run goes on there", metavar="FOLDER"
    )
    name: str = _setting("", "name on the model card; empty: the folder's", "TEXT")
    sources: str = _setting("", "one line for the card: what the text is, its licence", "TEXT")
    test: list[str] = _files(
        "files to measure bits per byte on, beside the held-out texts", default_factory=list
    )
    holdout: float = _setting(0.01, "share of the texts of each file that is never trained on")
    prompt: str = _setting(
        "The old man looked out of the window and", "what the card's samples go on from", "TEXT"
    )

    vocab_size: int = _setting(16384, "tokens of the byte-level BPE")
    hidden_size: int = _setting(256, "width of the decoder")
    intermediate_size: int = _setting(512, "neurons of an FFN")
    num_hidden_layers: int = _setting(6, "layers")
    num_attention_heads: int = _setting(4, "query heads")
    num_key_value_heads: int = _setting(2, "key and value heads")
    context: int = _setting(1024, "tokens of a training window")

    epochs: float = _setting(18.0, "passes over the text")
    batch_size: int = _setting(64, "windows in an optimizer step")
    micro_batch_size: int = _setting(16, "windows in a forward pass; the gradient adds up")
    learning_rate: float = _setting(4e-3, "highest rate of AdamW; a cosine leads to 0")
    warmup_steps: int = _setting(200, "steps of linear warm-up")
    weight_decay: float = _setting(0.1, "of matrices; norms, biases and embeddings have none")
    seed: int = _setting(2020, "of the weights, the held-out texts and the order")
    save_every: int = _setting(1000, "steps between checkpoints to resume from")
    compile: bool = _setting(True, "compile the forward pass on a GPU")

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, str | list | bool) or name in _OWN_LIMITS:
                continue
            if not 0 <= value < math.inf or (value == 0 and name not in _AT_LEAST_0):
                limit = "at least" if name in _AT_LEAST_0 else "above"
                raise SettingError(f"--{name}={value} must be {limit} 0.")
        if not self.prompt:
            raise SettingError("--prompt is empty; samples need words to go on from.")
        for option, files in (("text", self.text), ("test", self.test)):
            names = [Path(file).name for file in files]
            if twice := [name for name in names if names.count(name) > 1]:
                raise SettingError(
                    f"--{option} names two files {twice[0]}, which the card could not tell "
                    "apart; rename one."
                )
        if not 0 < self.holdout < 1:
            raise SettingError(f"--holdout={self.holdout} must be between 0 and 1.")
        if not 257 <= self.vocab_size <= 65536:
            raise SettingError(
                f"--vocab_size={self.vocab_size} must be between 257, the bytes and the end of "
                "text, and 65536."
            )
        if self.context < 2:
            raise SettingError(f"--context={self.context} must be at least 2.")
