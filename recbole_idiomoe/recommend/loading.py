"""Loading a recommender from the folder of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_idiomoe.base.errors import CheckpointError
from recbole_idiomoe.base.locks import loading
from recbole_idiomoe.base.run_folder import read_run
from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.models import registry
from recbole_idiomoe.recommend.recommender import Recommender, Scorer


@loading()
def load(
    folder: str | Path,
    device: torch.device | str | None = None,
    *,
    compile: bool = False,
    data_path: str | Path | None = None,
) -> Recommender:
    """Load a recommender from the folder of a run of any model.

    A language model needs only the folder. RecBole's models and baselines are rebuilt from their
    data set, whose files must still be where they were, or in ``data_path``.

    Several threads may use the recommender at once. Threads that load at the same time wait for
    each other; recommenders that are already loaded go on meanwhile.

    Args:
        folder: the folder of a run under ``saved/``, which the run prints and its result names.
        device: the device to run on; None: a GPU if there is one.
        compile: compile a language model's blocks on a GPU, which delays the first
            recommendations and speeds up all later ones.
        data_path: the folder that holds the data set's folder, if it has moved since the run.

    Raises:
        CheckpointError: ``folder`` is not the folder of a finished run.
        DataError: a model of RecBole's or a baseline does not find its data set.
    """
    folder = Path(folder)
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    run = read_run(folder)
    if data_path is not None:
        run["settings"]["data_path"] = str(data_path)
    max_history = run["settings"]["MAX_ITEM_LIST_LENGTH"]
    if run["model"] not in registry.LANGUAGE_MODELS:
        scorer = _recbole_scorer(run, folder, device)
        return Recommender(Catalog.load(folder), scorer, max_history, run)

    from recbole_idiomoe.lm.compilation import compile_blocks
    from recbole_idiomoe.models.language.catalog_lm import CatalogLM
    from recbole_idiomoe.models.language.options import LanguageModelOptions

    settings = registry.get_options(run["model"]).from_mapping(run["settings"])
    assert isinstance(settings, LanguageModelOptions)
    catalog_lm = CatalogLM.load(folder, settings, device)
    if compile and device.type == "cuda":
        compile_blocks(catalog_lm.lm.backbone)
    return Recommender(catalog_lm.catalog, catalog_lm.scores, max_history, run, catalog_lm)


def _recbole_scorer(run: Mapping[str, Any], folder: Path, device: torch.device) -> Scorer:
    """Rebuild a model of RecBole's or a baseline from its data set and its saved weights.

    The user is RecBole's padding user, also for models that read the user (FPMC, HGN).
    """
    from recbole.data.interaction import Interaction
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from recbole_idiomoe.config.run_config import RunConfig
    from recbole_idiomoe.data.catalog import read_catalog
    from recbole_idiomoe.data.loading import load_dataset

    # A folder may come from somebody else and must not allow itself to run code.
    settings = {**run["settings"], "trust_remote_code": False}
    config = RunConfig(run["model"], run["dataset"], settings=settings)
    config["device"] = device
    if "train_stage" in config:
        config["train_stage"] = "pretrain"  # otherwise S3Rec reads its first stage's checkpoint
    dataset = load_dataset(config).build()[0]
    catalog = read_catalog(dataset, TextOptions.from_mapping(config))
    if catalog.fingerprint != Catalog.load(folder).fingerprint:
        raise CheckpointError(
            f"{folder} was trained on another catalogue than {run['dataset']} now is; put back "
            "the files that it was trained on."
        )
    model = registry.get_model(run["model"])(config, dataset).to(device)
    try:
        model.load_state_dict(load_file(folder / "model.safetensors", device=str(device)))
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder} holds no complete model ({type(error).__name__}); let its run finish."
        ) from error
    model.eval()

    @torch.no_grad()
    def scores(histories: Sequence[np.ndarray]) -> torch.Tensor:
        items = torch.zeros(len(histories), config["MAX_ITEM_LIST_LENGTH"], dtype=torch.int64)
        for row, history in zip(items, histories, strict=True):
            row[: len(history)] = torch.from_numpy(history)
        columns = {
            model.USER_ID: torch.zeros(len(histories), dtype=torch.int64),
            model.ITEM_SEQ: items,
            model.ITEM_SEQ_LEN: torch.tensor([len(history) for history in histories]),
        }
        interaction = Interaction(columns).to(device)
        return model.full_sort_predict(interaction).view(len(histories), -1)

    return scores
