"""Items that a model was not trained on, placed by their text among those that it was.

Where items are tokens of their own, a ridge regression learns, from those that were trained on,
how the vector of an item's text becomes the item's row; it then gives the others theirs. Semantic
IDs and titles say by themselves what an item is. It serves a cold start, whose unseen items are in
the catalogue already, and items that are added to a trained model.
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

from recbole_idiomoe.base.errors import CheckpointError, DataError, SettingError
from recbole_idiomoe.data.catalog import Catalog, text_fields
from recbole_idiomoe.data.item_codes import codes_of
from recbole_idiomoe.data.semantic_ids import SemanticIds
from recbole_idiomoe.data.template import Template, clean
from recbole_idiomoe.data.text_encoder import item_vectors
from recbole_idiomoe.lm import ItemTable
from recbole_idiomoe.lm.embedding import text_directions
from recbole_idiomoe.lm.text_attributes import TextAttributeTable
from recbole_idiomoe.lm.vocabulary import append_item_tokens, item_tokens
from recbole_idiomoe.models.language.catalog_lm import CatalogLM, untouched_backbone
from recbole_idiomoe.models.language.options import LanguageModelOptions

logger = logging.getLogger(__name__)

ITEM_ID = "item_id"
# Penalties to choose from, where text vectors have length 1.
ALPHAS = np.logspace(-3, 3, 13)


def place_unseen_items(model: CatalogLM, seed: int) -> None:
    """Give the items of the catalogue that were not trained on the rows that their text suggests.

    Args:
        seed: the run's, with which its text encoder was made.

    Raises:
        DataError: too few items to learn from.
    """
    catalog = model.catalog
    unseen = torch.tensor(catalog.untrained, dtype=torch.int64)
    if not len(unseen) or model.settings.item_tokens != "atomic":
        return
    directions = _directions(model, catalog, seed)
    _tell_unread(catalog, unseen, directions)
    table = model.lm.item_table
    table.place(unseen, *parts_from_text(table, directions, catalog.untrained, unseen))


def add_items(model: CatalogLM, items: Sequence[Mapping[str, str]], seed: int) -> None:
    """Put new items behind those of a trained model, in place; no other item's score changes.

    Except of an item whose semantic ID was its own until now and is a new item's too: a last token
    then tells them apart.

    Args:
        items: of each its ``item_id`` and, by the roles of ``item_text_fields``, its text.
        seed: as in :func:`place_unseen_items`.

    Raises:
        DataError: items that cannot be; nothing is changed then.
        SettingError: the encoder's file has no vector of an item.
    """
    before = model.catalog
    catalog = _extended(before, items, model.settings)
    if catalog.item_num == before.item_num:
        return
    added = torch.arange(before.item_num, catalog.item_num)
    ids = model.item_codes.semantic_ids
    if ids is not None:
        ids = _longer_ids(model, ids, catalog, added, seed)
    elif model.settings.item_tokens == "atomic":
        _add_rows(model, catalog, added, seed)
    offset = model.lm.config.item_token_offset
    codes = codes_of(catalog, model.settings, model.tokenizer, offset, ids)
    model.set_catalog(catalog, codes)


@torch.no_grad()
def parts_from_text(
    table: ItemTable, directions: torch.Tensor, untrained: Sequence[int], wanted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :meth:`ItemTable.place` wants of the items ``wanted`` (m,): rows, and text vectors.

    The ridge penalty is the one with the least leave-one-out error. What a regression predicts
    lies nearer to the mean than what it learnt from, and an item near the mean is never ranked
    first; so items are brought as far from the mean as trained ones are, by one factor that
    the trained ones decide.

    Args:
        directions: (n, k), the items' text as :func:`text_directions` gives it, zero where there
            is none; n may exceed the table's items.
        untrained: items that nothing is learnt from.

    Raises:
        DataError: fewer than two items to learn from.
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
    # Each item's row as it would be predicted had it not been trained on.
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


def _add_rows(model: CatalogLM, catalog: Catalog, added: torch.Tensor, seed: int) -> None:
    """Rows and tokens for the items ``added``."""
    directions = _directions(model, catalog, seed)
    _tell_unread(catalog, added, directions, model.settings.text_encoder)
    table = model.lm.item_table
    parts = parts_from_text(table, directions, catalog.untrained, added)
    table.grow(catalog.item_num)
    table.place(added, *parts)
    model.lm.config.item_num = catalog.item_num
    append_item_tokens(model.tokenizer, item_tokens(catalog.item_ids)[int(added[0]) :])


def _longer_ids(
    model: CatalogLM, ids: SemanticIds, catalog: Catalog, added: torch.Tensor, seed: int
) -> SemanticIds:
    """``ids`` with those of the items ``added``."""
    vectors = _vectors(model, catalog, seed)
    _tell_unread(catalog, added, torch.from_numpy(vectors), model.settings.text_encoder)
    known = np.arange(1, ids.item_num)
    if vectors.shape[1] != len(ids.mean) or (
        (ids.encode(vectors[known]) != ids.codes[known]).any(axis=1).mean() > 0.001
    ):
        raise _other_vectors(model)
    return ids.with_items(vectors[added.numpy()])


def _vectors(model: CatalogLM, catalog: Catalog, seed: int) -> np.ndarray:
    """Text vectors of ``catalog``, ``(item_num, k)``, from the encoder that training had."""
    settings, config = model.settings, model.lm.config
    backbone = None
    if settings.text_encoder == "backbone":  # the model's own has been trained since
        backbone = untouched_backbone(settings, seed)
    return item_vectors(
        catalog,
        settings.text_encoder,
        dim=config.item_embedding_dim or config.hidden_size,
        backbone=backbone,
        device=model.lm.device,
        seed=seed,
    )


def _directions(model: CatalogLM, catalog: Catalog, seed: int) -> torch.Tensor:
    """Text vectors as :func:`text_directions` gives them, ``(item_num, k)``, as in training."""
    vectors = _vectors(model, catalog, seed)
    directions = text_directions(vectors, catalog.item_num, catalog.untrained)
    table = model.lm.item_table
    if isinstance(table, TextAttributeTable):
        trained = np.setdiff1d(np.arange(table.item_num), catalog.untrained)
        found = table.text[trained].float().cpu()
        if found.shape[1] != directions.shape[1] or (
            (found - directions[trained]).abs().max() > 0.01
        ):
            raise _other_vectors(model)
    return directions


def _other_vectors(model: CatalogLM) -> CheckpointError:
    return CheckpointError(
        f"text_encoder={model.settings.text_encoder!r} no longer gives the vectors that the model "
        "was trained on; restore its file, or the versions that run.json names."
    )


def _tell_unread(
    catalog: Catalog, items: torch.Tensor, directions: torch.Tensor, encoder: str = ""
) -> None:
    """Name the items whose text says nothing: an average row is all that they can get.

    Raises:
        SettingError: ``encoder`` is a file of vectors, which can be mended.
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
    """``catalog`` with ``items`` behind its own; raises as :func:`add_items`."""
    roles = list(text_fields(settings))
    template = Template(settings.item_template, roles)
    if isinstance(items, str | Mapping) or not isinstance(items, Sequence):
        raise DataError(f"items={items!r:.60} is no list; give one of {_example(roles)}.")
    taken = set(catalog.item_ids)
    item_ids, titles, texts = [], [], []
    for number, item in enumerate(items):
        item_id, fields = _checked(number, item, roles)
        if item_id in taken:
            raise DataError(f"items[{number}]: the catalogue has an item {item_id!r} already.")
        text = template(fields)
        if not text:
            raise DataError(f"items[{number}] ({item_id!r}) has no text; give {_example(roles)}.")
        taken.add(item_id)
        item_ids.append(item_id)
        titles.append(clean(fields[roles[0]]))
        texts.append(text)
    return replace(
        catalog,
        item_ids=catalog.item_ids + item_ids,
        titles=catalog.titles + titles,
        texts=catalog.texts + texts,
        untrained=catalog.untrained
        + list(range(catalog.item_num, catalog.item_num + len(item_ids))),
    )


def _checked(number: int, item: Any, roles: Sequence[str]) -> tuple[str, dict[str, str]]:
    """An item's id and its text by role, empty where it has none."""
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
