"""IDIOMoE as a RecBole recommender (paper, section 3.2)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from recbole.config import Config
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction

from recbole_idiomoe.data.batch import SequenceBatch
from recbole_idiomoe.data.catalog import read_catalog
from recbole_idiomoe.lm import TWO_EXPERT
from recbole_idiomoe.models.full_sort import FullSortRecommender
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.models.language.options import LanguageModelOptions
from recbole_idiomoe.models.language.soft_targets import training_followers


class LanguageModelRecommender(FullSortRecommender):
    """A decoder language model with a catalogue.

    It trains on :class:`SequenceBatch`, one history per user, and is evaluated on RecBole's
    ordinary interactions, as SASRec is.

    Attributes:
        architecture: name in :data:`~recbole_idiomoe.lm.variants.ARCHITECTURES`.
        catalog_lm_class: computes losses and scores from histories.
        pretrained: whether the decoder keeps its pretrained weights.
        forced_settings: settings that define the model; a user cannot change them.
    """

    architecture: ClassVar[str]
    catalog_lm_class: ClassVar[type[CatalogLM]] = CatalogLM
    pretrained: ClassVar[bool] = True
    forced_settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, config: Config, dataset: Dataset) -> None:
        super().__init__(config, dataset)
        settings: LanguageModelOptions = config.settings
        self.catalog_lm = self.catalog_lm_class.build(
            read_catalog(dataset, settings),
            settings,
            seed=config["seed"],
            device=self.device,
            architecture=self.architecture,
            pretrained=self.pretrained,
            followers=training_followers(dataset) if settings.transition_smoothing else None,
        )

    @property
    def ranks_unseen_items(self) -> bool:
        """Whether items that were not trained on can be ranked, by their text."""
        return self.catalog_lm.ranks_unseen_items

    def forward(self, batch: SequenceBatch) -> torch.Tensor:
        return self.calculate_loss(batch)

    def calculate_loss(self, batch: SequenceBatch) -> torch.Tensor:
        """The batch's share of its step's mean loss, a scalar."""
        return self.catalog_lm.loss(batch)

    def full_sort_predict(self, interaction: Interaction) -> torch.Tensor:
        """Scores of all items, shape ``(batch, item_num)``; the padding item has -inf."""
        items = interaction[self.ITEM_SEQ].cpu().numpy()
        lengths = interaction[self.ITEM_SEQ_LEN].cpu().numpy()
        histories = [row[:length] for row, length in zip(items, lengths, strict=True)]
        return self.catalog_lm.scores(histories)


class IDIOMoE(LanguageModelRecommender):
    """A text expert and an item expert in each FFN; the paper's controls derive from it."""

    architecture = TWO_EXPERT
