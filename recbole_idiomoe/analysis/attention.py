"""``attention``: attention of each layer on text and between items (paper, section B.6.3)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice, product
from pathlib import Path

import numpy as np
import torch

from recbole_idiomoe.analysis import attention_maps as maps
from recbole_idiomoe.analysis.prompts import PROMPTS, read_text, text_file
from recbole_idiomoe.analysis.results import Analysis, Row
from recbole_idiomoe.analysis.runs import Run, open_runs
from recbole_idiomoe.analysis.settings import AttentionSettings
from recbole_idiomoe.base.errors import DataError
from recbole_idiomoe.data.batch import collate
from recbole_idiomoe.data.catalog import read_history
from recbole_idiomoe.data.sequence import ITEM
from recbole_idiomoe.lm import encode_text
from recbole_idiomoe.models.language.catalog_lm import CatalogLM

BLOCKS = ("early", "middle", "late")
MEASURES = ("previous", "first", "entropy")
_OnText = dict[str, list[maps.TextAttention]]  # by layer, of the run and of its backbone


def attention(folders: Sequence[Path], settings: AttentionSettings) -> Analysis:
    """Attention of runs on text, compared with their untouched backbones, and on histories.

    Returns:
        Tables ``text`` (a row for each layer), ``distance`` (a row for each block of layers and
        distance) and ``items`` (a row for each layer, and one for evenly spread attention).

    Raises:
        IdiomoeError: a folder is not a run of a language model, its backbone is missing, or the
            text or the histories cannot be read.
    """
    texts: Sequence[str] = [text_file(settings.text)] if settings.text else PROMPTS
    given = _given_histories(settings.histories_file)
    analysis = Analysis(
        name="attention",
        title="Attention on text and between items (section B.6.3)",
        settings=asdict(settings),
        tables={"text": [], "distance": [], "items": []},
        notes=_notes(settings),
    )
    tables, notes = analysis.tables, analysis.notes
    for run in open_runs(folders, settings):
        lm = run.catalog_lm.lm.float()
        prompts = _prompts(run.catalog_lm, texts, settings)
        untouched, _ = run.untouched_backbone()
        on_text = {
            name: maps.text_attention(model, prompts, settings.distances)
            for name, model in (("", lm.language_model()), ("untouched_", untouched.to(lm.device)))
        }
        del untouched
        tables["text"] += _text_rows(run.label, on_text)
        tables["distance"] += _distance_rows(run.label, on_text)
        notes.append(_text_note(run.label, prompts, on_text))
        histories = [run.catalog_lm.catalog.rows(items) for items in given]
        if not given and settings.histories:
            histories = run.histories(settings.histories)
        if histories:
            rows, note = _item_rows(run, histories)
            tables["items"] += rows
            notes.append(note)
        analysis.add_run(run.about, lm.device)
    return analysis


@torch.no_grad()
def history_attention(
    catalog_lm: CatalogLM, histories: Sequence[np.ndarray]
) -> tuple[list[maps.HistoryAttention], maps.HistoryAttention]:
    """Each layer's attention between items and text, and what evenly spread attention would give.

    Histories, each the catalogue rows of its items, oldest first, are read one at a time, as for
    a recommendation.

    Raises:
        DataError: a history has no item tokens, for example if items are spelt in text.
    """
    means, even = maps.Means(), maps.Means()
    is_item = torch.zeros(0, dtype=torch.bool)
    with maps.reading_attention(
        catalog_lm.lm.backbone,
        lambda layer, found: maps.read_items(found[0], layer, means, is_item),
    ):
        for sequence in catalog_lm.sequences(histories):
            is_item = torch.from_numpy(sequence.token_types == ITEM)
            if not is_item.any():
                raise DataError("there are no item tokens in the histories to attend to.")
            batch = collate([sequence], catalog_lm.pad_token_id).to(catalog_lm.lm.device)
            catalog_lm.lm.hidden_states(batch.input_ids, batch.token_types, segments=batch.segments)
            maps.read_items(maps.even_attention(len(is_item)), 0, even, is_item)
    layers = [maps.HistoryAttention(**means.layer(layer)) for layer in range(means.depth)]
    return layers, maps.HistoryAttention(**even.layer(0))


def _prompts(
    catalog_lm: CatalogLM, texts: Sequence[str], settings: AttentionSettings
) -> list[list[int]]:
    """Token ids of up to ``prompts`` pieces of ``texts``, each of 2 to ``prompt_tokens`` tokens."""
    longest = getattr(catalog_lm.lm.backbone.config, "max_position_embeddings", None)
    size = min(settings.prompt_tokens, longest or settings.prompt_tokens)
    pieces = (
        ids[start : start + size]
        for ids in encode_text(catalog_lm.tokenizer, list(texts))
        for start in range(0, len(ids), size)
    )
    found = list(islice((piece for piece in pieces if len(piece) > 1), settings.prompts))
    if not found:
        raise DataError(f"--text={settings.text} has fewer than two tokens; give a longer text.")
    return found


def _given_histories(path: str) -> list[list[str]]:
    """Item ids of the histories in a file; none if ``path`` is empty."""
    if not path:
        return []
    text = read_text("histories_file", path, "with item ids on each line: ID,ID")
    where = f"--histories_file={path}, line"
    read = (read_history(line, f"{where} {n}") for n, line in enumerate(text.splitlines(), start=1))
    histories = [history for history in read if history]
    if not histories:
        raise DataError(f"--histories_file={path} holds no history; give item ids: ID,ID.")
    return histories


def _text_rows(label: str, found: _OnText) -> list[Row]:
    """A row for each layer, with None where only the run or its backbone has that layer."""
    rows = []
    for layer in range(max(map(len, found.values()))):
        row: Row = {"run": label, "layer": layer}
        for measure, (name, layers) in product(MEASURES, found.items()):
            row[name + measure] = getattr(layers[layer], measure) if layer < len(layers) else None
        rows.append(row)
    return rows


def _distance_rows(label: str, found: _OnText) -> list[Row]:
    """Means over thirds of the layers, with a row for each distance."""
    profiles = {
        f"{name}attention": [
            np.mean([layer.distances for layer in block], axis=0).tolist()
            for block in np.array_split(np.array(layers, dtype=object), len(BLOCKS))
            if len(block)
        ]
        for name, layers in found.items()
    }
    names = BLOCKS[: min(map(len, profiles.values()))]
    rows: list[Row] = []
    for index, block in enumerate(names):
        means = zip(*(blocks[index] for blocks in profiles.values()), strict=True)
        for distance, values in enumerate(means):
            place: Row = {"run": label, "layers": block, "distance": distance}
            rows.append(place | dict(zip(profiles, values, strict=True)))
    return rows


def _item_rows(run: Run, histories: Sequence[np.ndarray]) -> tuple[list[Row], str]:
    if run.catalog_lm.item_codes.in_text:
        return [], f"{run.label} spells items in text, so that no token of a history is an item."
    layers, even = history_attention(run.catalog_lm, histories)
    found = [*enumerate(layers), (None, even)]
    rows: list[Row] = [{"run": run.label, "layer": at, **asdict(each)} for at, each in found]
    return rows, f"{run.label}: {len(histories)} histories."


def _text_note(label: str, prompts: Sequence[Sequence[int]], found: _OnText) -> str:
    start = f"{label}: {len(prompts)} prompts of {sum(map(len, prompts)):,} tokens"
    trained, untouched = found[""], found["untouched_"]
    if len(trained) != len(untouched):
        return f"{start}; {len(trained)} layers, its backbone {len(untouched)}."
    pairs = list(zip(trained, untouched, strict=True))
    listed = ", ".join(
        f"{name} {max(abs(getattr(a, name) - getattr(b, name)) for a, b in pairs):.2g}"
        for name in MEASURES
    )
    return f"{start}; largest difference of a layer from the untouched backbone: {listed}."


def _notes(settings: AttentionSettings) -> list[str]:
    return [
        "Attention is the mean over heads, in float32; figures are means over queries. previous: "
        "to the token before; first: to the first token; entropy in nats. "
        f"Distances up to {settings.distances} tokens; layers in three blocks of about equal size. "
        "Layers count from 0.",
        "Histories are read as in use. The row without a layer is attention that is spread evenly "
        "over what a token sees, which is more items or more text. item to first, text to first: "
        "what of it goes to the first token, where decoders put attention that nothing needs.",
    ]
