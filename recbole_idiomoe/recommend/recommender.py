"""Recommendations from a trained model: ``load(FOLDER).recommend([item ids])``.

python -m recbole_idiomoe.recommend FOLDER --history=ID,ID --k=10
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch

from recbole_idiomoe.base.command_line import Parser, ended
from recbole_idiomoe.base.errors import CheckpointError, DataError, SettingError
from recbole_idiomoe.base.run_folder import read_run, write_run
from recbole_idiomoe.data.catalog import Catalog, check_history, read_history
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.protocol.score_memory import users_at_once
from recbole_idiomoe.report.tables import WIDTH

if TYPE_CHECKING:
    from recbole_idiomoe.models.language.catalog_lm import CatalogLM
    from recbole_idiomoe.recommend.session import Session

logger = logging.getLogger(__name__)
Scorer = Callable[..., torch.Tensor]


class Recommendation(NamedTuple):
    """One recommended item."""

    item_id: str
    title: str
    score: float


class Recommender:
    """A trained model and its catalogue.

    Args:
        catalog: the items.
        scorer: histories of item rows, and a query if there is one, to scores of shape
            ``(histories, item_num)``.
        max_history: most recent items that are read.
        run: model and settings, as :func:`~recbole_idiomoe.base.run_folder.read_run` gives them.
        catalog_lm: the model, if it is a language model.
    """

    def __init__(
        self,
        catalog: Catalog,
        scorer: Scorer,
        max_history: int,
        run: Mapping[str, Any],
        catalog_lm: CatalogLM | None = None,
    ) -> None:
        self.catalog = catalog
        self.scorer = scorer
        self.max_history = max_history
        self.run = run
        self.catalog_lm = catalog_lm

    @property
    def ranks_unseen_items(self) -> bool:
        """Whether items that were not trained on can be ranked, by their text."""
        return self.catalog_lm is not None and self.catalog_lm.ranks_unseen_items

    @overload
    def recommend(
        self, history: list[str], k: int = ..., exclude_seen: bool = ..., query: str | None = ...
    ) -> list[Recommendation]: ...

    @overload
    def recommend(
        self,
        history: list[list[str]],
        k: int = ...,
        exclude_seen: bool = ...,
        query: str | None = ...,
    ) -> list[list[Recommendation]]: ...

    def recommend(
        self,
        history: list[str] | list[list[str]],
        k: int = 10,
        exclude_seen: bool = True,
        query: str | None = None,
    ) -> list[Recommendation] | list[list[Recommendation]]:
        """The ``k`` items that most likely come next, best first.

        Args:
            history: item ids of the dataset, oldest first; or a list of such histories.
            k: how many; fewer come back if the catalogue has no more.
            exclude_seen: leave out the items of the history.
            query: what the user asks for, in words; a history may then be empty. A model that
                was not trained on queries (``query_share``) reads it all the same, and says so.

        Returns:
            A list of recommendations; for a list of histories, a list for each.

        Raises:
            DataError: items that are not in the catalogue, which are named; an empty history, or
                one that is no list; ``k`` below 1; a query to a model that reads no text.
            CheckpointError: the model's scores are not numbers.
        """
        check_history(history)
        single = not any(isinstance(part, list | tuple | np.ndarray) for part in history)
        histories: Sequence[Any] = [history] if single else history
        lists = self.ranked(histories, k, exclude_seen, query, self.scorer)
        return lists[0] if single else lists

    def session(self, history: Sequence[str] = ()) -> Session:
        """One user whose history grows, each time computing only what is new of it.

        Args:
            history: item ids of the dataset, oldest first; there may be none yet.

        Raises:
            DataError: items that are not in the catalogue, which are named.
        """
        from recbole_idiomoe.recommend.session import Session

        return Session(self, history)

    def ranked(
        self,
        histories: Sequence[Sequence[str]],
        k: int,
        exclude_seen: bool,
        query: str | None,
        scorer: Scorer,
    ) -> list[list[Recommendation]]:
        """:meth:`recommend` for a list of histories, by the scores of any ``scorer``.

        Scores stay on the device that they are made on, so many at once as its memory is
        meant to hold.
        """
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or k < 1:
            raise DataError(f"k={k!r:.60}: a whole number, at least 1, is wanted.")
        rows = [self.catalog.rows(history) for history in histories]
        if query is None and any(len(row) == 0 for row in rows):
            raise DataError("a history is empty; give at least one item id.")
        asked = () if query is None else (self._checked(query),)
        size = users_at_once(self.catalog.item_num)
        lists = []
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            scores = scorer([row[-self.max_history :] for row in part], *asked).float()
            self._mask(scores, part if exclude_seen else [])
            lists += self._best(scores, k)
        return lists

    def _mask(self, scores: torch.Tensor, seen: Sequence[np.ndarray]) -> None:
        """Rule out the padding item, what cannot be ranked, and the rows ``seen`` by each user."""
        scores[:, 0] = -torch.inf
        if self.catalog.untrained and not self.ranks_unseen_items:
            untrained = torch.tensor(self.catalog.untrained, device=scores.device)
            scores.index_fill_(1, untrained, -torch.inf)
        if seen:
            users = np.repeat(np.arange(len(seen)), [len(row) for row in seen])
            pairs = torch.from_numpy(np.stack((users, np.concatenate(seen))))
            user, item = pairs.to(scores.device, non_blocking=True)
            scores[user, item] = -torch.inf

    def _best(self, scores: torch.Tensor, k: int) -> list[list[Recommendation]]:
        """The head of each list, named."""
        best, items = scores.topk(min(k, self.catalog.item_num - 1), dim=1)
        heads = list(zip(best.tolist(), items.tolist(), strict=True))
        if any(math.isnan(score) for best_row, _ in heads for score in best_row[:1]):
            # topk puts nan first.
            raise CheckpointError(
                f"{self.run['model']} scores items nan: nothing can be recommended by that; train "
                "it anew with a lower learning_rate or precision: fp32."
            )
        return [
            [
                Recommendation(self.catalog.item_ids[item], self.catalog.titles[item], score)
                for score, item in zip(best_row, item_row, strict=True)
                if score != -torch.inf
            ]
            for best_row, item_row in heads
        ]

    def _checked(self, query: str) -> str:
        if not isinstance(query, str) or not query.strip():
            raise DataError(f"query={query!r:.60}: some words are wanted, or None.")
        if self.catalog_lm is None:
            raise DataError(f"query: {self.run['model']} reads no text; leave it out.")
        if self.catalog_lm.settings.query_share == 0:
            logger.warning("this model was not trained on queries (query_share: 0)")
        return query

    def add_items(self, items: Sequence[Mapping[str, str]]) -> None:
        """Put new items into the catalogue, from now on recommended and known in histories.

        An item's place among the others follows from its text, as learnt from those that the
        model was trained on. Scores of the others do not change, but of an item that shares its
        semantic ID with a new one. :meth:`save` keeps the result.

        Args:
            items: of each its ``item_id`` and its text, by the roles of the setting
                ``item_text_fields``: ``{"item_id": "X1", "title": "...", "category": "..."}``.

        Raises:
            SettingError: a model that knows items by their histories alone.
            DataError: an item that cannot be added; none is added then.
        """
        if self.catalog_lm is None or not self.ranks_unseen_items:
            raise SettingError(
                f"{self.run['model']} cannot rank items that came after its training: here it "
                "takes nothing from their text. Train a language model with item_init: text, or "
                "TextAttrLLM."
            )
        from recbole_idiomoe.models.language.new_items import add_items

        add_items(self.catalog_lm, items, seed=self.run["settings"]["seed"])
        self.catalog = self.catalog_lm.catalog

    def save(self, folder: str | Path) -> None:
        """Write the model and its catalogue into a new folder, which :func:`load` opens.

        Raises:
            CheckpointError: the folder holds something already.
            SettingError: a model of RecBole's or a baseline, whose folder is what its run left.
        """
        if self.catalog_lm is None:
            raise SettingError(
                f"{self.run['model']} is no language model, and nothing here changes it; copy the "
                "folder of its run."
            )
        folder = Path(folder)
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise CheckpointError(f"{folder} is there already; name a new folder to save to.")
        self.catalog_lm.save(folder)
        write_run(folder, {**self.run, "folder": str(folder)})


def load(
    folder: str | Path, device: torch.device | str | None = None, *, compile: bool = False
) -> Recommender:
    """A recommender from the folder of a run, whichever model it trained.

    A language model needs nothing but the folder. RecBole's models and baselines are built from
    their dataset, whose files must still be where they were.

    Args:
        folder: what a run printed and its result names, under ``saved/``.
        device: where to run; by default a GPU if there is one.
        compile: compile a language model's blocks, as the setting does for training, where
            ``device`` is a GPU: a service that goes on for long waits for it once.

    Raises:
        CheckpointError: the folder is not that of a finished run.
    """
    from recbole_idiomoe.models.registry import LANGUAGE_MODELS, get_options

    folder = Path(folder)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run = read_run(folder)
    max_history = run["settings"]["MAX_ITEM_LIST_LENGTH"]
    if run["model"] in LANGUAGE_MODELS:
        from recbole_idiomoe.lm.compilation import compile_blocks
        from recbole_idiomoe.models.language.catalog_lm import CatalogLM
        from recbole_idiomoe.models.language.options import LanguageModelOptions

        settings = get_options(run["model"]).from_mapping(run["settings"])
        assert isinstance(settings, LanguageModelOptions)
        catalog_lm = CatalogLM.load(folder, settings, device)
        if compile and device.type == "cuda":
            compile_blocks(catalog_lm.lm.backbone)
        return Recommender(catalog_lm.catalog, catalog_lm.scores, max_history, run, catalog_lm)
    scorer = _recbole_scorer(run, folder, device)
    return Recommender(Catalog.load(folder), scorer, max_history, run)


def _recbole_scorer(run: dict, folder: Path, device: torch.device) -> Scorer:
    """The scores of a model of RecBole's or a baseline, rebuilt from dataset and saved weights.

    A model that reads the user beside the history (FPMC, HGN) is given RecBole's padding user.
    """
    from recbole.data.interaction import Interaction
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from recbole_idiomoe.config.run_config import RunConfig
    from recbole_idiomoe.data.catalog import read_catalog
    from recbole_idiomoe.data.loading import load_dataset
    from recbole_idiomoe.models.registry import get_model

    settings = {**run["settings"], "trust_remote_code": False}  # that is not the folder's to ask
    config = RunConfig(run["model"], run["dataset"], settings=settings)
    config["device"] = device
    if "train_stage" in config:
        config["train_stage"] = "pretrain"  # S3Rec would look for its first stage's file
    dataset = load_dataset(config).build()[0]
    if (
        read_catalog(dataset, TextOptions.from_mapping(config)).fingerprint
        != Catalog.load(folder).fingerprint
    ):
        raise CheckpointError(
            f"{folder} was trained on another catalogue than {run['dataset']} now is; put back "
            "the files that it was trained on."
        )
    model = get_model(run["model"])(config, dataset).to(device)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors", device=str(device)))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} holds no complete model ({type(error).__name__}); let its run finish."
        ) from error
    model.eval()
    width = config["MAX_ITEM_LIST_LENGTH"]

    @torch.no_grad()
    def scores(histories: Sequence[np.ndarray]) -> torch.Tensor:
        items = torch.zeros(len(histories), width, dtype=torch.int64)
        lengths = torch.tensor([len(history) for history in histories])
        for row, history in zip(items, histories, strict=True):
            row[: len(history)] = torch.from_numpy(history)
        users = torch.zeros(len(histories), dtype=torch.int64)
        interaction = Interaction(
            {
                model.USER_ID: users,
                model.ITEM_SEQ: items,
                model.ITEM_SEQ_LEN: lengths,
            }
        )
        return model.full_sort_predict(interaction.to(device)).view(len(histories), -1)

    return scores


def main(arguments: Sequence[str] | None = None) -> int:
    """``python -m recbole_idiomoe.recommend``: print a table of recommendations."""
    return ended(lambda: _main(arguments))


def _main(arguments: Sequence[str] | None) -> None:
    parser = Parser(
        prog="python -m recbole_idiomoe.recommend",
        description="Print what a trained model recommends after a history.",
    )
    parser.add_argument("folder", help="folder of a run, under saved/")
    parser.add_argument(
        "--history",
        default="",
        help="item ids, oldest first: ID,ID,...; those with a comma in quotes, as in a CSV file",
    )
    parser.add_argument("--query", help="what the user asks for, in words")
    parser.add_argument("--k", type=int, default=10, help="how many items")
    parser.add_argument(
        "--include_seen", action="store_true", help="rank the items of the history too"
    )
    options = parser.parse_args(arguments)
    history = read_history(options.history, "--history")
    found = load(options.folder).recommend(
        history, options.k, exclude_seen=not options.include_seen, query=options.query
    )
    ids = [_printable(item.item_id) for item in found]
    width = max(map(len, ["item", *ids]))
    print(f"{'#':>3}  {'item':<{width}}  {'score':>8}  title")
    for rank, (item_id, item) in enumerate(zip(ids, found, strict=True), start=1):
        start = f"{rank:>3}  {item_id:<{width}}  {item.score:>8.3f}  "
        room = max(20, WIDTH - len(start))
        title = item.title if len(item.title) <= room else item.title[: room - 1] + "…"
        print(start + _printable(title))


def _printable(text: str) -> str:
    """``text`` with escapes for what a terminal would act upon, and for what it cannot show."""
    shown = text if text.isprintable() else repr(text)[1:-1]
    encoding = sys.stdout.encoding or "utf-8"
    return shown.encode(encoding, "backslashreplace").decode(encoding)
