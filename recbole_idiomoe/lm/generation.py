"""Generation with a vocabulary of text tokens and items (section 3.2.1)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList

from recbole_idiomoe.lm.configuration import IdiomoeConfig

Vocabulary = Literal["text", "item", "hybrid"]


class HybridGeneration(GenerationMixin):
    """``generate`` with a choice of the part of the vocabulary that new tokens come from."""

    config: IdiomoeConfig

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

    def prepare_inputs_for_generation(self, input_ids: Tensor, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        # The prompt's types do not fit the single token of a later step; ids imply them anyway.
        kwargs.pop("token_types", None)
        prepare: Any = super().prepare_inputs_for_generation  # type: ignore[misc]
        return prepare(input_ids, **kwargs)


class _Only(LogitsProcessor):
    """Sets the scores of the other part of the hybrid vocabulary to -inf."""

    def __init__(self, vocabulary: Vocabulary, offset: int) -> None:
        self.excluded = slice(offset, None) if vocabulary == "text" else slice(offset)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.excluded] = -torch.inf
        return scores
