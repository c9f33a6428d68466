"""A recommender from the folder of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from recbole_idiomoe.base.errors import CheckpointError
from recbole_idiomoe.base.run_folder import read_run
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.recommend.recommendation import Scorer
from recbole_idiomoe.recommend.recommender import Recommender


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
    catalog = read_catalog(dataset, TextOptions.from_mapping(config))
    if catalog.fingerprint != Catalog.load(folder).fingerprint:
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
