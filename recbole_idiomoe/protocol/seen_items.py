"""Masking of seen items, for every model alike.

RecBole's full-sort evaluation masks a user's known items for general recommenders, but for
sequential ones its loader returns no history, so an item that the user has just had can be
ranked first (``recbole/data/dataloader/general_dataloader.py:281``). Its trainer masks whatever
the loader names (``recbole/trainer/trainer.py:536``); so the loader is where it is named.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataset import SequentialDataset

from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.data.dataset import HistoryDataset

ROWS = 65_536
"""Rows of histories that are looked at together."""

EvalBatch = tuple[Any, tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor, torch.Tensor]


class SeenItems:
    """Which items each user had in the given splits, as one flat array with offsets."""

    def __init__(self, splits: Sequence[SequentialDataset]) -> None:
        # One number a pair: sorting numbers is ten times as fast as sorting columns.
        self._item_num, self._user_num = splits[0].item_num, splits[0].user_num
        self._keep(np.concatenate([_pairs(split) for split in splits]))

    def with_split(self, split: SequentialDataset) -> SeenItems:
        """These, and those of another split."""
        return self._with(_pairs(split))

    def with_pairs(self, users: np.ndarray, items: np.ndarray) -> SeenItems:
        """These, and further items, each with its user."""
        return self._with(users * self._item_num + items)

    def _with(self, pairs: np.ndarray) -> SeenItems:
        more = copy.copy(self)
        more._keep(np.concatenate((self._pairs, pairs)))
        return more

    def _keep(self, pairs: np.ndarray) -> None:
        self._pairs = pairs = _distinct(pairs)
        self.items = pairs % self._item_num
        self.offsets = np.searchsorted(pairs // self._item_num, np.arange(self._user_num + 1))

    def of(self, user: int) -> np.ndarray:
        """Item rows that ``user`` had, sorted, each once."""
        return self.items[self.offsets[user] : self.offsets[user + 1]]


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """Each once, ascending: ``np.unique``, which takes its time with a table of hashes."""
    ordered = np.sort(numbers)
    distinct: np.ndarray = ordered[np.r_[True, ordered[1:] != ordered[:-1]][: len(ordered)]]
    return distinct


def _pairs(split: SequentialDataset) -> np.ndarray:
    """``user * item_num + item`` of all that the rows of ``split`` hold; some may repeat."""
    if isinstance(split, HistoryDataset):
        users, items = split.known_interactions()
        return users * split.item_num + items
    rows, found = split.inter_feat, []
    # Every prefix has the items of those before it: what they repeat goes, piece by piece.
    for start in range(0, len(rows), ROWS):
        users, targets, histories = (
            rows[field][start : start + ROWS].numpy()
            for field in (split.uid_field, split.iid_field, split.item_id_list_field)
        )
        row, column = np.nonzero(histories)
        pairs = np.concatenate((users, users[row])) * split.item_num
        found.append(_distinct(pairs + np.concatenate((targets, histories[row, column]))))
    return np.concatenate(found)


class SeenItemMask:
    """A full-sort loader's ``collate_fn`` that also names the seen items.

    The item to be found is never masked, even if the user had it before, as RecBole does for
    general recommenders.

    Args:
        collate_fn: the loader's own, of row numbers.
        seen: what users had in the splits before.
        split: the loader's own, each user's rows in the order of time.
    """

    def __init__(
        self, collate_fn: Callable[[Any], EvalBatch], seen: SeenItems, split: SequentialDataset
    ) -> None:
        self.collate_fn = collate_fn
        rows = split.inter_feat
        self.users, targets = rows[split.uid_field].numpy(), rows[split.iid_field].numpy()
        # Of a split by ratio a user has several rows, and at each had the targets of those before.
        by_user = np.argsort(self.users, kind="stable")
        self.targets = targets[by_user]
        self.first = np.searchsorted(self.users[by_user], self.users)
        self.place = np.empty_like(by_user)
        self.place[by_user] = np.arange(len(by_user))
        # Who begins in this split has a first item that is nobody's target.
        is_first = (self.place == self.first) & (rows[split.item_list_length_field] == 1).numpy()
        begins = np.flatnonzero(is_first)
        first_items = split[begins][split.item_id_list_field][:, 0].numpy()
        self.seen = seen.with_pairs(self.users[begins], first_items)

    def _before(self, row: int) -> np.ndarray:
        """What the user of ``row`` had before its target."""
        own = self.targets[self.first[row] : self.place[row]]
        earlier = self.seen.of(self.users[row])
        return np.concatenate((earlier, own)) if len(own) else earlier

    def __call__(self, index: Any) -> EvalBatch:
        interaction, _, positive_u, positive_i = self.collate_fn(index)
        seen = [self._before(row) for row in index]
        rows = np.repeat(np.arange(len(seen)), [len(items) for items in seen])
        items = np.concatenate(seen) if seen else np.zeros(0, dtype=np.int64)
        keep = items != positive_i.numpy()[rows]
        history = torch.from_numpy(rows[keep]), torch.from_numpy(items[keep])
        return interaction, history, positive_u, positive_i


def mask_seen_items(config: Config, train_data: Any, valid_data: Any, test_data: Any) -> None:
    """Make the loaders of validation and test mask what each user had before.

    At validation that is the training history, at test also the validation item; of a split by
    ratio, also the user's earlier targets in the same part.

    Raises:
        SettingError: the evaluation samples its candidates instead of ranking all items.
    """
    seen = SeenItems([train_data._dataset])
    for loader in (valid_data, test_data):
        if not isinstance(loader, FullSortEvalDataLoader):
            raise SettingError(
                "mask_seen=True needs the full ranking, eval_args.mode: full; the candidates here "
                f"are {config['eval_args']['mode']}. Set mask_seen=False to keep them."
            )
        loader.collate_fn = SeenItemMask(loader.collate_fn, seen, loader._dataset)
        if loader is valid_data:
            seen = seen.with_split(loader._dataset)
