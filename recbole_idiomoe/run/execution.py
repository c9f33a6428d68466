"""One run: a model trained on a data set, validated, tested, and kept in a folder."""

from __future__ import annotations

import logging
import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from recbole.data import data_preparation
from recbole.utils import get_local_time, init_seed
from safetensors.torch import save_file

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.environment import (
    device_name,
    peak_memory_mib,
    reset_peak_memory,
    versions,
)
from recbole_idiomoe.base.errors import CheckpointError, DataError, IdiomoeError, SettingError
from recbole_idiomoe.base.files import remove_asides, written_aside
from recbole_idiomoe.base.run_folder import (
    CHECKPOINT_FILE,
    MIX_RANKS_FILE,
    RANKS_FILE,
    RUN_FILE,
    new_folder,
    write_run,
)
from recbole_idiomoe.config.checks import check_text_file
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.catalog import Catalog, read_catalog
from recbole_idiomoe.data.cold_start import unseen_items
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.models.language.options import LanguageModelOptions
from recbole_idiomoe.models.registry import LANGUAGE_MODELS, get_model, get_trainer
from recbole_idiomoe.protocol.clock import Clock
from recbole_idiomoe.protocol.cold_start import evaluate_apart, leave_out_items
from recbole_idiomoe.protocol.description import protocol
from recbole_idiomoe.protocol.finite_scores import refuse_nan
from recbole_idiomoe.protocol.learning_curve import LearningCurve, plain
from recbole_idiomoe.protocol.mixing import evaluate_mix, load_counter
from recbole_idiomoe.protocol.ranks import item_counts, ranks_kept
from recbole_idiomoe.protocol.score_memory import bound_scores
from recbole_idiomoe.protocol.seen_items import mask_seen_items
from recbole_idiomoe.run.log import curves_closed, start_log, start_no_log
from recbole_idiomoe.training.loss_watch import watch_loss
from recbole_idiomoe.training.resumable import resumable
from recbole_idiomoe.training.stages import has_first_stage, pretrain


def run_one(config: RunConfig, resume: Path | None = None) -> dict[str, Any]:
    """Train and test one model on one dataset; see :func:`recbole_idiomoe.api.run`.

    Args:
        resume: folder of an unfinished run to go on with.
    """
    if config["model"] in LANGUAGE_MODELS:
        return _run_one(config, resume)
    others = distributed.world_size() - 1
    if others and distributed.is_main():
        said = f"{config['model']} trains in one process: rank 0 runs it, {others} wait"
        print(said, file=sys.stderr, flush=True)
    return distributed.from_main(lambda: _run_one(config, resume))


def _run_one(config: RunConfig, resume: Path | None) -> dict[str, Any]:
    """The same, by all processes that there are."""
    # Others may start in the same second.
    name = f"{config['model']}-{config['dataset']}-{get_local_time()}-{os.getpid()}"
    parent = Path(config["checkpoint_dir"])
    folder = resume or distributed.from_main(lambda: new_folder(parent, name))
    if config["language_file"]:
        check_text_file("language_file", config["language_file"])
    if resume is not None and distributed.is_main():
        remove_asides(resume)
    try:
        return _run_into(folder, config, resume)
    except KeyboardInterrupt as error:
        if not (folder / RUN_FILE).exists():  # there is nothing to go on with
            raise
        resumed = f"--resume={shlex.quote(str(folder))}"
        raise KeyboardInterrupt(f"interrupted; {resumed} goes on with it") from error


def _run_into(folder: Path, config: RunConfig, resume: Path | None) -> dict[str, Any]:
    """The same, once it is known where."""
    splits = _load(config, folder)
    fitted = _fit(config, splits.settings, splits.train, splits.valid, folder, resume)
    is_language_model = config["model"] in LANGUAGE_MODELS
    if config["cold_start"] and is_language_model and fitted.model.ranks_unseen_items:
        fitted.clock.timing("fit", fitted.trainer.place_unseen_items)()
    ranks = folder / RANKS_FILE
    with ranks_kept(ranks, fitted.trainer, splits.test, splits.item_counts, splits.valid):
        tested = _test(config, fitted.trainer, splits.test, unseen_items(splits.dataset))
    if not is_language_model:
        _save_weights(fitted.model, folder)
    result = _result(config, splits, fitted, tested)
    logger = logging.getLogger()
    logger.info(f"best valid: {result['best_valid_result']}")
    logger.info(f"test: {result['test_result']}")
    result |= _measured_besides(config, splits, fitted)
    distributed.from_main(lambda: write_run(folder, result))
    return result


def validate_one(config: RunConfig, folder: Path) -> dict[str, Any]:
    """Train one model into ``folder`` and validate it: all of a result but the test's part.

    What runs on the way to it is not given the test split, so that whoever chooses by it, such
    as a search for settings, cannot choose by the test.
    """
    splits = _load(config, folder)
    fitted = _fit(config, splits.settings, splits.train, splits.valid, folder)
    return _result(config, splits, fitted)


@dataclass(frozen=True)
class _Splits:
    """A data set, RecBole's loaders of its three parts, and the settings that made them."""

    settings: dict[str, Any]
    """Complete, as they were before RecBole changed some on the way."""
    counts: dict[str, int]
    """Users, items and interactions, before the split takes some of them for its own."""
    item_counts: np.ndarray
    """Likewise every item's interactions."""
    dataset: Any
    train: Any
    valid: Any
    test: Any


@dataclass(frozen=True)
class _Fitted:
    """A trained model, and what is to be said of its training."""

    model: Any
    trainer: Any
    folder: Path
    clock: Clock
    curve: LearningCurve
    valid_seconds: float
    best_valid_result: Mapping[str, Any] | None


def _load(config: RunConfig, folder: Path) -> _Splits:
    """The data of a run that writes into ``folder``, whose log starts here."""
    init_seed(config["seed"], config["reproducibility"])
    complete_settings = config.complete_settings()
    if distributed.is_main():
        start_log(config)
    else:
        start_no_log(config)
    dataset = load_dataset(config)
    counts = {
        "users": dataset.user_num - 1,
        "items": dataset.item_num - 1,
        "interactions": dataset.inter_num,
    }
    logging.getLogger().info(
        f"{config['model']} on {config['dataset_label']}: {counts['users']:,} users, "
        f"{counts['items']:,} items, {counts['interactions']:,} interactions; "
        f"device {config['device']}; folder {folder}"
    )
    counted = item_counts(dataset)  # the split takes some of them for its own
    return _Splits(complete_settings, counts, counted, dataset, *split_dataset(config, dataset))


@curves_closed()
def _fit(
    config: RunConfig,
    complete_settings: Mapping[str, Any],
    train_data: Any,
    valid_data: Any,
    folder: Path,
    resume: Path | None = None,
) -> _Fitted:
    """Train the model of ``config``, the best epoch on ``valid_data`` kept in ``folder``."""
    catalog = read_catalog(train_data._dataset, TextOptions.from_mapping(config))
    distributed.check_alike({"catalogue": catalog.fingerprint})
    if resume is not None:
        _check_same_catalog(catalog, resume)

    def write_description() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        catalog.save(folder)
        write_run(folder, _identity(config) | {"settings": complete_settings})

    def describe_run() -> None:
        """``resume`` can go on with the run from now on."""
        distributed.from_main(write_description)

    clock = Clock()
    if has_first_stage(config):
        describe_run()
    clock.timing("fit", pretrain)(config, train_data, valid_data, folder, clock)
    init_seed(config["seed"], config["reproducibility"])
    model = _build_model(config, train_data._dataset)
    if config["model"] in LANGUAGE_MODELS:
        from recbole_idiomoe.training.sharding import placed  # seconds, which others need not wait

        model = placed(model, model.catalog_lm.settings, config["device"])
    else:
        model = model.to(config["device"])
    reset_peak_memory(config["device"])
    trainer_class = get_trainer(config["model"])
    if config["model"] not in LANGUAGE_MODELS:
        trainer_class = resumable(trainer_class)
    trainer = trainer_class(config, model)
    trainer.saved_model_file = str(folder / CHECKPOINT_FILE)
    trainer.clock = clock  # which its state keeps for a run that is resumed
    if config["model"] not in LANGUAGE_MODELS:
        watch_loss(trainer, train_data._dataset, folder)
    refuse_nan(trainer, train_data._dataset)
    if resume is not None:
        trainer.resume_checkpoint(resume)
    describe_run()

    curve = LearningCurve(trainer)
    trainer.evaluate = clock.timing("evaluate", trainer.evaluate)
    fit = clock.timing("fit", trainer.fit)
    _, best_valid_result = fit(train_data, valid_data, show_progress=config["show_progress"])
    valid_seconds = clock.seconds.get("evaluate", 0.0)
    return _Fitted(model, trainer, folder, clock, curve, valid_seconds, best_valid_result)


def _result(
    config: RunConfig, splits: _Splits, fitted: _Fitted, tested: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What a run says, with what the test says if there was one."""
    trainer, seconds = fitted.trainer, fitted.clock.seconds
    sizes = [
        (distributed.whole_shape(p).numel(), p.requires_grad) for p in fitted.model.parameters()
    ]
    return _identity(config) | {
        "protocol": protocol(config, splits.dataset.item_num - 1),
        **splits.counts,
        "best_valid_result": plain(fitted.best_valid_result),
        **(tested or {}),
        "learning_curve": fitted.curve.points,
        "epochs": max(trainer.train_loss_dict, default=trainer.start_epoch - 1) + 1,
        "train_seconds": round(seconds["fit"] - fitted.valid_seconds, 2),
        "eval_seconds": round(seconds.get("evaluate", 0.0), 2),
        "parameters": {
            "total": sum(size for size, _ in sizes),
            "trainable": sum(size for size, trains in sizes if trains),
        },
        "peak_memory_mib": peak_memory_mib(config["device"]),
        "seed": config["seed"],
        "device": device_name(config["device"]),
        "versions": versions(),
        "folder": str(fitted.folder),
        "settings": splits.settings,
    }


def _measured_besides(config: RunConfig, splits: _Splits, fitted: _Fitted) -> dict[str, Any]:
    """``mix`` and ``language`` of a result, where they are asked for and the model has them."""
    measured: dict[str, Any] = {}
    if config["mix"] and config["mix"] != config["model"]:
        measured["mix"] = evaluate_mix(
            fitted.trainer,
            load_counter(config, splits.settings, splits.dataset),
            splits.valid,
            splits.test,
            item_counts=splits.item_counts,
            ranks=fitted.folder / MIX_RANKS_FILE,
            show_progress=config["show_progress"],
        )
    if config["language_file"] and config["model"] in LANGUAGE_MODELS:
        from recbole_idiomoe.protocol.language import has_language, language_kept

        options = LanguageModelOptions.from_mapping(config)
        if has_language(fitted.model, options):
            measured["language"] = distributed.from_main(
                lambda: language_kept(
                    fitted.folder,
                    Path(config["language_file"]),
                    options,
                    seed=config["seed"],
                    device=config["device"],
                )
            )
    return measured


def _identity(config: RunConfig) -> dict[str, str]:
    return {"model": config["model"], "dataset": config["dataset_label"]}


def _build_model(config: RunConfig, dataset: Any) -> Any:
    """The model; what RecBole's or a baseline says against its settings becomes one line."""
    model_class = get_model(config["model"])
    if config["model"] in LANGUAGE_MODELS:
        return model_class(config, dataset)
    try:
        return model_class(config, dataset)
    except IdiomoeError:
        raise
    except (ValueError, TypeError, RuntimeError, AssertionError, NotImplementedError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingError(f"{config['model']} cannot be built: {reason}") from error


def split_dataset(config: RunConfig, dataset: Any) -> tuple[Any, Any, Any]:
    """RecBole's loaders of the three splits, masking seen items if the protocol says so.

    Those of evaluation give as many users at once as leaves memory for their scores.
    """
    train_data, valid_data, test_data = data_preparation(config, dataset)
    for name, loader in (("validation", valid_data), ("test", test_data)):
        if len(loader._dataset) == 0:
            raise DataError(
                f"{config['dataset_label']}: nothing is left for {name}; users need at least 4 "
                "interactions to be validated on, 3 to be tested on."
            )
        bound_scores(loader)
    if config["mask_seen"]:
        mask_seen_items(config, train_data, valid_data, test_data)
    if config["cold_start"]:
        leave_out_items(valid_data, unseen_items(dataset))
    return train_data, valid_data, test_data


def _test(config: RunConfig, trainer: Any, test_data: Any, unseen: np.ndarray) -> dict[str, Any]:
    """The part of a result that says how well the best model does on the test split."""
    show_progress = config["show_progress"]
    if not config["cold_start"]:
        return {"test_result": plain(trainer.evaluate(test_data, show_progress=show_progress))}
    epsilon = config["cold_start_epsilon"]
    every, apart = evaluate_apart(trainer, test_data, unseen, epsilon, show_progress)
    rule = {"share": config["cold_start"], "epsilon": epsilon}
    return {"test_result": every, "cold_start": rule | apart}


def _check_same_catalog(catalog: Catalog, folder: Path) -> None:
    if Catalog.load(folder).fingerprint != catalog.fingerprint:
        raise CheckpointError(
            f"{folder} was trained on another catalogue; resume it with the dataset, filters and "
            "text settings of its own run."
        )


def _save_weights(model: torch.nn.Module, folder: Path) -> None:
    """The weights of RecBole's models and of baselines as safetensors, for ``load``."""
    # Each in memory of its own, as safetensors asks: on a GPU cuDNN makes a GRU's one block.
    weights = {
        name: each.cpu().clone(memory_format=torch.contiguous_format)
        for name, each in model.state_dict().items()
    }
    with written_aside(folder / "model.safetensors") as aside:
        save_file(weights, str(aside))
