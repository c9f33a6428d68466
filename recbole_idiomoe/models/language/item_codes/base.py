"""The common interface of all kinds of item codes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_idiomoe.data.batch import SequenceBatch
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.lm import IdiomoeForCausalLM
from recbole_idiomoe.lm.decoder import attention_kernels
from recbole_idiomoe.lm.prefix_tree import PIECE_SIZE, PrefixTree, rank_leaves
from recbole_idiomoe.models.language.options import LanguageModelOptions


class CodeContext(NamedTuple):
    """The items to write and the vocabulary to write them in."""

    catalog: Catalog
    tokenizer: Any
    """The backbone's tokenizer."""
    item_token_offset: int
    """Token id of the first item token; all text tokens are below it."""
    settings: LanguageModelOptions


class ItemCodes(ABC):
    """The code of every item: the tokens that stand for it in a sequence.

    A subclass decides what the tokens are. By default they are item tokens, each with a row in the
    item table, and items are ranked by the log-probability of their whole code, which is computed
    for all items at once on the prefix tree of the codes.

    Args:
        codes: token ids of each item, one array per catalogue row. Each has at least one token,
            and no code begins another one. Row 0, the padding item's, is not ranked.
        names: names of the item tokens in the tokenizer, one per row of the item table.
    """

    one_token_each: ClassVar[bool] = False
    """Whether each item has a single token of its own, so that a new item needs a new row of the
    item table. Otherwise items share tokens."""
    in_text: ClassVar[bool] = False
    """Whether codes are made of text tokens instead of item tokens."""
    from_vectors: ClassVar[bool] = False
    """Whether :meth:`make` needs the vectors of the items' texts."""
    ranking_tokens: ClassVar[int] = PIECE_SIZE
    """Number of tokens that ranking reads after each history."""

    def __init__(self, codes: Sequence[np.ndarray], names: list[str]) -> None:
        self.codes = codes
        self.names = names
        self._tree: PrefixTree | None = None

    @classmethod
    @abstractmethod
    def make(cls, context: CodeContext, vectors: np.ndarray | None = None, seed: int = 0) -> Self:
        """The codes of a new model.

        Args:
            vectors: ``(item_num, k)``, vectors of the items' texts, for codes ``from_vectors``.

        Raises:
            DataError: the catalogue lacks what the codes are made from.
        """

    @classmethod
    def load(cls, context: CodeContext, folder: Path) -> Self:
        """The codes of the model that was saved to ``folder``.

        Raises:
            CheckpointError: what :meth:`save` wrote is missing, broken or of another catalogue.
        """
        return cls.make(context)

    def save(self, folder: Path) -> None:  # noqa: B027, only some codes have anything to save
        """Write into ``folder`` what catalogue, tokenizer and settings do not determine."""

    def with_items(self, context: CodeContext, vectors: Callable[[], np.ndarray]) -> Self:
        """The codes of a catalogue that has new items after the items of this one.

        Args:
            context: has the extended catalogue.
            vectors: computes ``(item_num, k)``, the text vectors of the extended catalogue; called
                only by codes ``from_vectors``.

        Raises:
            CheckpointError: the vectors differ from the ones that the codes were made from.
            DataError: a new item can get no code.
        """
        return self.make(context)

    def token_vectors(self, vectors: np.ndarray | None, catalog: Catalog) -> np.ndarray | None:
        """The vectors that the rows of the item table start from, ``(len(names), k)``.

        Args:
            vectors: ``(item_num, k)``, vectors of the items' texts, if any setting needs them.
        """
        return None

    def untrained_rows(self, catalog: Catalog) -> list[int]:
        """Rows of the item table that occur only in codes of untrained items."""
        return []

    def ranks_untrained(self, settings: LanguageModelOptions) -> bool:
        """Whether a model can rank an item with text that it was not trained on."""
        return True

    def loss(
        self, lm: IdiomoeForCausalLM, hidden_states: Tensor, targets: Tensor, excluded: Tensor
    ) -> Tensor:
        """Mean cross entropy of tokens of codes, a scalar in nats.

        Args:
            hidden_states: ``(N, d)``, the states that predict the targets.
            targets: ``(N,)``, token ids.
            excluded: ``(M,)``, rows of the item table that are no candidates.
        """
        return lm.item_loss(hidden_states, targets - lm.config.item_token_offset, excluded)

    def batch_outputs(self, lm: IdiomoeForCausalLM, batch: SequenceBatch) -> Tensor:
        """The outputs of the model that :meth:`scores` needs, ``(B, ...)``."""
        device = batch.input_ids.device
        if self._tree is None or self._tree.tokens.device != device:
            self._tree = PrefixTree(self.codes[1:], device)
        logits, first_token = self._token_logits(lm)
        with attention_kernels():
            histories = (batch.input_ids, batch.token_types, batch.lengths)
            scores = rank_leaves(lm, self._tree, *histories, logits, first_token)
        return F.pad(scores, (1, 0), value=-torch.inf)

    def scores(self, lm: IdiomoeForCausalLM, outputs: Tensor) -> Tensor:
        """Scores of all items from the ``outputs`` of one or more batches.

        Returns:
            ``(n, item_num)``, float32; the padding item has -inf.
        """
        return outputs

    def _token_logits(self, lm: IdiomoeForCausalLM) -> tuple[Callable[[Tensor], Tensor], int]:
        """Computes the logits of the codes' tokens; and the token id of their column 0."""
        return lm.item_logits, lm.config.item_token_offset
