"""The hybrid output head over text tokens and items: losses and generation (section 3.2.1)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel

from recbole_idiomoe.lm.configuration import IdiomoeConfig
from recbole_idiomoe.lm.embedding import ItemTable
from recbole_idiomoe.lm.item_loss import summed_cross_entropy

Vocabulary = Literal["text", "item", "hybrid"]
IGNORED = -100
"""The label of positions that have no target, as in PyTorch and transformers."""


class HybridHead(GenerationMixin):
    """Scores, losses and generation with a backbone that has a text head, and an item table."""

    config: IdiomoeConfig
    backbone: PreTrainedModel
    item_table: ItemTable

    def text_logits(self, hidden_states: Tensor) -> Tensor:
        """Scores of text tokens by the backbone's head: (..., d) -> (..., item_token_offset)."""
        return self.backbone.get_output_embeddings()(hidden_states)

    def item_logits(self, hidden_states: Tensor) -> Tensor:
        """Scores of the items: (..., d) -> (..., item_num), float32, -inf for the padding item."""
        return self.item_table.logits(hidden_states)

    def item_loss(
        self, hidden_states: Tensor, items: Tensor, excluded: Tensor | None = None
    ) -> Tensor:
        """Mean cross entropy of items, a scalar in nats; 0 if there is no target.

        The candidates are all items or, with ``config.softmax="hybrid"``, all text tokens and
        items. Memory does not grow with N times their number; see :func:`summed_cross_entropy`.

        Args:
            hidden_states: (N, d), at the positions from which items are predicted.
            items: (N,), the items to predict, ids from 1.
            excluded: (M,), ids that are no candidates, such as items without interactions, which
                the loss would only push down. None of them may be in ``items``.
        """
        return self._summed_item_loss(hidden_states, items, excluded) / max(1, len(items))

    def text_loss(self, hidden_states: Tensor, token_ids: Tensor) -> Tensor:
        """Mean cross entropy of text tokens (N,) from states (N, d) in nats; 0 if N is 0."""
        scores = self.text_logits(hidden_states).float()
        # The mean over no target would be nan.
        return F.cross_entropy(scores, token_ids) if len(token_ids) else scores.sum() * 0.0

    def hybrid_loss(
        self, hidden: Tensor, text_logits: Tensor, labels: Tensor, count: Tensor | int | None
    ) -> Tensor:
        """Next-token cross entropy of text and items together, a scalar in nats per target.

        Args:
            hidden: (B, T, d).
            text_logits: (B, T, item_token_offset), the text scores of ``hidden``.
            labels: (B, T), hybrid tokens, not shifted yet; :data:`IGNORED` is no target.
            count: the number by which the summed loss is divided; None: the number of targets.
        """
        offset = self.config.item_token_offset
        if not (labels >= offset).any():
            return self.backbone.loss_function(
                logits=text_logits, labels=labels, vocab_size=offset, num_items_in_batch=count
            )
        targets = F.pad(labels[..., 1:], (0, 1), value=IGNORED)
        is_item = targets >= offset
        total = self._summed_item_loss(hidden[is_item], targets[is_item] - offset)
        text_targets = targets.masked_fill(is_item, IGNORED).flatten()
        text_scores = text_logits.float().flatten(0, 1)
        total = total + F.cross_entropy(text_scores, text_targets, reduction="sum")
        return total / ((targets != IGNORED).sum() if count is None else count)

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: Tensor | None = None,
        generation_config: Any = None,
        *,
        vocabulary: Vocabulary = "text",
        logits_processor: LogitsProcessorList | None = None,
        **kwargs: Any,
    ) -> Any:
        """Generate as in transformers, with new tokens from ``vocabulary`` alone.

        With the default ``text``, a text prompt gives the same output as the backbone. ``item``
        gives items only, and ``hybrid`` both.
        """
        processors = LogitsProcessorList(logits_processor or [])
        if vocabulary != "hybrid":
            processors.insert(0, _Only(vocabulary, self.config.item_token_offset))
        generate: Any = super().generate  # type: ignore[misc]
        return generate(inputs, generation_config, logits_processor=processors, **kwargs)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: Tensor,
        *,
        inputs_embeds: Tensor | None = None,
        token_types: Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        prepare: Any = super().prepare_inputs_for_generation  # type: ignore[misc]
        inputs = prepare(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        embedded = inputs.get("inputs_embeds")
        # The prompt's types do not fit the single token of a later step, where ids imply them.
        if embedded is not None and token_types is not None:
            inputs["token_types"] = token_types[:, -embedded.shape[1] :]
        return inputs

    def _summed_item_loss(
        self, hidden: Tensor, items: Tensor, excluded: Tensor | None = None
    ) -> Tensor:
        config = self.config

        def score(states: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
            """Scores of the candidates (n, C) and the columns of the targets among them (n,)."""
            scores = self.item_logits(states)
            if excluded is not None and len(excluded):  # index_fill copies all scores
                scores = scores.index_fill(-1, excluded, -torch.inf)
            if config.softmax == "item":
                return scores, targets
            text_scores = self.text_logits(states).float()
            return torch.cat((text_scores, scores), dim=-1), targets + text_scores.shape[-1]

        candidate_num = config.item_num if config.softmax == "item" else config.vocab_size
        return summed_cross_entropy(score, hidden, items, candidate_num)


class _Only(LogitsProcessor):
    """Sets the scores of the other part of the hybrid vocabulary to -inf."""

    def __init__(self, vocabulary: Vocabulary, offset: int) -> None:
        self.excluded = slice(offset, None) if vocabulary == "text" else slice(offset)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.excluded] = -torch.inf
        return scores
