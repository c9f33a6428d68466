"""The data of a run, split and ready for the evaluation that all models share."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from recbole.config import Config
from recbole.data import data_preparation
from recbole.data.dataloader import FullSortEvalDataLoader

from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.config.evaluation import check_mask
from recbole_idiomoe.data.cold_start import unseen_items
from recbole_idiomoe.data.dataset import HistoryDataset
from recbole_idiomoe.data.labels import check_labels
from recbole_idiomoe.protocol.loader import CandidateLoader, SampledLoader
from recbole_idiomoe.protocol.ranks import item_counts
from recbole_idiomoe.protocol.seen_items import SeenItemMask, SeenItems


@dataclass(frozen=True)
class Splits:
    """A data set and RecBole's loaders of its training, validation and test split."""

    dataset: Any
    counts: dict[str, int]
    """``users``, ``items`` and ``interactions`` of the data set before it was split."""
    item_counts: np.ndarray
    """Interactions of every item before the split, shape ``(item_num,)``."""
    train: Any
    valid: Any
    test: Any

    @property
    def unseen(self) -> np.ndarray:
        """Catalogue rows of the items that a cold start removed from all histories."""
        return unseen_items(self.dataset)

    @cached_property
    def popularity(self) -> np.ndarray:
        """Training interactions of every item, shape ``(item_num,)``."""
        train = self.train._dataset
        if isinstance(train, HistoryDataset) and train.is_ready_made:
            return np.bincount(train.split_items(), minlength=train.item_num)
        field = self.dataset.iid_field
        held_out = [loader._dataset.inter_feat[field] for loader in (self.valid, self.test)]
        taken = np.bincount(np.concatenate(held_out), minlength=len(self.item_counts))
        popularity: np.ndarray = self.item_counts - taken
        return popularity


def split_dataset(config: Config, dataset: Any) -> Splits:
    """Split ``dataset`` by ``eval_args``, and mask the items that are no candidates.

    With ``mask_seen``, validation masks the training history, and the test also masks the
    validation item; a split by ratio also masks the user's earlier targets in the same split. In a
    cold start, validation masks the unseen items. Each evaluation loader gives only as many users
    at once as there is memory for.

    Args:
        config: the config of the run.
        dataset: the filtered data set, which the split changes in place.

    Raises:
        DataError: the validation or the test split is empty, or lacks labels that are needed.
        SettingError: ``mask_seen`` is set together with sampled candidates.
    """
    users, items = dataset.user_num - 1, dataset.item_num - 1
    counts = {"users": users, "items": items, "interactions": dataset.inter_num}
    counted = item_counts(dataset)
    train, *evaluated = data_preparation(config, dataset)
    loaders = []
    for name, loader in zip(("validation", "test"), evaluated, strict=True):
        if len(loader._dataset) == 0:
            raise DataError(
                f"{config['dataset_label']}: nothing is left for {name}; users need at least 4 "
                "interactions to be validated on, 3 to be tested on."
            )
        full = isinstance(loader, FullSortEvalDataLoader)
        kind = CandidateLoader if full else SampledLoader
        loaders.append(kind(config, loader._dataset, loader._sampler))
    check_labels(config, {"valid": loaders[0]._dataset, "test": loaders[1]._dataset})
    splits = Splits(dataset, counts, counted, train, *loaders)
    check_mask(config)
    if config["mask_seen"]:
        _mask_seen_items(config, splits)
    if config["cold_start"]:
        splits.valid.leave_out(splits.unseen)
    return splits


def _mask_seen_items(config: Config, splits: Splits) -> None:
    seen = SeenItems([splits.train._dataset])
    for loader in (splits.valid, splits.test):
        loader.mask(SeenItemMask(seen, loader._dataset))
        seen = seen.with_split(loader._dataset)
