"""A planned run: train, validate and test the model, and keep it in its folder."""

from __future__ import annotations

import logging
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from recbole.utils import init_seed
from safetensors.torch import save_file

from recbole_idiomoe import compat
from recbole_idiomoe.base import distributed, environment, run_folder
from recbole_idiomoe.base.backbones import UNTRAINED
from recbole_idiomoe.base.errors import CheckpointError, IdiomoeError, SettingError
from recbole_idiomoe.base.files import atomic_write, remove_temporary_files
from recbole_idiomoe.data.catalog import Catalog, read_catalog
from recbole_idiomoe.data.loading import read_dataset
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.models.language.options import LanguageModelOptions
from recbole_idiomoe.models.registry import LANGUAGE_MODELS, get_model, what_is_trained
from recbole_idiomoe.protocol.clock import Clock
from recbole_idiomoe.protocol.cold_start import evaluate_cold_start
from recbole_idiomoe.protocol.description import protocol
from recbole_idiomoe.protocol.evaluation import plain_metrics
from recbole_idiomoe.protocol.loader import CandidateLoader
from recbole_idiomoe.protocol.mixing import evaluate_mix, load_counter
from recbole_idiomoe.protocol.ranks import RankRecorder
from recbole_idiomoe.protocol.splits import Splits, split_dataset
from recbole_idiomoe.runs.log import start_log
from recbole_idiomoe.runs.plan import RunPlan
from recbole_idiomoe.runs.result import RunResult
from recbole_idiomoe.training.trainers import Stage, first_stage, get_trainer

logger = logging.getLogger()


def execute(plan: RunPlan) -> RunResult:
    """Run ``plan`` and write its folder.

    With several processes, all of them train a language model; any other model is trained by rank 0
    while the others wait. All ranks return the result.

    Raises:
        IdiomoeError: the data, the model or the training failed; the message is one line.
        KeyboardInterrupt: if the run can be resumed, the message says how.
    """
    name, others = plan.config["model"], distributed.world_size() - 1
    if name in LANGUAGE_MODELS:
        return _execute(plan)
    if others and distributed.is_main():
        said = f"{name} trains in one process: rank 0 runs it, {others} wait"
        print(said, file=sys.stderr, flush=True)
    return distributed.from_main(lambda: _execute(plan))


def _execute(plan: RunPlan) -> RunResult:
    if plan.resume is not None and distributed.is_main():
        remove_temporary_files(plan.resume)
    try:
        return _train_and_test(plan)
    except KeyboardInterrupt as error:
        can_resume = plan.tests and (plan.folder / run_folder.RUN_FILE).exists()
        if not can_resume:
            raise
        resumed = f"--resume={shlex.quote(str(plan.folder))}"
        raise KeyboardInterrupt(f"interrupted; {resumed} goes on with it") from error


def _train_and_test(plan: RunPlan) -> RunResult:
    config = plan.config
    splits = _load(plan)
    with compat.curves_closed():
        trainer = _train(plan, splits)
    valid_seconds = trainer.clock.seconds.get("evaluate", 0.0)
    if not plan.tests:
        return _result(plan, splits, trainer, valid_seconds)
    is_language_model = config["model"] in LANGUAGE_MODELS
    if config["cold_start"] and is_language_model and trainer.model.ranks_unseen_items:
        with trainer.clock.timing("fit"):
            trainer.place_unseen_items()
    test_result, cold_start = _test(plan, splits, trainer)
    if not is_language_model:
        _save_weights(trainer.model, plan.folder)
    result = _result(plan, splits, trainer, valid_seconds)
    result.test_result, result.cold_start = test_result, cold_start
    logger.info(f"best valid: {result.best_valid_result}")
    logger.info(f"test: {result.test_result}")
    if config["mix"] and config["mix"] != config["model"]:
        counter = load_counter(config, plan.settings, splits.dataset)
        ranks = plan.folder / run_folder.MIX_RANKS_FILE
        result.mix = evaluate_mix(trainer, counter, splits, ranks, config["show_progress"])
    if config["language_file"] and is_language_model:
        result.language = _language(plan, trainer.model)
    distributed.from_main(lambda: run_folder.write_run(plan.folder, result.to_json()))
    return result


def _load(plan: RunPlan) -> Splits:
    """Start the log, and read and split the data."""
    config = plan.config
    init_seed(config["seed"], config["reproducibility"])
    start_log(config)
    dataset = read_dataset(config)
    logger.info(
        f"{config['model']} on {config['dataset_label']}: {dataset.user_num - 1:,} users, "
        f"{dataset.item_num - 1:,} items, {dataset.inter_num:,} interactions; "
        f"device {config['device']}; folder {plan.folder}"
    )
    return split_dataset(config, dataset)


def _train(plan: RunPlan, splits: Splits) -> Any:
    """Train the model, keep its best epoch in the folder, and return its trainer."""
    config, train_dataset, clock = plan.config, splits.train._dataset, Clock()
    catalog = read_catalog(train_dataset, TextOptions.from_mapping(config))
    distributed.check_alike({"catalogue": catalog.fingerprint})
    if plan.resume is not None and Catalog.load(plan.folder).fingerprint != catalog.fingerprint:
        raise CheckpointError(
            f"{plan.folder} was trained on another catalogue; resume it with the dataset, filters "
            "and text settings of its own run."
        )
    if stage := first_stage(config):
        with clock.timing("fit"):
            _describe_run(plan, catalog)
            stage.train(Stage(config, splits.train, splits.valid, plan.folder, clock))
    init_seed(config["seed"], config["reproducibility"])
    model = _build_model(plan, train_dataset)
    environment.reset_peak_memory(config["device"])
    trainer: Any = get_trainer(config["model"])(config, model)
    trainer.join_run(plan.folder / run_folder.CHECKPOINT_FILE, train_dataset, clock)
    if plan.resume is not None:
        trainer.resume_checkpoint(plan.resume)
    _describe_run(plan, catalog)
    with clock.timing("fit"):
        trainer.fit(splits.train, splits.valid, show_progress=config["show_progress"])
    return trainer


def _describe_run(plan: RunPlan, catalog: Catalog) -> None:
    """Write the catalogue and the settings, from which the run can be resumed."""
    described = {"model": plan.config["model"], "dataset": plan.config["dataset_label"]}

    def write() -> None:
        plan.folder.mkdir(parents=True, exist_ok=True)
        catalog.save(plan.folder)
        run_folder.write_run(plan.folder, {**described, "settings": plan.settings})

    distributed.from_main(write)


def _build_model(plan: RunPlan, dataset: Any) -> Any:
    """The model on its device; errors of RecBole's models and of baselines become one line."""
    config, device = plan.config, plan.config["device"]
    model_class = get_model(config["model"])
    if config["model"] in LANGUAGE_MODELS:
        # Imports transformers, which takes seconds that other models need not wait.
        from recbole_idiomoe.training.sharding import placed

        model = model_class(config, dataset)
        return placed(model, model.catalog_lm.settings, device)
    try:
        model = model_class(config, dataset)
    except IdiomoeError:
        raise
    except (ValueError, TypeError, RuntimeError, AssertionError, LookupError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise SettingError(f"{config['model']} cannot be built: {reason}") from error
    return model.to(device)


def _test(
    plan: RunPlan, splits: Splits, trainer: Any
) -> tuple[dict[str, float], dict[str, Any] | None]:
    """Metrics of the best model on the test split, and the result of a cold start, if it is one."""
    bar = plan.config["show_progress"]
    if plan.config["cold_start"]:  # ranks depend on the length of the list, so none are kept
        return evaluate_cold_start(trainer, splits, show_progress=bar)
    recorder = RankRecorder(plan.folder / run_folder.RANKS_FILE, splits.popularity)
    observers = [recorder] if isinstance(splits.test, CandidateLoader) else []
    return trainer.evaluate(splits.test, show_progress=bar, observers=observers), None


def _language(plan: RunPlan, model: Any) -> dict[str, Any] | None:
    """How much language the model kept; None if it did not start from a pretrained one."""
    from recbole_idiomoe.protocol.language import language_kept

    config, options = plan.config, LanguageModelOptions.from_mapping(plan.config)
    if not model.pretrained or options.backbone == UNTRAINED:
        return None
    path, seed, device = Path(config["language_file"]), config["seed"], config["device"]
    return distributed.from_main(
        lambda: language_kept(plan.folder, path, options, seed=seed, device=device)
    )


def _result(plan: RunPlan, splits: Splits, trainer: Any, valid_seconds: float) -> RunResult:
    """The result of a run that has been trained; ``valid_seconds`` is the time of validation."""
    config, seconds = plan.config, trainer.clock.seconds
    sizes = [
        (distributed.whole_shape(p).numel(), p.requires_grad) for p in trainer.model.parameters()
    ]
    return RunResult(
        model=config["model"],
        dataset=config["dataset_label"],
        protocol=protocol(config, splits.dataset.item_num - 1, splits.dataset),
        users=splits.counts["users"],
        items=splits.counts["items"],
        interactions=splits.counts["interactions"],
        best_valid_result=plain_metrics(trainer.best_valid_result or {}),
        learning_curve=trainer.learning_curve,
        epochs=max(trainer.train_loss_dict, default=trainer.start_epoch - 1) + 1,
        train_seconds=round(seconds["fit"] - valid_seconds, 2),
        eval_seconds=round(seconds.get("evaluate", 0.0), 2),
        parameters={
            "total": sum(size for size, _ in sizes),
            "trainable": sum(size for size, trains in sizes if trains),
        },
        peak_memory_mib=environment.peak_memory_mib(config["device"]),
        trained=what_is_trained(config["model"], plan.settings),
        seed=config["seed"],
        device=environment.device_name(config["device"]),
        versions=environment.versions(),
        folder=str(plan.folder),
        settings=plan.settings,
    )


def _save_weights(model: torch.nn.Module, folder: Path) -> None:
    """Save the weights of one of RecBole's models or of a baseline, for ``load``."""
    # safetensors needs tensors that share no memory; on a GPU, cuDNN makes a GRU's one block.
    weights = {
        name: each.cpu().clone(memory_format=torch.contiguous_format)
        for name, each in model.state_dict().items()
    }
    with atomic_write(folder / "model.safetensors") as aside:
        save_file(weights, str(aside))
