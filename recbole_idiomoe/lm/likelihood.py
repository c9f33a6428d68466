"""The likelihood of text under a language model, in nats per token and bits per byte."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_idiomoe.base.errors import BackboneError
from recbole_idiomoe.lm.vocabulary import encode_text

LOGITS_AT_ONCE = 1 << 28  # 1 GiB of float32


@dataclass(frozen=True)
class Likelihood:
    """The negative log-likelihood of some texts, in nats, and their length."""

    nll: float
    token_num: int
    byte_num: int

    @property
    def nll_per_token(self) -> float:
        """Nats per predicted token; the end of each text is one."""
        return self.nll / self.token_num

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of UTF-8, which is comparable between tokenizers."""
        return self.nll / math.log(2) / self.byte_num


@torch.no_grad()
def likelihood(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], context: int
) -> Likelihood:
    """Compute the likelihood of texts, each one after an end-of-text token and before another one.

    Every token is predicted once, from all tokens before it or from at least ``context // 2``.

    Args:
        context: most tokens that the model reads at once.

    Raises:
        BackboneError: the tokenizer has no end-of-text token.
    """
    nll, token_num = 0.0, 0
    end = tokenizer.eos_token_id
    if end is None:
        raise BackboneError(
            "the likelihood of a text includes an end-of-text token, but the backbone's tokenizer "
            "has none; set eos_token in tokenizer_config.json."
        )
    windows = [
        window
        for ids in encode_text(tokenizer, list(texts))
        for window in _windows([end, *ids, end], context)
    ]
    windows.sort(key=lambda window: (len(window[0]), window[1]))
    at_once = max(1, LOGITS_AT_ONCE // (context * model.config.vocab_size))
    for start in range(0, len(windows), at_once):
        batch = windows[start : start + at_once]
        input_ids = _padded([ids for ids, _ in batch], end)
        labels = _padded([[-100] * first + ids[first:] for ids, first in batch], -100)
        # Padding is on the right, where causal attention never reads it. Logits are computed only
        # for tokens that no earlier window has predicted.
        kept = input_ids.shape[1] - min(first for _, first in batch) + 1
        logits = model(input_ids.to(model.device), logits_to_keep=kept).logits[:, :-1].float()
        targets = labels[:, 1 - kept :].to(model.device)
        nll += F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum").item()
        token_num += int((targets != -100).sum())
    return Likelihood(nll, token_num, sum(len(text.encode()) for text in texts))


def _padded(rows: list[list[int]], value: int) -> Tensor:
    return pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def _windows(ids: list[int], context: int) -> Iterator[tuple[list[int], int]]:
    """Yield windows of ``ids`` that overlap by half, each with its first position to predict."""
    stride = max(1, context // 2)
    predicted = 1
    for start in range(0, len(ids), stride):
        window = ids[start : start + context]
        yield window, predicted - start
        predicted = start + len(window)
        if predicted == len(ids):
            return
