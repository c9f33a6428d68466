"""The runs to analyse: their trained models and their data sets."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from recbole_idiomoe.analysis.settings import AnalysisSettings
from recbole_idiomoe.base.backbones import UNTRAINED
from recbole_idiomoe.base.errors import DataError, SettingError
from recbole_idiomoe.base.run_folder import read_run
from recbole_idiomoe.config.options import listed_defaults
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.catalog import text_fields
from recbole_idiomoe.data.dataset import item_list_field
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.lm import with_random_weights
from recbole_idiomoe.models.language.catalog_lm import CatalogLM, untouched_backbone
from recbole_idiomoe.models.registry import LANGUAGE_MODELS, get_model
from recbole_idiomoe.recommend import load

_OF_RECBOLE = ("seed", "epochs", "train_batch_size", "learning_rate", "weight_decay")
_DISTINGUISHING = (*listed_defaults(), *_OF_RECBOLE)  # settings that tell runs of a model apart


@dataclass(frozen=True)
class Run:
    """A trained language model and the data set that it was trained on."""

    label: str
    """Its model's name, with a distinguishing setting or number if several runs share it."""
    folder: Path
    info: dict[str, Any]
    """The content of ``run.json``: :func:`~recbole_idiomoe.base.run_folder.read_run`."""
    catalog_lm: CatalogLM
    data_path: str
    """The folder of the data sets, if it has moved since the run; else empty."""

    @property
    def about(self) -> dict[str, str]:
        """The run for a result file, without the path of its folder."""
        names = {"model": self.info["model"], "dataset": self.info["dataset"]}
        return {"run": self.label, **names, "folder": self.folder.resolve().name}

    @property
    def _redrawn(self) -> bool:
        """Whether the model draws new weights in place of a backbone's."""
        return not get_model(self.info["model"]).pretrained

    @property
    def pretrained(self) -> bool:
        """Whether the run started from a pretrained language model."""
        return self.catalog_lm.settings.backbone != UNTRAINED and not self._redrawn

    @property
    def origin(self) -> tuple[object, ...]:
        """The identity of the untouched backbone: equal for runs that started from the same one."""
        settings = self.catalog_lm.settings
        seed = None if self.pretrained else self.info["settings"]["seed"]
        how = str(settings.backbone_args), settings.attn_implementation
        return settings.backbone, *how, self._redrawn, seed

    def untouched_backbone(self) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
        """The decoder that the run started from, on the CPU, and its tokenizer.

        It uses the run's implementation of attention.

        Raises:
            BackboneError: the backbone no longer exists.
        """
        settings, seed = self.catalog_lm.settings, self.info["settings"]["seed"]
        backbone, tokenizer = untouched_backbone(settings, seed)
        if self._redrawn:
            backbone = with_random_weights(backbone, seed)
        backbone.set_attn_implementation(settings.attn_implementation)
        return backbone, tokenizer

    @cached_property
    def dataset(self) -> Any:
        """RecBole's dataset, loaded again from its files and not yet split."""
        moved = {"data_path": self.data_path} if self.data_path else {}
        settings = self.info["settings"] | moved
        return load_dataset(RunConfig(self.info["model"], self.info["dataset"], settings=settings))

    @cached_property
    def _test(self) -> Any:
        """The test split of ``dataset``, cached because RecBole can split a dataset only once."""
        return self.dataset.build()[2]

    def categories(self, column: str = "", level: int = -1) -> list[str]:
        """The category of every catalogue row, empty for an item without one.

        The paper has one category per item. In a column with several entries, for example a path
        or a set of genres, ``level`` chooses one.

        Args:
            column, level: see ``category_field`` and ``category_level`` of
                :class:`~recbole_idiomoe.analysis.settings.FfnMemorySettings`.

        Raises:
            SettingError: the column does not exist.
            DataError: no item has a category.
        """
        dataset = self.dataset
        roles = text_fields(self.catalog_lm.settings)
        column = column or roles.get("category") or self.info["settings"].get("item_attribute", "")
        loaded = [] if dataset.item_feat is None else list(dataset.item_feat.columns)
        if column not in loaded or dataset.field2id_token.get(column) is None:
            named = f"there is no column {column!r} of words" if column else "no column is named"
            raise SettingError(
                f"categories: {named} among what was loaded from {dataset.dataset_name}.item "
                f"({', '.join(loaded) or 'nothing'}); give --category_field."
            )
        values, names = np.asarray(dataset.item_feat[column]), dataset.field2id_token[column]
        entries = ([str(names[i]) for i in np.atleast_1d(row) if int(i) != 0] for row in values)
        ids = map(str, dataset.field2id_token[dataset.iid_field])
        by_item = dict(zip(ids, (_chosen(row, level) for row in entries), strict=True))
        found = [by_item.get(item, "") for item in self.catalog_lm.catalog.item_ids]
        found[0] = ""
        if not any(found):
            nothing = f"no item of {self.label} has a category in {column!r}"
            raise DataError(f"{nothing}; give another --category_field.")
        return found

    def histories(self, count: int) -> list[np.ndarray]:
        """Catalogue rows of the histories of ``count`` test users, evenly spaced."""
        test = self._test
        chosen = np.unique(np.linspace(0, len(test) - 1, min(count, len(test))).astype(int))
        rows = test[torch.from_numpy(chosen)]
        names = test.field2id_token[test.iid_field]
        lengths = rows[test.item_list_length_field].tolist()
        return [
            self.catalog_lm.catalog.rows(names[items[:length]])
            for items, length in zip(rows[item_list_field(test)].numpy(), lengths, strict=True)
        ]


def open_runs(folders: Sequence[Path], settings: AnalysisSettings) -> Iterator[Run]:
    """Load the runs in ``folders``, one at a time.

    Raises:
        CheckpointError: a folder does not hold a finished run.
        SettingError: a run's model is not a language model, or the device does not exist.
    """
    infos = [read_run(folder) for folder in folders]
    for folder, info in zip(folders, infos, strict=True):
        if info["model"] not in LANGUAGE_MODELS:
            raise SettingError(
                f"{folder} holds {info['model']}, which is no language model; give the folder of "
                f"one ({', '.join(list(LANGUAGE_MODELS)[:2])} ...)."
            )
    name = settings.device
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise SettingError(f"--device={name} is not available here; give cpu.") from error
    for label, folder, info in zip(_labels(infos), folders, infos, strict=True):
        catalog_lm = load(folder, device).catalog_lm
        assert catalog_lm is not None
        yield Run(label, folder, info, catalog_lm, settings.data_path)


def _labels(infos: Sequence[dict[str, Any]]) -> list[str]:
    """A short, unique name for each run: its model, and its data set if there are several.

    Runs that share a name get the one setting that differs, as in ``IDIOMoE freeze=backbone``; if
    several settings differ, or none, a number.
    """
    several = len({info["dataset"] for info in infos}) > 1
    names = [f"{i['model']} {i['dataset']}" if several else str(i["model"]) for i in infos]
    labels = list(names)
    for name in dict.fromkeys(names):
        places = [place for place, each in enumerate(names) if each == name]
        if len(places) > 1:
            chosen = [infos[place]["settings"] for place in places]
            keys = [k for k in _DISTINGUISHING if len({str(each.get(k)) for each in chosen}) > 1]
            suffixes = [f"{keys[0]}={each.get(keys[0])}" for each in chosen] if keys else []
            if len(keys) > 1 or len(set(suffixes)) < len(places):
                suffixes = [f"({number})" for number in range(1, len(places) + 1)]
            for place, suffix in zip(places, suffixes, strict=True):
                labels[place] = f"{name} {suffix}"
    return labels


def _chosen(entries: list[str], level: int) -> str:
    """The entry of an item's categories that ``level`` chooses."""
    if level == 0 or not entries:
        return ", ".join(entries)
    return entries[-1] if level < 0 else entries[min(level, len(entries)) - 1]


def require_item_tokens(run: Run) -> None:
    """Raise a :class:`SettingError` unless every item of ``run`` has a token of its own."""
    if not run.catalog_lm.item_codes.one_token_each:
        chosen = run.catalog_lm.settings.item_tokens
        raise SettingError(
            f"{run.label} spells items in several tokens (item_tokens={chosen}), so that none has "
            "a vector of its own; give a run with item_tokens=atomic."
        )
