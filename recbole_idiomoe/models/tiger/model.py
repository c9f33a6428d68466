"""TIGER: generative retrieval of semantic IDs.

"Recommender Systems with Generative Retrieval" (Rajput et al., NeurIPS 2023), sections 3 and 4
and the appendix. No code of its authors' is public. They print HR@10/NDCG@10 Beauty .0648/.0384,
Sports .0400/.0225, Toys .0712/.0432: leave one out and the whole catalogue as here, but of what a
beam search found, and whether items that a user had are masked is not said; here they are.

What differs here:

- Every item is ranked, by the exact log-probability of its code. There, a beam search finds the
  likeliest codes, and those that are no item's are dropped.
- Codes are those of :mod:`recbole_idiomoe.data.semantic_ids`, a residual quantiser of the text
  vectors themselves, which are what ``text_encoder`` says. There, vectors are Sentence-T5's, and an
  autoencoder around the quantiser is trained with it (RQ-VAE).
- The code that tells apart items of one semantic ID is left out where no two share it. There, it is
  0 then, and a decoder learns that from the three before.
- Adam at one learning rate with early stopping. There, the rate falls with the root of the steps,
  100,000 of them on Toys and 200,000 on the others.

Rows are RecBole's: every training interaction but a user's first is the target of one row and
the items before it are that row's history, the sliding windows of the paper. Other baselines of
ours learn from the same targets, many of them in one row.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch.nn import functional
from transformers import T5Config, T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.catalog import read_catalog
from recbole_idiomoe.data.semantic_ids import SemanticIds, fit_semantic_ids
from recbole_idiomoe.data.text_encoder import item_vectors
from recbole_idiomoe.lm.prefix_tree import PrefixTree
from recbole_idiomoe.models.tiger.options import TIGEROptions
from recbole_idiomoe.models.tiger.t5_fusing import fuse
from recbole_idiomoe.models.tiger.t5_packing import encode
from recbole_idiomoe.models.tiger.t5_ranking import code_tree, rank_leaves

logger = logging.getLogger(__name__)

_PADDING = 0  # also what the decoder starts from, as in T5
_NO_LABEL = -100
# Of TF-IDF, and the bundled decoder's: with it, IDIOMoE's semantic IDs are the same. Other text
# encoders bring their own.
_TEXT_WIDTH = 256


class TIGER(SequentialRecommender):
    """A T5 that reads the semantic IDs of a history and spells that of the next item.

    In front of the last ``history_items`` stands a token for the user, one of ``user_tokens``
    that users share by the remainder of their number (0: none); a user who is not of the data
    has none.
    """

    input_type = InputType.POINTWISE
    ranks_unseen_items = True  # an item's text gives it a code (section 4.3)
    item_tokens: torch.Tensor

    def __init__(self, config: Config, dataset: Any) -> None:
        super().__init__(config, dataset)
        options = TIGEROptions.from_mapping(config)
        self.history_items, self.user_tokens = options.history_items, options.user_tokens
        self.half_precision = bool(config["enable_amp"])
        ids = _semantic_ids(dataset, options, config["seed"])
        logger.info(ids.describe())
        # Kept with the weights: what they mean are these codes.
        self.register_buffer("item_tokens", torch.from_numpy(ids.tokens))
        self.first_user_token = ids.table_size
        self.t5 = T5ForConditionalGeneration(
            T5Config(
                vocab_size=ids.table_size + self.user_tokens,
                d_model=options.hidden_size,
                d_kv=options.head_size,
                d_ff=options.inner_size,
                num_layers=options.n_layers,
                num_heads=options.n_heads,
                dropout_rate=options.dropout_prob,
                pad_token_id=_PADDING,
                use_cache=False,
            )
        )
        self.t5.config.decoder_start_token_id = _PADDING
        self.t5.set_attn_implementation(options.attn_implementation)
        fuse(self.t5)
        self._tree: PrefixTree | None = None

    def encoder_input(self, interaction: Interaction) -> tuple[torch.Tensor, torch.Tensor]:
        """What the encoder reads, (rows, tokens), and which of it is there, bool.

        Every item takes as many places, the last of which may be empty.
        """
        items, lengths = interaction[self.ITEM_SEQ], interaction[self.ITEM_SEQ_LEN]
        longest = min(int(lengths.max()), self.history_items)
        place = torch.arange(longest, device=items.device)
        first = (lengths - self.history_items).clamp(min=0).unsqueeze(1)
        recent = items.gather(1, (first + place).clamp(max=items.shape[1] - 1))
        recent = recent.masked_fill(first + place >= lengths.unsqueeze(1), 0)
        tokens = self.item_tokens[recent].flatten(1)
        if self.user_tokens:
            users = interaction[self.USER_ID]
            token = self.first_user_token + users % self.user_tokens
            token = token.masked_fill(users == 0, _PADDING)
            tokens = torch.cat((token.unsqueeze(1), tokens), dim=1)
        return tokens, tokens != _PADDING

    def calculate_loss(self, interaction: Interaction) -> torch.Tensor:
        """Mean cross entropy of the tokens of the rows' targets, a scalar."""
        loss: torch.Tensor = self._spelt(interaction, self.POS_ITEM_ID)[0].loss
        return loss

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Log-probability of all items, shape ``(batch, item_num)``, float32.

        RecBole trains in half precision with ``enable_amp``; items are ranked as they are learnt.
        """
        if self._tree is None or self._tree.tokens.device != self.item_tokens.device:
            codes = [row[row != _PADDING] for row in self.item_tokens[1:].cpu().numpy()]
            self._tree = code_tree(codes, _PADDING, self.item_tokens.device)
        with torch.autocast(self.item_tokens.device.type, enabled=self.half_precision):
            scores = rank_leaves(self.t5, self._tree, *self.encoder_input(interaction))
        return functional.pad(scores, (1, 0), value=-torch.inf)

    def predict(self, interaction: Interaction) -> torch.Tensor:
        """Log-probability of the interactions' own items, shape ``(batch,)``."""
        spelt, labels = self._spelt(interaction, self.ITEM_ID)
        return -functional.cross_entropy(
            spelt.logits.transpose(1, 2), labels, ignore_index=_NO_LABEL, reduction="none"
        ).sum(dim=1)

    def _spelt(self, interaction: Interaction, field: str) -> tuple[Any, torch.Tensor]:
        """T5's own output for the items of ``field``, and their tokens."""
        tokens, mask = self.encoder_input(interaction)
        labels = self.item_tokens[interaction[field]]
        labels = labels.masked_fill(labels == _PADDING, _NO_LABEL)
        encoded = BaseModelOutput(last_hidden_state=encode(self.t5, tokens, mask))
        return self.t5(encoder_outputs=encoded, attention_mask=mask, labels=labels), labels


def _semantic_ids(dataset: Any, options: TIGEROptions, seed: int) -> SemanticIds:
    """Semantic IDs of all items; only those that are trained on decide what a code means.

    Raises:
        DataError: no item has text.
    """
    catalog = read_catalog(dataset, options)
    backbone = None
    if options.text_encoder == "backbone":
        from recbole_idiomoe.models.language.catalog_lm import untouched_backbone

        backbone = untouched_backbone(options, seed)
    vectors = item_vectors(
        catalog, options.text_encoder, dim=_TEXT_WIDTH, backbone=backbone, seed=seed
    )
    if not vectors.any():
        raise DataError(
            "TIGER: no item has text; name its columns in item_text_fields, or give a file of "
            "vectors as text_encoder."
        )
    fitted = np.ones(catalog.item_num, dtype=bool)
    fitted[catalog.untrained] = False
    return fit_semantic_ids(
        vectors,
        levels=options.semantic_levels,
        codebook_size=options.semantic_codebook_size,
        fitted=fitted,
        seed=seed,
    )
