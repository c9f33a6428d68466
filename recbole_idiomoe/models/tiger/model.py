"""TIGER: generative retrieval of semantic IDs.

"Recommender Systems with Generative Retrieval" (Rajput et al., NeurIPS 2023), sections 3 and 4
and the appendix. Its authors published no code. They print HR@10/NDCG@10 Beauty .0648/.0384,
Sports .0400/.0225, Toys .0712/.0432, with leave-one-out and the whole catalogue as here, but from
a beam search. The paper does not say whether items that a user had are masked; here they are.

Differences from the paper:

- Every item is ranked, by the exact log-probability of its code. In the paper a beam search finds
  the likeliest codes, and codes that belong to no item are dropped.
- Codes are the semantic IDs of :mod:`recbole_idiomoe.data.semantic_ids`: a residual quantiser of
  the text vectors, which the setting ``text_encoder`` chooses. In the paper vectors come from
  Sentence-T5, and the quantiser is trained inside an autoencoder (RQ-VAE).
- The token that distinguishes items with the same semantic ID is left out if no two items share
  it. In the paper such items have the token 0, which the decoder learns from the other three.
- Adam has one learning rate with early stopping. In the paper the rate falls with the root of the
  steps: 100,000 on Toys and 200,000 on the other data sets.

A row of training data is one target with its history, as in the paper's sliding windows: every
training interaction except a user's first is the target of one row.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import nn
from torch.nn import functional
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5DenseActDense, T5LayerNorm

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.catalog import read_catalog
from recbole_idiomoe.data.text_encoder import item_vectors
from recbole_idiomoe.lm.prefix_tree import PrefixTree
from recbole_idiomoe.models.language.catalog_lm import untouched_backbone
from recbole_idiomoe.models.language.item_codes.semantic import semantic_ids_of
from recbole_idiomoe.models.tiger.options import TIGEROptions
from recbole_idiomoe.models.tiger.t5_packing import encode
from recbole_idiomoe.models.tiger.t5_ranking import code_tree, rank_leaves

PADDING = 0
_NO_LABEL = -100
# Width of TF-IDF vectors: that of the bundled decoder, so that IDIOMoE has the same semantic IDs.
_TEXT_WIDTH = 256


@dataclass(frozen=True, eq=False)
class CodeTable:
    """The code of every item as a row of tokens; codes may have different lengths."""

    tokens: np.ndarray
    """``(item_num, longest)``, int64: tokens from 1, padded with 0 on the right. Row 0, the padding
    item's, is zero."""
    token_num: int
    """Number of tokens, with the padding token and unused ones."""

    @classmethod
    def of(
        cls, codes: Sequence[Sequence[int] | np.ndarray], token_num: int | None = None
    ) -> CodeTable:
        """The table of the given codes.

        Args:
            codes: tokens of each item, from 1, one code per catalogue row; the code of row 0, the
                padding item's, is empty. Items with the same code get the same score.
            token_num: number of tokens with padding; None: the largest token plus 1.

        Raises:
            DataError: an item has no code, a code begins another one, or a token is out of range.
        """
        spelt = [tuple(int(token) for token in code) for code in codes]
        if not spelt or spelt[0] or not all(spelt[1:]):
            raise DataError(
                "codes: row 0 must be empty, and every other row must hold at least one token."
            )
        used = [token for code in spelt for token in code]
        if token_num is None:
            token_num = max(used, default=PADDING) + 1
        if not all(PADDING < token < token_num for token in used):
            raise DataError(
                f"codes: tokens from {min(used)} to {max(used)}; they must be between 1 and "
                f"{token_num - 1}."
            )
        # In sorted order, a code that begins others stands directly before one of them.
        for code, following in pairwise(sorted(set(spelt[1:]))):
            if following[: len(code)] == code:
                raise DataError(
                    f"codes: {code} begins {following}, so that they cannot be told apart; add a "
                    "token that ends a code."
                )
        tokens = np.full((len(spelt), max(map(len, spelt))), PADDING, dtype=np.int64)
        for row, code in zip(tokens, spelt, strict=True):
            row[: len(code)] = code
        return cls(tokens, token_num)


class TIGER(SequentialRecommender):
    """A T5 that reads the codes of a history's items and generates the code of the next item.

    Before the last ``history_items`` items it reads one of ``user_tokens`` tokens (0: none), chosen
    by the remainder of the user's number. A user who is not in the data has no token.

    A subclass overrides :meth:`item_codes` for other codes, and ``ranks_unseen_items`` if these do
    not come from the items' text.
    """

    input_type = InputType.POINTWISE
    ranks_unseen_items = True  # an item's text gives it a code (section 4.3)
    item_tokens: torch.Tensor

    def __init__(self, config: Config, dataset: Any) -> None:
        super().__init__(config, dataset)
        options = TIGEROptions.from_mapping(config)
        self.history_items, self.user_tokens = options.history_items, options.user_tokens
        self.half_precision = bool(config["enable_amp"])
        codes = self.item_codes(config, dataset)
        # Saved with the weights, which fit only these codes.
        self.register_buffer("item_tokens", torch.from_numpy(codes.tokens))
        self.register_load_state_dict_post_hook(_forget_tree)
        self.first_user_token = codes.token_num
        self.t5 = T5ForConditionalGeneration(
            T5Config(
                vocab_size=codes.token_num + self.user_tokens,
                d_model=options.hidden_size,
                d_kv=options.head_size,
                d_ff=options.inner_size,
                num_layers=options.n_layers,
                num_heads=options.n_heads,
                dropout_rate=options.dropout_prob,
                pad_token_id=PADDING,
                use_cache=False,
            )
        )
        self.t5.config.decoder_start_token_id = PADDING
        self.t5.set_attn_implementation(options.attn_implementation)
        _fuse(self.t5)
        self._tree: PrefixTree | None = None

    def item_codes(self, config: Config, dataset: Any) -> CodeTable:
        """The codes of all items; called once, with the training split, when the model is built.

        Raises:
            DataError: no item has text.
        """
        options, seed = TIGEROptions.from_mapping(config), config["seed"]
        catalog = read_catalog(dataset, options)
        needs_backbone = options.text_encoder == "backbone"
        vectors = item_vectors(
            catalog,
            options.text_encoder,
            dim=_TEXT_WIDTH,
            backbone=untouched_backbone(options, seed) if needs_backbone else None,
            seed=seed,
        )
        if not vectors.any():
            raise DataError(
                "TIGER: no item has text; name its columns in item_text_fields, or give a file of "
                "vectors as text_encoder."
            )
        ids = semantic_ids_of(catalog, options, vectors, seed)
        return CodeTable(ids.tokens, ids.table_size)

    def encoder_input(self, interaction: Interaction) -> tuple[torch.Tensor, torch.Tensor]:
        """The encoder's tokens, (rows, tokens), and a mask that is false at padding.

        Every item takes as many positions as the longest code, so there may be gaps after an item.
        """
        items, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        longest = min(int(lengths.max()), self.history_items)
        first = (lengths - self.history_items).clamp(min=0).unsqueeze(1)
        places = first + torch.arange(longest, device=items.device)
        recent = items.gather(1, places.clamp(max=items.shape[1] - 1))
        recent = recent.masked_fill(places >= lengths.unsqueeze(1), 0)
        tokens = self.item_tokens[recent].flatten(1)
        if self.user_tokens:
            users = interaction[self.USER_ID]
            token = self.first_user_token + users % self.user_tokens
            token = token.masked_fill(users == 0, PADDING)
            tokens = torch.cat((token.unsqueeze(1), tokens), dim=1)
        return tokens, tokens != PADDING

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Mean cross entropy of the tokens of the rows' targets, a scalar."""
        loss: torch.Tensor = self._decoded(interaction, self.POS_ITEM_ID)[0].loss
        return loss

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Log-probability of all items, shape ``(batch, item_num)``, float32.

        The model computes in half precision with RecBole's ``enable_amp``, as in training.
        """
        if self._tree is None or self._tree.tokens.device != self.item_tokens.device:
            codes = [row[row != PADDING] for row in self.item_tokens[1:].cpu().numpy()]
            self._tree = code_tree(codes, PADDING, self.item_tokens.device)
        with torch.autocast(self.item_tokens.device.type, enabled=self.half_precision):
            scores = rank_leaves(self.t5, self._tree, *self.encoder_input(interaction))
        return functional.pad(scores, (1, 0), value=-torch.inf)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Log-probability of the interactions' own items, shape ``(batch,)``."""
        output, labels = self._decoded(interaction, self.ITEM_ID)
        return -functional.cross_entropy(
            output.logits.transpose(1, 2), labels, ignore_index=_NO_LABEL, reduction="none"
        ).sum(dim=1)

    def _decoded(self, interaction: Interaction, field: str) -> tuple[Any, torch.Tensor]:
        """T5's output for the items of ``field``, and their tokens, -100 at padding."""
        tokens, mask = self.encoder_input(interaction)
        labels = self.item_tokens[interaction[field]]
        labels = labels.masked_fill(labels == PADDING, _NO_LABEL)
        encoded = BaseModelOutput(last_hidden_state=encode(self.t5, tokens, mask))
        return self.t5(encoder_outputs=encoded, attention_mask=mask, labels=labels), labels


def _forget_tree(model: TIGER, _: Any) -> None:
    """Drop the tree of the codes that the model had before it loaded other codes."""
    model._tree = None


def _fuse(t5: T5ForConditionalGeneration) -> None:
    """Replace layers of ``t5`` by torch's own with the same weights and results, but for rounding.

    A norm is one kernel instead of five. A feed-forward layer keeps autocast's type inside, where
    T5's own layer converts to float32, which autocast then converts back.
    """
    for parent in list(t5.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, T5LayerNorm):
                norm = nn.RMSNorm(child.weight.shape, eps=child.variance_epsilon)
                norm.weight = child.weight
                setattr(parent, name, norm)
            elif isinstance(child, T5DenseActDense):
                steps = {step: getattr(child, step) for step in ("wi", "act", "dropout", "wo")}
                setattr(parent, name, nn.Sequential(OrderedDict(steps)))
