"""Pretraining: from files of text to a model folder for ``from_pretrained``."""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase, Qwen2Config

from recbole_idiomoe.base import files
from recbole_idiomoe.base.errors import CheckpointError, DataError, SettingError
from recbole_idiomoe.lm.backbone import no_progress_bars, random_decoder
from recbole_idiomoe.lm.bundled import SUMS_FILE
from recbole_idiomoe.lm.likelihood import Likelihood, likelihood
from recbole_idiomoe.lm.vocabulary import train_tokenizer
from recbole_idiomoe.pretrain.card import model_card, samples
from recbole_idiomoe.pretrain.corpus import Windows, hold_out, pack, read_texts
from recbole_idiomoe.pretrain.references import ByteNgrams, xz_bits_per_byte
from recbole_idiomoe.pretrain.settings import PretrainSettings
from recbole_idiomoe.pretrain.training import last_checkpoint, train

logger = logging.getLogger(__name__)


def pretrain(settings: PretrainSettings, command: Sequence[str]) -> None:
    """Train a tokenizer and a decoder, measure them, and write them with a model card.

    The folder gets a standard transformers model in bfloat16, the card as ``README.md``, and
    ``SHA256SUMS`` of the other files. Training uses a GPU in bf16 if there is one, else the CPU.

    Args:
        command: the arguments of the command, for the card.

    Raises:
        DataError: the text cannot be read, or is too short.
        SettingError: the sizes do not make a decoder, the folder cannot be written, or there are
            several processes.
        CheckpointError: the folder holds a finished model, or the checkpoint of another run.
    """
    on_gpu = torch.cuda.is_available()
    accelerator = Accelerator(
        cpu=not on_gpu,
        mixed_precision="bf16" if on_gpu else "no",
        dynamo_backend="inductor" if on_gpu and settings.compile else "no",
    )
    if accelerator.num_processes > 1:
        raise SettingError("pretraining runs on one device; start it without accelerate launch.")
    folder = Path(settings.out).expanduser()
    _check_folder(folder)
    trained_on, held_out, corpora = _read(settings)
    measured_on = held_out | {Path(file).name: read_texts(file) for file in settings.test}

    logger.info("%d texts; training a tokenizer", len(trained_on))
    # By lines, since counting words is slow in a text as long as a book; no token spans lines.
    lines = (line for text in trained_on for line in text.splitlines(keepends=True))
    tokenizer = train_tokenizer(lines, settings.vocab_size)
    tokens = pack(tokenizer, trained_on)
    windows = Windows(tokens, settings.context, settings.batch_size, settings.seed)
    decoder = _decoder(tokenizer, settings)

    logger.info("%d tokens; measuring what the model will be compared with", len(tokens))
    decoder.to(accelerator.device)

    def measure(texts: Sequence[str]) -> Likelihood:
        return likelihood(decoder, tokenizer, texts, settings.context)

    ngrams = ByteNgrams(trained_on)
    references = {
        name: (measure(texts).bits_per_byte, ngrams.bits_per_byte(texts), xz_bits_per_byte(texts))
        for name, texts in measured_on.items()
    }
    del ngrams  # as large as the text
    heldout_texts = [text for texts in held_out.values() for text in texts]
    logger.info("training on %s", accelerator.device)

    def heldout_nll() -> float:
        return measure(heldout_texts).nll_per_token

    progress = train(decoder, windows, settings, accelerator, folder, heldout_nll)
    # Measure the weights as they are saved, rounded to bfloat16, but compute in float32.
    for parameter in decoder.parameters():
        parameter.data = parameter.data.bfloat16().float()
    measured = {name: measure(texts) for name, texts in measured_on.items()}
    said = samples(decoder, tokenizer, settings.prompt, settings.seed)
    card = model_card(
        settings, decoder, corpora, progress, len(tokens), measured, references, said, command
    )
    _write(folder, decoder, tokenizer, card)
    for name, found in measured.items():
        print(f"{name}: {found.bits_per_byte:.3f} bits per byte")
    print(f"The model and its card, README.md, are in {folder}")


def _check_folder(folder: Path) -> None:
    """Raise an error if ``folder`` holds a model or cannot be written."""
    finished = (folder / SUMS_FILE).exists()  # written last
    foreign = (folder / "config.json").exists() and not last_checkpoint(folder)
    if finished or foreign:
        raise CheckpointError(f"{folder} already holds a model; give another --out or delete it.")
    if reason := files.unwritable_reason(folder):
        raise SettingError(f"--out: {reason}; give a folder that can be written.")


def _read(settings: PretrainSettings) -> tuple[list[str], dict[str, list[str]], list[Any]]:
    """The training texts, the held-out texts by name, and their numbers for the card."""
    trained_on: list[str] = []
    held_out: dict[str, list[str]] = {}
    corpora = []
    for file in settings.text:
        texts = read_texts(file)
        try:
            kept, held = hold_out(texts, settings.holdout, settings.seed)
        except DataError as error:
            raise DataError(f"{file}: {error}") from error
        name = Path(file).name
        trained_on += kept
        held_out[f"held-out texts of {name}"] = held
        byte_num = sum(len(text.encode()) for text in kept)
        corpora.append((name, len(kept), byte_num, len(held)))
    return trained_on, held_out, corpora


def _decoder(tokenizer: PreTrainedTokenizerBase, settings: PretrainSettings) -> Any:
    """A Qwen2ForCausalLM with random weights."""
    end = tokenizer.eos_token_id
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
        return random_decoder(config, settings.seed)
    except Exception as error:  # the config, torch and the attention raise different errors
        raise SettingError(f"these sizes make no decoder: {error}".splitlines()[0]) from error


def _write(folder: Path, decoder: Any, tokenizer: PreTrainedTokenizerBase, card: str) -> None:
    """Write the finished model into ``folder``, its checksums last, and remove the checkpoints."""
    with files.atomic_folder_update(folder) as temporary, no_progress_bars():
        decoder.to(torch.bfloat16).save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        sums = [
            f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
            for file in sorted(temporary.iterdir())
        ]
        (temporary / "README.md").write_text(card, encoding="utf-8")
        (temporary / SUMS_FILE).write_text("".join(sums), encoding="ascii", newline="\n")
    files.remove_temporary_files(folder)
    for checkpoint in folder.glob("checkpoint-*"):
        shutil.rmtree(checkpoint, ignore_errors=True)
