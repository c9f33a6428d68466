"""A planned run: train the model, validate it, test it, and keep it in its folder."""

from __future__ import annotations

import logging
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from recbole.utils import init_seed
from safetensors.torch import save_file

from recbole_idiomoe import compat
from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.environment import (
    device_name,
    peak_memory_mib,
    reset_peak_memory,
    versions,
)
from recbole_idiomoe.base.errors import CheckpointError, IdiomoeError, SettingError
from recbole_idiomoe.base.files import atomic_write, remove_temporary_files
from recbole_idiomoe.base.run_folder import (
    CHECKPOINT_FILE,
    MIX_RANKS_FILE,
    RANKS_FILE,
    RUN_FILE,
    write_run,
)
from recbole_idiomoe.data.catalog import Catalog, read_catalog
from recbole_idiomoe.data.loading import read_dataset
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.models.language.options import LanguageModelOptions
from recbole_idiomoe.models.registry import LANGUAGE_MODELS, get_model
from recbole_idiomoe.protocol.clock import Clock
from recbole_idiomoe.protocol.cold_start import evaluate_cold_start
from recbole_idiomoe.protocol.description import protocol
from recbole_idiomoe.protocol.evaluation import Observer
from recbole_idiomoe.protocol.mixing import evaluate_mix, load_counter
from recbole_idiomoe.protocol.ranks import RankRecorder
from recbole_idiomoe.protocol.splits import Splits, counts_of, split_dataset
from recbole_idiomoe.runs.log import start_log, start_no_log
from recbole_idiomoe.runs.plan import RunPlan
from recbole_idiomoe.runs.result import RunResult
from recbole_idiomoe.training.stages import has_first_stage, run_first_stage
from recbole_idiomoe.training.trainers import get_trainer

logger = logging.getLogger()


@dataclass(frozen=True)
class Trained:
    """A trained model with its trainer.

    Attributes:
        valid_seconds: of all validations, that of a first stage included.
        best_valid_result: of the epoch that was kept; empty if none was validated.
    """

    model: Any
    trainer: Any
    clock: Clock
    valid_seconds: float
    best_valid_result: dict[str, float]


def execute(plan: RunPlan) -> RunResult:
    """Run ``plan`` and write its folder.

    Of several processes all train a language model; another model is trained by rank 0 while the
    others wait. All of them return the result.

    Raises:
        IdiomoeError: the data, the model or the training failed; the message is one line.
        KeyboardInterrupt: with a message that says how to resume, once the run can be resumed.
    """
    if plan.config["model"] in LANGUAGE_MODELS:
        return _execute(plan)
    others = distributed.world_size() - 1
    if others and distributed.is_main():
        said = f"{plan.config['model']} trains in one process: rank 0 runs it, {others} wait"
        print(said, file=sys.stderr, flush=True)
    return distributed.from_main(lambda: _execute(plan))


def _execute(plan: RunPlan) -> RunResult:
    if plan.resume is not None and distributed.is_main():
        remove_temporary_files(plan.resume)
    try:
        return _train_and_test(plan)
    except KeyboardInterrupt as error:
        if not plan.tests or not (plan.folder / RUN_FILE).exists():  # nothing can be resumed
            raise
        resumed = f"--resume={shlex.quote(str(plan.folder))}"
        raise KeyboardInterrupt(f"interrupted; {resumed} goes on with it") from error


def _train_and_test(plan: RunPlan) -> RunResult:
    config = plan.config
    splits = _load(plan)
    with compat.curves_closed():
        trained = _train(plan, splits)
    if not plan.tests:
        return _result(plan, splits, trained)
    is_language_model = config["model"] in LANGUAGE_MODELS
    if config["cold_start"] and is_language_model and trained.model.ranks_unseen_items:
        with trained.clock.timing("fit"):
            trained.trainer.place_unseen_items()
    test_result, cold_start = _test(plan, splits, trained)
    if not is_language_model:
        _save_weights(plan, trained.model)
    result = _result(plan, splits, trained)
    result.test_result, result.cold_start = test_result, cold_start
    logger.info(f"best valid: {result.best_valid_result}")
    logger.info(f"test: {result.test_result}")
    result.mix = _mix(plan, splits, trained)
    result.language = _language(plan, trained)
    distributed.from_main(lambda: write_run(plan.folder, result.to_json()))
    return result


def _load(plan: RunPlan) -> Splits:
    """The data, under the protocol of the run, whose log starts here."""
    config = plan.config
    init_seed(config["seed"], config["reproducibility"])
    if distributed.is_main():
        start_log(config)
    else:
        start_no_log(config)
    dataset = read_dataset(config)
    counts = counts_of(dataset)
    logger.info(
        f"{config['model']} on {config['dataset_label']}: {counts['users']:,} users, "
        f"{counts['items']:,} items, {counts['interactions']:,} interactions; "
        f"device {config['device']}; folder {plan.folder}"
    )
    return split_dataset(config, dataset)


def _train(plan: RunPlan, splits: Splits) -> Trained:
    """Train the model, and keep the epoch that validates best in the folder."""
    config, train_dataset = plan.config, splits.train._dataset
    catalog = read_catalog(train_dataset, TextOptions.from_mapping(config))
    distributed.check_alike({"catalogue": catalog.fingerprint})
    if plan.resume is not None:
        _check_same_catalog(catalog, plan)

    clock = Clock()
    with clock.timing("fit"):
        if has_first_stage(config):
            _describe_run(plan, catalog)
        run_first_stage(config, splits.train, splits.valid, plan.folder, clock)
    init_seed(config["seed"], config["reproducibility"])
    model = _placed(plan, _build_model(plan, train_dataset))
    reset_peak_memory(config["device"])
    trainer: Any = get_trainer(config["model"])(config, model)
    trainer.join_run(plan.folder / CHECKPOINT_FILE, train_dataset, clock)
    if plan.resume is not None:
        trainer.resume_checkpoint(plan.resume)
    _describe_run(plan, catalog)
    with clock.timing("fit"):
        _, best = trainer.fit(splits.train, splits.valid, show_progress=config["show_progress"])
    valid_seconds = clock.seconds.get("evaluate", 0.0)
    return Trained(model, trainer, clock, valid_seconds, dict(best or {}))


def _describe_run(plan: RunPlan, catalog: Catalog) -> None:
    """From now on the run can be resumed."""
    described = {"model": plan.config["model"], "dataset": plan.config["dataset_label"]}

    def write() -> None:
        plan.folder.mkdir(parents=True, exist_ok=True)
        catalog.save(plan.folder)
        write_run(plan.folder, {**described, "settings": plan.settings})

    distributed.from_main(write)


def _check_same_catalog(catalog: Catalog, plan: RunPlan) -> None:
    if Catalog.load(plan.folder).fingerprint != catalog.fingerprint:
        raise CheckpointError(
            f"{plan.folder} was trained on another catalogue; resume it with the dataset, filters "
            "and text settings of its own run."
        )


def _build_model(plan: RunPlan, dataset: Any) -> Any:
    """The model; what RecBole's or a baseline says against its settings becomes one line."""
    config = plan.config
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


def _placed(plan: RunPlan, model: Any) -> Any:
    """``model`` on its device, in several processes cut into parts as the settings say."""
    config = plan.config
    if config["model"] not in LANGUAGE_MODELS:
        return model.to(config["device"])
    # It imports transformers, seconds that other models need not wait.
    from recbole_idiomoe.training.sharding import placed

    return placed(model, model.catalog_lm.settings, config["device"])


def _test(
    plan: RunPlan, splits: Splits, trained: Trained
) -> tuple[dict[str, float], dict[str, Any] | None]:
    """Metrics of the best model on the test split, and what a cold start measures apart."""
    config, trainer, bar = plan.config, trained.trainer, plan.config["show_progress"]
    if config["cold_start"]:  # the rank of a target depends on the list's length: none is kept
        return evaluate_cold_start(trainer, splits, show_progress=bar)
    observers: list[Observer] = []
    if splits.is_fully_ranked:
        observers.append(RankRecorder(plan.folder / RANKS_FILE, splits.popularity))
    return trainer.evaluate(splits.test, show_progress=bar, observers=observers), None


def _mix(plan: RunPlan, splits: Splits, trained: Trained) -> dict[str, Any] | None:
    """The model mixed with a counter, where the settings ask for it."""
    config = plan.config
    if not config["mix"] or config["mix"] == config["model"]:
        return None
    return evaluate_mix(
        trained.trainer,
        load_counter(config, plan.settings, splits.dataset),
        splits,
        plan.folder / MIX_RANKS_FILE,
        config["show_progress"],
    )


def _language(plan: RunPlan, trained: Trained) -> dict[str, Any] | None:
    """How much language the model kept, where the settings ask for it and it has any."""
    config = plan.config
    if not config["language_file"] or config["model"] not in LANGUAGE_MODELS:
        return None
    from recbole_idiomoe.protocol.language import has_language, language_kept

    options = LanguageModelOptions.from_mapping(config)
    if not has_language(trained.model, options):
        return None
    return distributed.from_main(
        lambda: language_kept(
            plan.folder,
            Path(config["language_file"]),
            options,
            seed=config["seed"],
            device=config["device"],
        )
    )


def _result(plan: RunPlan, splits: Splits, trained: Trained) -> RunResult:
    """What is known of a run that has been trained."""
    config, trainer, seconds = plan.config, trained.trainer, trained.clock.seconds
    sizes = [
        (distributed.whole_shape(p).numel(), p.requires_grad) for p in trained.model.parameters()
    ]
    return RunResult(
        model=config["model"],
        dataset=config["dataset_label"],
        protocol=protocol(config, splits.dataset.item_num - 1),
        users=splits.counts["users"],
        items=splits.counts["items"],
        interactions=splits.counts["interactions"],
        best_valid_result={k: float(v) for k, v in trained.best_valid_result.items()},
        learning_curve=trainer.learning_curve,
        epochs=max(trainer.train_loss_dict, default=trainer.start_epoch - 1) + 1,
        train_seconds=round(seconds["fit"] - trained.valid_seconds, 2),
        eval_seconds=round(seconds.get("evaluate", 0.0), 2),
        parameters={
            "total": sum(size for size, _ in sizes),
            "trainable": sum(size for size, trains in sizes if trains),
        },
        peak_memory_mib=peak_memory_mib(config["device"]),
        seed=config["seed"],
        device=device_name(config["device"]),
        versions=versions(),
        folder=str(plan.folder),
        settings=plan.settings,
    )


def _save_weights(plan: RunPlan, model: torch.nn.Module) -> None:
    """The weights of RecBole's models and of baselines as safetensors, for ``load``."""
    # Each in memory of its own, as safetensors asks: on a GPU cuDNN makes a GRU's one block.
    weights = {
        name: each.cpu().clone(memory_format=torch.contiguous_format)
        for name, each in model.state_dict().items()
    }
    with atomic_write(plan.folder / "model.safetensors") as aside:
        save_file(weights, str(aside))
