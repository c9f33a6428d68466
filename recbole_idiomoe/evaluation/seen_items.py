"""Masking of seen items, for every model alike.

RecBole's full-sort evaluation masks a user's known items for general recommenders, but for
sequential ones its loader returns no history, so an item that the user has just had can be
ranked first (``recbole/data/dataloader/general_dataloader.py:281``). Its trainer masks whatever
the loader names (``recbole/trainer/trainer.py:536``); so the loader is where it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import SequentialDataset

from recbole_idiomoe.errors import SettingError

EvalBatch = tuple[Any, tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor, torch.Tensor]


class SeenItems:
    """Which items each user had in the given splits, as one flat array with offsets."""

    def __init__(self, splits: Sequence[SequentialDataset]) -> None:
        users, items = [], []
        for split in splits:
            for start in range(0, len(split), 4096):
                rows = split[np.arange(start, min(start + 4096, len(split)))]
                history = rows[split.item_id_list_field].numpy()
                row, column = np.nonzero(history)
                row_users = rows[split.uid_field].numpy()
                users += [row_users, row_users[row]]
                items += [rows[split.iid_field].numpy(), history[row, column]]
        # One number a pair: sorting numbers is ten times as fast as sorting columns.
        item_num = splits[0].item_num
        pairs = np.unique(np.concatenate(users) * item_num + np.concatenate(items))
        self.items = pairs % item_num
        self.offsets = np.searchsorted(pairs // item_num, np.arange(splits[0].user_num + 1))

    def of(self, user: int) -> np.ndarray:
        """Item rows that ``user`` had, sorted, each once."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


class SeenItemMask:
    """A full-sort loader's ``collate_fn`` that also names the seen items.

    The item to be found is never masked, even if the user had it before, as RecBole does for
    general recommenders.
    """

    def __init__(
        self, collate_fn: Callable[[Any], EvalBatch], seen: SeenItems, uid_field: str
    ) -> None:
        self.collate_fn = collate_fn
        self.seen = seen
        self.uid_field = uid_field

    def __call__(self, index: Any) -> EvalBatch:
        interaction, _, positive_u, positive_i = self.collate_fn(index)
        seen = [self.seen.of(user) for user in interaction[self.uid_field].tolist()]
        rows = np.repeat(np.arange(len(seen)), [len(items) for items in seen])
        items = np.concatenate(seen) if seen else np.zeros(0, dtype=np.int64)
        keep = items != positive_i.numpy()[rows]
        history = torch.from_numpy(rows[keep]), torch.from_numpy(items[keep])
        return interaction, history, positive_u, positive_i


def mask_seen_items(config: Config, train_data: Any, valid_data: Any, test_data: Any) -> None:
    """Make the loaders of validation and test mask what each user had before.

    At validation that is the training history, at test also the validation item.

    Raises:
        SettingError: the evaluation samples its candidates instead of ranking all items.
    """
    known = [train_data._dataset]
    for loader in (valid_data, test_data):
        if not isinstance(loader, FullSortEvalDataLoader):
            raise SettingError(
                "mask_seen=True needs the full ranking, eval_args.mode: full; the candidates here "
                f"are {config['eval_args']['mode']}. Set mask_seen=False to keep them."
            )
        loader.collate_fn = SeenItemMask(loader.collate_fn, SeenItems(known), loader.uid_field)
        known.append(loader._dataset)
