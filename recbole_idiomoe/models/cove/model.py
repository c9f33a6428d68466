"""CoVE: items as new tokens of a language model, with embeddings that are compressed by hashing.

"CoVE: Compressed Vocabulary Expansion Makes Better LLM-based Recommender Systems" (Zhang et al.,
ACL 2025, Findings). Functions, sizes and rates are from the authors' code,
github.com/HaochenZhang717/CoVE-official-Repo. A history reads
``<|it-1|>: "title", <|it-2|>: "title",``. One softmax over the vocabulary and the catalogue learns
the next token at every position, text and items alike. The next item is the likeliest item token
after the last comma. Low-rank adapters on all linear layers and two hashed item tables are trained;
the language model is frozen.

The authors publish figures for Beauty, Toys and Sports (``properties/published.yaml``), but with
another protocol: their code predicts the last item but one, from models trained without it, and
does not mask items that the user had.

Differences from the authors' code:

- the protocol: the last item is the test item, and the one before picks the epoch in validation;
- the decoder can be any; theirs is Llama 3.2 of 3B parameters;
- the instruction is shorter; the last item of a training window is learnt without its title;
- item rows start from a normal distribution of the size ``item_scale``, theirs from Xavier's;
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
        """This batch's share of its step's mean cross entropy over all tokens except the first.

        The classes are the vocabulary and the catalogue together. The last target of a sequence is
        the item to predict. Soft targets apply to items that follow other items.
        """
        following = F.pad(batch.input_ids[:, 1:], (0, 1))
        following = following.where(batch.is_real, IGNORED).flatten()
        # Within a sequence these are the next tokens; its end gets the item to predict.
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
        """Scores (n, vocabulary + items), and ``tokens`` as the columns of the targets."""
        items = self.lm.item_logits(hidden_states)
        if len(self.untrained):
            items = items.index_fill(-1, self.untrained, -torch.inf)
        return torch.cat((self.lm.text_logits(hidden_states).float(), items), dim=-1), tokens


class CoVE(LanguageModelRecommender):
    """Items as hashed tokens among their titles, learnt as the next tokens of a text."""

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
