"""CoVE: items as new tokens of a language model, their embeddings compressed by hashing.

"CoVE: Compressed Vocabulary Expansion Makes Better LLM-based Recommender Systems" (Zhang et al.,
ACL 2025, Findings); code at github.com/HaochenZhang717/CoVE-official-Repo, which is where the
functions, sizes and rates are from. A history reads ``<|it-1|>: "title", <|it-2|>: "title",``; the
next token of every position is learnt, text and items alike, by one softmax over the vocabulary
and the catalogue; the next item is the likeliest item token behind the last comma. Low-rank
adapters on all linear layers and two hashed item tables train, the language model is frozen.

Published by its authors are Beauty, Toys and Sports (``properties/published.yaml``), but not
under this protocol: their code predicts the last item but one, from models trained without it,
and does not mask what the user has had.

What differs here, for all or for want of a reason to differ:

- the protocol: the last item tests, the one before validates and picks the epoch;
- any decoder; theirs is Llama 3.2 of 3B;
- a shorter instruction; the last item of a training window is learnt, its title behind it not;
- rows start normal, as large to the decoder as ``item_scale`` says, where theirs start by Xavier;
- padding is not an item, and hash functions draw other numbers.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from recbole_idiomoe.data.batch import SequenceBatch
from recbole_idiomoe.lm.hybrid_head import IGNORED
from recbole_idiomoe.lm.item_loss import summed_cross_entropy
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.models.language.forward import hidden_states
from recbole_idiomoe.models.language.recommender import LanguageModelRecommender


class CausalCatalogLM(CatalogLM):
    """A :class:`CatalogLM` that learns every token of its sequences, item or text."""

    def loss(self, batch: SequenceBatch) -> torch.Tensor:
        """This batch's share of its step's mean cross entropy over all tokens but the first.

        Every token is one of the vocabulary and the catalogue together; each sequence has the item
        to be predicted at its end as its last target. Soft are the targets of items behind others.
        """
        following = F.pad(batch.input_ids[:, 1:], (0, 1))
        following = following.where(batch.is_real, IGNORED).flatten()
        # Within a sequence they are the next tokens already; at its end, what it leads to.
        targets = following.index_copy(0, batch.predict_at, batch.targets)
        with self.autocast():
            states = hidden_states(self.lm, batch)
            total = summed_cross_entropy(
                self._token_scores, states, targets, self.lm.config.vocab_size
            )
            if self.soft_targets is not None:
                predicting = states[batch.predict_at]
                total = total + self._softening(self.soft_targets, predicting, batch)
        return total / batch.token_count

    def _token_scores(
        self, hidden_states: torch.Tensor, tokens: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (n, vocabulary and items) and the tokens, whose columns are their numbers."""
        items = self.lm.item_logits(hidden_states)
        if len(self.untrained):
            items = items.index_fill(-1, self.untrained, -torch.inf)
        return torch.cat((self.lm.text_logits(hidden_states).float(), items), dim=-1), tokens


class CoVE(LanguageModelRecommender):
    """Items as hashed tokens among their titles, learnt as language is."""

    architecture = "cove"
    catalog_lm_class = CausalCatalogLM
    forced_settings: ClassVar[dict[str, Any]] = {
        "use_text": True,
        "segment_order": "ID text",
        "item_tokens": "atomic",
        "item_init": "random",
        "item_text_added": False,
        "item_embedding_dim": None,
        "softmax": "hybrid",
        "freeze": "backbone",
    }
