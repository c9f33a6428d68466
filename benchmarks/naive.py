"""A naive IDIOMoE for RecBole: a row for each prefix, and boolean masks in every layer."""

from __future__ import annotations

import copy

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import SequentialRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from recbole_idiomoe.data.sequence import NOTHING
from recbole_idiomoe.data.sequence_builder import SequenceBuilder


class MaskedExperts(nn.Module):
    """A block's FFN for text tokens and a copy of it for item tokens."""

    is_item: Tensor
    """Which tokens are items, (B, T); set before each forward pass."""

    def __init__(self, ffn: nn.Module) -> None:
        super().__init__()
        self.text_expert = ffn
        self.item_expert = copy.deepcopy(ffn)

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(B, T, d) -> (B, T, d)."""
        text = self.text_expert(hidden_states[~self.is_item])
        outputs = text.new_zeros(hidden_states.shape)
        outputs[~self.is_item] = text
        outputs[self.is_item] = self.item_expert(hidden_states[self.is_item])
        return outputs


class NaiveIdiomoe(SequentialRecommender):
    """A recommender for RecBole's own ``Trainer`` and its prefix rows.

    Args:
        backbone: a Qwen2, whose embedding is extended by the items and whose FFNs get experts.
        builder: the package's builder of sequences.
        pad_token_id: the token that pads a row to ``builder.max_tokens``.
    """

    input_type = InputType.POINTWISE

    def __init__(
        self,
        config: Config,
        dataset: Dataset,
        backbone: PreTrainedModel,
        builder: SequenceBuilder,
        pad_token_id: int,
    ) -> None:
        super().__init__(config, dataset)
        self.builder = builder
        self.pad_token_id = pad_token_id
        offset = builder.item_token_offset
        backbone.resize_token_embeddings(offset + self.n_items, mean_resizing=False)
        self.trunk = backbone.base_model
        self.experts = []
        for layer in self.trunk.layers:
            layer.mlp = MaskedExperts(layer.mlp)
            self.experts.append(layer.mlp)

    def calculate_loss(self, interaction: Interaction) -> Tensor:
        """Cross entropy of the next item of each row over all items."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16):
            return F.cross_entropy(self(interaction), interaction[self.ITEM_ID])

    def forward(self, interaction: Interaction) -> Tensor:
        """Scores of all items after the last token of every row, (B, item_num)."""
        items, lengths = interaction[self.ITEM_SEQ].cpu(), interaction[self.ITEM_SEQ_LEN].cpu()
        histories = [
            row[:length] for row, length in zip(items.numpy(), lengths.tolist(), strict=True)
        ]
        with_text, queries = np.ones(len(histories), dtype=bool), [NOTHING] * len(histories)
        tokens = [s.input_ids for s in self.builder.build(histories, with_text, queries)]
        input_ids = np.full((len(tokens), self.builder.max_tokens), self.pad_token_id)
        for row, sequence in zip(input_ids, tokens, strict=True):
            row[: len(sequence)] = sequence
        ends = torch.tensor([len(sequence) for sequence in tokens], device=self.device)
        return self.scores(torch.from_numpy(input_ids).to(self.device), ends)

    def scores(self, input_ids: Tensor, lengths: Tensor) -> Tensor:
        """Scores (B, item_num) after the first ``lengths`` (B,) tokens of ``input_ids`` (B, T)."""
        for experts in self.experts:
            experts.is_item = input_ids >= self.builder.item_token_offset
        real = torch.arange(input_ids.shape[1], device=self.device) < lengths[:, None]
        outputs = self.trunk(input_ids, attention_mask=real.long(), use_cache=False)
        last = outputs.last_hidden_state[torch.arange(len(lengths)), lengths - 1]
        items = self.trunk.embed_tokens.weight[self.builder.item_token_offset :]
        return last @ items.T
