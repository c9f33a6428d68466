"""Places for untrained items among the trained ones, found by their text.

If every item has a token of its own, a ridge regression that is fitted on the trained items maps an
item's text vector to its row, and predicts the rows of the other items. Semantic IDs and titles
need no regression, because they follow from the text alone. Used for a cold start, where the
catalogue already holds the unseen items, and for items that are added to a trained model.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.model_selection import cross_val_predict

from recbole_idiomoe.base.errors import DataError, SettingError
from recbole_idiomoe.data.catalog import Catalog, text_fields
from recbole_idiomoe.data.template import Template, clean
from recbole_idiomoe.data.text_encoder import changed_encoder, item_vectors
from recbole_idiomoe.lm import ItemTable
from recbole_idiomoe.lm.embedding import TextAttributeTable, text_directions
from recbole_idiomoe.lm.vocabulary import append_item_tokens, item_tokens
from recbole_idiomoe.models.language.catalog_lm import CatalogLM, untouched_backbone
from recbole_idiomoe.models.language.options import LanguageModelOptions

logger = logging.getLogger(__name__)

ITEM_ID = "item_id"
# Ridge penalties to choose from; text vectors have length 1.
ALPHAS = np.logspace(-3, 3, 13)


def place_unseen_items(model: CatalogLM, seed: int) -> None:
    """Give the untrained items of the catalogue rows that are predicted from their text.

    Without effect if items share tokens.

    Args:
        seed: the seed of the run, which its text encoder depends on.

    Raises:
        DataError: there are too few items to learn from.
    """
    catalog = model.catalog
    unseen = torch.tensor(catalog.untrained, dtype=torch.int64)
    if not len(unseen) or not model.item_codes.one_token_each:
        return
    directions = _directions(model, catalog, seed)
    _report_unread(catalog, unseen, directions)
    table = model.lm.item_table
    table.place(unseen, *parts_from_text(table, directions, catalog.untrained, unseen))


def add_items(model: CatalogLM, items: Sequence[Mapping[str, str]], seed: int) -> None:
    """Add new items after the items of a trained model, in place.

    Scores of old items stay the same, except that an old item gets a further token if a new item
    has the same semantic ID.

    Args:
        items: for each item its ``item_id`` and its text by the roles of ``item_text_fields``.
        seed: the seed of the run, which its text encoder depends on.

    Raises:
        DataError: an item cannot be added. Nothing has changed then.
        SettingError: the text encoder's file has no vector of an item.
        CheckpointError: the text encoder gives other vectors than in training.
    """
    before = model.catalog
    catalog = _extended(before, items, model.settings)
    if catalog.item_num == before.item_num:
        return
    added = torch.arange(before.item_num, catalog.item_num)
    encoder, table = model.settings.text_encoder, model.lm.item_table
    if model.item_codes.one_token_each:
        directions = _directions(model, catalog, seed)
        _report_unread(catalog, added, directions, encoder)
        parts = parts_from_text(table, directions, catalog.untrained, added)
        table.grow(catalog.item_num)
        table.place(added, *parts)
        model.lm.config.item_num = catalog.item_num
        append_item_tokens(model.tokenizer, item_tokens(catalog.item_ids)[before.item_num :])

    def vectors() -> np.ndarray:
        found = _vectors(model, catalog, seed)
        _report_unread(catalog, added, torch.from_numpy(found), encoder)
        return found

    codes = model.item_codes.with_items(model.code_context(catalog), vectors)
    model.set_catalog(catalog, codes)


@torch.no_grad()
def parts_from_text(
    table: ItemTable, directions: torch.Tensor, untrained: Sequence[int], wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows (m, d) and text vectors (m, k) of the items ``wanted`` (m,), for ``ItemTable.place``.

    The ridge penalty is the one with the smallest leave-one-out error. Predictions of a regression
    lie nearer to the mean than the rows that it was fitted on, and an item near the mean is never
    ranked first. So predictions are moved away from the mean by a factor, with which
    cross-validated predictions for trained items are as far from the mean as their own vectors.

    Args:
        directions: (n, k), from :func:`text_directions`, zero for items without text; n may be
            larger than the table.
        untrained: items that are left out of the fit.

    Raises:
        DataError: there are fewer than two items to learn from.
    """
    trained = directions.any(dim=1)
    trained[list(untrained)] = False
    if trained.sum() < 2:
        raise DataError(
            "too little text to learn from: 2 items that were trained on and read differently are "
            "the least; name more columns in item_text_fields, and train again."
        )
    learnt = table.rows.detach().cpu().double()[trained[: table.item_num]]
    text, new_text = directions[trained].double(), directions[wanted].double()
    regression = RidgeCV(ALPHAS).fit(text.numpy(), learnt.numpy())
    # The row of each trained item, predicted by a regression that was fitted without it.
    folds = min(5, len(text))
    again = cross_val_predict(Ridge(regression.alpha_), text.numpy(), learnt.numpy(), cv=folds)

    vectors = table.compose(learnt, text)
    mean = vectors.mean(dim=0)
    shrunk = (table.compose(torch.from_numpy(again), text) - mean).norm(dim=1).mean()
    factor = (vectors - mean).norm(dim=1).mean() / shrunk if shrunk else 1.0

    def away(new: torch.Tensor, trained_parts: torch.Tensor) -> torch.Tensor:
        middle = trained_parts.mean(dim=0)
        return (middle + factor * (new - middle)).float()

    rows = torch.from_numpy(regression.predict(new_text.numpy()))
    return away(rows, learnt), away(new_text, text)


def _vectors(model: CatalogLM, catalog: Catalog, seed: int) -> np.ndarray:
    """Text vectors of ``catalog``, ``(item_num, k)``, from the encoder used in training."""
    settings, config = model.settings, model.lm.config
    needs_backbone = settings.text_encoder == "backbone"  # as it was before training
    return item_vectors(
        catalog,
        settings.text_encoder,
        dim=config.item_embedding_dim or config.hidden_size,
        backbone=untouched_backbone(settings, seed) if needs_backbone else None,
        device=model.lm.device,
        seed=seed,
    )


def _directions(model: CatalogLM, catalog: Catalog, seed: int) -> torch.Tensor:
    """Text vectors of ``catalog``, centred by :func:`text_directions`, ``(item_num, k)``.

    Raises:
        CheckpointError: they differ from the text vectors that the item table was trained with.
    """
    vectors = _vectors(model, catalog, seed)
    directions = text_directions(vectors, catalog.item_num, catalog.untrained)
    table = model.lm.item_table
    if isinstance(table, TextAttributeTable):
        trained = np.setdiff1d(np.arange(table.item_num), catalog.untrained)
        found = table.text[trained].float().cpu()
        if found.shape[1] != directions.shape[1] or (
            (found - directions[trained]).abs().max() > 0.01
        ):
            raise changed_encoder(model.settings.text_encoder)
    return directions


def _report_unread(
    catalog: Catalog, items: torch.Tensor, directions: torch.Tensor, encoder: str = ""
) -> None:
    """Log the ``items`` without usable text, whose place is an average one.

    Raises:
        SettingError: ``encoder`` is a file of vectors, to which the missing ones can be added.
    """
    unread = [catalog.item_ids[row] for row in items[~directions[items].any(dim=1)].tolist()]
    if not unread:
        return
    named = ", ".join(map(repr, unread[:5])) + (" ..." if len(unread) > 5 else "")
    if encoder.endswith(".npz"):
        raise SettingError(f"text_encoder={encoder!r} has no vector of {named}; add it there.")
    logger.warning("%d items without a word that was trained on: %s", len(unread), named)


def _extended(
    catalog: Catalog, items: Sequence[Mapping[str, str]], settings: LanguageModelOptions
) -> Catalog:
    """``catalog`` with ``items`` after its own.

    Raises:
        DataError: an item cannot be added.
    """
    roles = list(text_fields(settings))
    template = Template(settings.item_template, roles)
    if isinstance(items, str | Mapping) or not isinstance(items, Sequence):
        raise DataError(f"items={items!r:.60} is no list; give one of {_example(roles)}.")
    known = set(catalog.item_ids)
    titles, texts = list(catalog.titles), list(catalog.texts)
    item_ids = list(catalog.item_ids)
    for number, item in enumerate(items):
        item_id, fields = _checked(number, item, roles)
        if item_id in known:
            raise DataError(f"items[{number}]: the catalogue has an item {item_id!r} already.")
        text = template(fields)
        if not text:
            raise DataError(f"items[{number}] ({item_id!r}) has no text; give {_example(roles)}.")
        known.add(item_id)
        item_ids.append(item_id)
        titles.append(clean(fields[roles[0]]))
        texts.append(text)
    untrained = [*catalog.untrained, *range(catalog.item_num, len(item_ids))]
    return replace(catalog, item_ids=item_ids, titles=titles, texts=texts, untrained=untrained)


def _checked(number: int, item: Any, roles: Sequence[str]) -> tuple[str, dict[str, str]]:
    """The ID and the text by role of ``items[number]``; a missing text is empty.

    Raises:
        DataError: the item is malformed.
    """
    if not isinstance(item, Mapping):
        raise DataError(f"items[{number}]={item!r:.60} is no item; give {_example(roles)}.")
    if not item.get(ITEM_ID):
        raise DataError(f"items[{number}] has no {ITEM_ID}; give {_example(roles)}.")
    for key, value in item.items():
        if key != ITEM_ID and key not in roles:
            raise DataError(
                f"items[{number}]: unknown field {key!r}; this model reads {ITEM_ID}, "
                f"{', '.join(roles)}."
            )
        if not isinstance(value, str):
            raise DataError(f"items[{number}]: {key}={value!r:.60} must be text; put it in quotes.")
    try:
        item[ITEM_ID].encode()
    except UnicodeEncodeError as error:
        raise DataError(
            f"items[{number}]: {ITEM_ID}={item[ITEM_ID]!r:.60} is no Unicode text (a lone "
            "surrogate); give the item another id."
        ) from error
    return item[ITEM_ID], {role: item.get(role, "") for role in roles}


def _example(roles: Sequence[str]) -> str:
    return "{" + ", ".join(f'"{name}": "..."' for name in (ITEM_ID, *roles)) + "}"
