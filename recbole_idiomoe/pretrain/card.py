"""The model card, which is written next to the weights."""

from __future__ import annotations

import platform
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedTokenizerBase

from recbole_idiomoe.lm.likelihood import Likelihood
from recbole_idiomoe.pretrain.settings import PretrainSettings
from recbole_idiomoe.pretrain.training import Progress

SAMPLE_TOKENS = 40


def samples(
    model: Any, tokenizer: PreTrainedTokenizerBase, prompt: str, seed: int
) -> tuple[str, str]:
    """Two continuations of ``prompt``: greedy, and sampled at temperature 0.8."""
    inputs = tokenizer(prompt, return_tensors="pt").to(model.device)
    options = {"max_new_tokens": SAMPLE_TOKENS, "min_new_tokens": SAMPLE_TOKENS}
    greedy = model.generate(**inputs, **options, do_sample=False)
    torch.manual_seed(seed)
    drawn = model.generate(**inputs, **options, do_sample=True, temperature=0.8, top_k=0)
    return str(tokenizer.decode(greedy[0])), str(tokenizer.decode(drawn[0]))


def model_card(
    settings: PretrainSettings,
    model: Any,
    corpora: Sequence[tuple[str, int, int, int]],
    progress: Progress,
    token_num: int,
    measured: Mapping[str, Likelihood],
    references: Mapping[str, tuple[float, ...]],
    said: tuple[str, str],
    command: Sequence[str],
) -> str:
    """The card as Markdown, with the front matter of the Hugging Face hub.

    Args:
        corpora: name of each file, its number of training texts, of their bytes, and of held-out
            texts.
        token_num: number of tokens in the training text.
        measured: likelihood under the model, by name of the text.
        references: bits per byte of the untrained model, of n-grams and of xz, by name of the text.
        said: the greedy and the sampled continuation of the prompt.
        command: the arguments of the command that made the model.
    """
    config = model.config
    embedding = model.get_input_embeddings().weight.numel()
    rest = model.num_parameters() - embedding
    seen = progress.step * settings.batch_size * settings.context
    device = torch.cuda.get_device_name() if model.device.type == "cuda" else "CPU"
    greedy, drawn = (text.replace("\n", "\n> ") for text in said)
    others = {text: " | ".join(f"{bits:.3f}" for bits in references[text]) for text in measured}
    rows = "\n".join(
        f"| {text} ({found.byte_num:,} bytes) | **{found.bits_per_byte:.3f}** | {others[text]} | "
        f"{found.nll_per_token:.3f} |"
        for text, found in measured.items()
    )
    texts = "\n".join(
        f"| {name} | {text_num:,} | {byte_num:,} | {heldout_num:,} |"
        for name, text_num, byte_num, heldout_num in corpora
    )
    epochs = "\n".join(
        f"| {row['epoch']} | {row['train_nll']:.3f} | {row['heldout_nll']:.3f} |"
        for row in progress.epochs
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
---

# {settings.name or Path(settings.out).resolve().name}

A language model of {config.num_hidden_layers} layers of width {config.hidden_size} in Qwen2's
architecture, {rest:,} parameters besides {embedding:,} of the embedding, a byte-level BPE of
{config.vocab_size:,} tokens, bfloat16. Read the tokenizer with PreTrainedTokenizerFast:
AutoTokenizer makes every Qwen2's tokenizer normalise to NFC, which this one does not.

## Data

{settings.sources or "Given by the one who trained it."}

| file | texts | bytes trained on | texts held out |
|---|---|---|---|
{texts}

## Training

{token_num:,} tokens of text, {seen:,} tokens seen, {progress.seconds:,.0f} seconds on one
{device} with torch {torch.__version__}, transformers {transformers.__version__}, Python
{platform.python_version()}. Next-token loss over packed texts, windows of {settings.context}
tokens, {settings.batch_size} windows a step, AdamW at {settings.learning_rate} after
{settings.warmup_steps} steps of warm-up, then a cosine to 0, weight decay {settings.weight_decay},
seed {settings.seed}.

```
python -m recbole_idiomoe.pretrain {shlex.join(command)}
```

| epoch | training NLL | held-out NLL, nats per token |
|---|---|---|
{epochs}

## How well it predicts

Bits per byte, less is better. Windows of {settings.context} tokens that overlap by half. The
5-gram model of bytes (interpolated, Witten-Bell) was trained on the same text; xz is `xz -9e` of
the measured text itself. NLL is in nats per token.

| text | this model | untrained | 5-gram bytes | xz | NLL |
|---|---|---|---|---|---|
{rows}

## What it says

{SAMPLE_TOKENS} tokens after "{settings.prompt}", unedited. Greedy:

> {greedy}

Drawn at temperature 0.8:

> {drawn}
"""
