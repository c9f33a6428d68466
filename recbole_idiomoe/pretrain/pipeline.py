"""From files of text to a folder that ``from_pretrained`` opens."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from recbole_idiomoe.errors import CheckpointError, SettingError
from recbole_idiomoe.files import folder_written_aside, refusal
from recbole_idiomoe.lm.bundled import SUMS_FILE
from recbole_idiomoe.lm.progress import no_progress_bars
from recbole_idiomoe.lm.tokenizer import train_tokenizer
from recbole_idiomoe.pretrain.card import Corpus, Measured, model_card, samples
from recbole_idiomoe.pretrain.corpus import Windows, hold_out, pack, read_texts
from recbole_idiomoe.pretrain.evaluation import Likelihood, likelihood
from recbole_idiomoe.pretrain.references import ByteNgrams, xz_bits_per_byte
from recbole_idiomoe.pretrain.settings import PretrainSettings
from recbole_idiomoe.pretrain.training import train

logger = logging.getLogger(__name__)


def pretrain(settings: PretrainSettings, command: Sequence[str] = ()) -> Path:
    """Train a tokenizer and a decoder, measure them, write them and their card.

    The folder holds a standard transformers model in bfloat16, ``README.md``, the card, and
    ``SHA256SUMS`` of everything else.

    Args:
        command: what the card says that the model was made with.

    Raises:
        DataError: text that cannot be read or is too little.
        SettingError: sizes that make no decoder, or a folder that cannot be written.
        CheckpointError: the folder holds a finished model, or another run's checkpoint.
    """
    folder = Path(settings.out).expanduser()
    if (folder / "config.json").exists():
        raise CheckpointError(f"{folder} already holds a model; give another --out or delete it.")
    if reason := refusal(folder):
        raise SettingError(f"--out: {reason}; give a folder that can be written.")
    trained_on, held_out, corpora = _read(settings)
    tests = {Path(file).name: read_texts(file) for file in settings.test}

    tokenizer = _tokenizer(folder, trained_on, settings.vocab_size)
    tokens = pack(tokenizer, trained_on)
    logger.info("%d texts are %d tokens", len(trained_on), len(tokens))
    windows = Windows(tokens, settings.context, settings.batch_size, settings.seed)
    decoder = _decoder(tokenizer, settings)

    def measure(texts: Sequence[str]) -> Likelihood:
        return likelihood(decoder, tokenizer, texts, settings.context)

    device = "cuda" if torch.cuda.is_available() else "cpu"
    decoder.to(device)
    measured_on = held_out | tests
    untrained = {name: measure(texts) for name, texts in measured_on.items()}
    heldout_texts = [text for texts in held_out.values() for text in texts]
    progress = train(
        decoder, windows, settings, folder, lambda: measure(heldout_texts).nll_per_token
    )
    # What is measured is what is shipped: the rounded weights.
    decoder.to(torch.bfloat16).float()
    trained = {name: measure(texts) for name, texts in measured_on.items()}
    ngrams = ByteNgrams(trained_on)
    measured = [
        Measured(
            name=name,
            byte_num=trained[name].byte_num,
            trained=trained[name].bits_per_byte,
            untrained=untrained[name].bits_per_byte,
            ngram=ngrams.bits_per_byte(texts),
            xz=xz_bits_per_byte(texts),
            nll_per_token=trained[name].nll_per_token,
        )
        for name, texts in measured_on.items()
    ]
    said = samples(decoder, tokenizer, settings.prompt, settings.seed)
    card = model_card(settings, decoder, corpora, progress, len(tokens), measured, said, command)
    _write(folder, decoder, tokenizer, card)
    print(card)
    return folder


def _read(
    settings: PretrainSettings,
) -> tuple[list[str], dict[str, list[str]], list[Corpus]]:
    """Texts to train on, held-out texts by what they are called, and both for the card."""
    trained_on: list[str] = []
    held_out: dict[str, list[str]] = {}
    corpora = []
    for file in settings.text:
        kept, held = hold_out(read_texts(file), settings.holdout, settings.seed)
        name = Path(file).name
        trained_on += kept
        held_out[f"held-out texts of {name}"] = held
        byte_num = sum(len(text.encode()) for text in kept)
        corpora.append(Corpus(name, len(kept), byte_num, len(held)))
    return trained_on, held_out, corpora


def _tokenizer(folder: Path, texts: Sequence[str], vocab_size: int) -> PreTrainedTokenizerBase:
    """The tokenizer of an earlier start in ``folder``, or a new one."""
    if not (folder / "tokenizer.json").exists():
        # By lines: a text as long as a book is slow to count words in.
        tokenizer = train_tokenizer(
            (line for text in texts for line in text.splitlines(keepends=True)), vocab_size
        )
        with folder_written_aside(folder) as aside:
            tokenizer.save_pretrained(aside)
    # Not AutoTokenizer: for a Qwen2 model it would read the vocabulary into a tokenizer of its own,
    # which normalises.
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _decoder(tokenizer: PreTrainedTokenizerBase, settings: PretrainSettings) -> Any:
    """A Qwen2ForCausalLM with random weights."""
    end = tokenizer.eos_token_id
    torch.manual_seed(settings.seed)
    try:
        config = Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.num_hidden_layers,
            num_attention_heads=settings.num_attention_heads,
            num_key_value_heads=settings.num_key_value_heads,
            max_position_embeddings=settings.context,
            tie_word_embeddings=True,
            pad_token_id=end,
            eos_token_id=end,
        )
        decoder = Qwen2ForCausalLM(config).eval()
        # Heads that do not fit the width show in a forward pass only.
        with torch.no_grad():
            decoder(torch.zeros(1, 2, dtype=torch.long))
    except Exception as error:  # the config, torch and the attention each raise their own kind
        raise SettingError(f"these sizes make no decoder: {error}".splitlines()[0]) from error
    return decoder


def _write(folder: Path, decoder: Any, tokenizer: PreTrainedTokenizerBase, card: str) -> None:
    """Put the finished model into ``folder``, whole, and remove the checkpoints."""
    with folder_written_aside(folder) as aside, no_progress_bars():
        decoder.to(torch.bfloat16).save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        sums = [
            f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
            for file in sorted(aside.iterdir())
        ]
        (aside / SUMS_FILE).write_text("".join(sums), encoding="ascii")
        (aside / "README.md").write_text(card, encoding="utf-8")
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
