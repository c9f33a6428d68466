"""Simulated cold start: some test items are removed from all histories.

This follows section 4.3 of TIGER, like the paper (section B.6.2): a share of the test items is
removed from training, and how often they are found is reported separately. Here they are also
removed from validation and from test histories, because new items have no interactions. They are
removed from RecBole's dataset before the split, so that every model trains on the same rows.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from recbole_idiomoe.base.errors import DataError

logger = logging.getLogger(__name__)

_ATTRIBUTE = "unseen_items"
_STREAM = 43  # makes these draws independent of other draws with the run's seed


def hold_out_items(dataset: Any, share: float, seed: int) -> None:
    """Remove a share of the distinct test items from all rows of ``dataset`` but test rows.

    The choice depends on ``seed``, ``share`` and the data alone, so that all models of a comparison
    have the same unseen items. A test row is a user's last row, if the user has at least two rows
    before it; rows of unseen items do not count as such. Afterwards, :func:`unseen_items` returns
    the items, also for the splits that RecBole builds from ``dataset``.

    Args:
        dataset: a loaded RecBole dataset that is not split yet; changed in place.
        share: above 0, at most 0.5. At least one item is removed.

    Raises:
        DataError: all remaining test rows have unseen items, or none has.
    """
    table = dataset.inter_feat
    users, items = table[dataset.uid_field].to_numpy(), table[dataset.iid_field].to_numpy()
    last = users != np.append(users[1:], -1)  # a user's rows are together, in the order of time
    is_test = last & (np.bincount(users)[users] >= 3)
    # Items are sorted by name, so that the draw does not depend on their numbers.
    names = dataset.field2id_token[dataset.iid_field]
    distinct = sorted(set(items[is_test].tolist()), key=lambda item: str(names[item]))
    rng, count = np.random.default_rng((seed, _STREAM)), max(1, round(share * len(distinct)))
    chosen = np.sort(rng.choice(distinct, size=count, replace=False))

    unseen = np.isin(items, chosen)
    kept = ~unseen | is_test
    # A user with two rows has no test row: RecBole trains on the second one.
    is_test &= np.bincount(users[kept], minlength=users.max() + 1)[users] >= 3
    kept &= ~unseen | is_test
    found = int((unseen & is_test).sum())
    if not 0 < found < is_test.sum():
        raise DataError(
            f"{dataset.dataset_name}: with cold_start={share:g} {found} of {is_test.sum()} test "
            "interactions are with unseen items; some of each are needed: change cold_start, or "
            "give more data."
        )
    logger.info(
        f"cold start: {len(chosen)} of the test items are unseen, so are {found} of "
        f"{is_test.sum()} test interactions; {(~kept).sum()} interactions with these items are "
        "left out"
    )
    dataset.inter_feat = table[kept].reset_index(drop=True)
    setattr(dataset, _ATTRIBUTE, chosen)


def unseen_items(dataset: Any) -> np.ndarray:
    """Rows of the items that :func:`hold_out_items` removed, ascending, shape ``(n,)``, n >= 0."""
    return getattr(dataset, _ATTRIBUTE, np.zeros(0, dtype=np.int64))
