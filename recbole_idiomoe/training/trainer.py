"""Training of language models: RecBole's loop, Accelerate's steps, and a model folder."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from time import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DDPCommunicationHookType, DistributedDataParallelKwargs
from recbole.config import Config
from recbole.utils import early_stopping, set_color
from tqdm import tqdm
from transformers import get_cosine_schedule_with_warmup

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import DataError, SettingError
from recbole_idiomoe.data.batch import SequenceBatch
from recbole_idiomoe.data.catalog import item_queries
from recbole_idiomoe.data.loader import WindowLoader
from recbole_idiomoe.lm.compilation import compile_blocks
from recbole_idiomoe.lm.training import checkpoint_blocks, halve_frozen
from recbole_idiomoe.models.language.catalog_lm import computes_in_bf16
from recbole_idiomoe.models.language.new_items import place_unseen_items
from recbole_idiomoe.models.language.recommender import LanguageModelRecommender
from recbole_idiomoe.training import sharding
from recbole_idiomoe.training.averaging import WeightAverage
from recbole_idiomoe.training.loss_watch import stop_training
from recbole_idiomoe.training.micro_batches import MicroBatches
from recbole_idiomoe.training.model_folder import ModelFolder
from recbole_idiomoe.training.observed import ObservedTrainer
from recbole_idiomoe.training.schedule import Curriculum
from recbole_idiomoe.training.state import read_state, set_random_state

COMPILED_WIDTH = 512
"""By default, decoders with a hidden size below this are not compiled, which would take longer than
it saves."""
LOSS_EVERY = 20
"""Steps between checks of the loss; each check waits for the device."""


class IdiomoeTrainer(ObservedTrainer):
    """RecBole's ``Trainer`` with token batches, AdamW groups, a schedule and a model folder.

    RecBole's logs, tensorboard and early stopping stay. ``saved_model_file`` names a file in the
    run's folder. The folder itself holds the best model so far, and the last state, from which
    :meth:`resume_checkpoint` resumes.

    With several processes, each one trains on its share of every step, gradients are averaged over
    all processes, and each one evaluates its share of the users.
    """

    optimizer: Any
    cur_step: int
    best_valid_score: float
    _resumed: dict[str, Any] | None = None
    _average: WeightAverage | None = None

    def __init__(self, config: Config, model: LanguageModelRecommender) -> None:
        AcceleratorState._reset_state()  # an earlier run in this process may have set another one
        self.catalog_lm = model.catalog_lm
        self.settings = model.catalog_lm.settings
        in_bf16 = computes_in_bf16(self.settings, config["device"])
        on_gpu = config["device"].type == "cuda"
        # Gradients of matrices are computed in bfloat16, so sending them as such loses no more than
        # their sum over the processes does, and takes half the bytes. Only NCCL can do it.
        hook = DDPCommunicationHookType.BF16 if in_bf16 and on_gpu else DDPCommunicationHookType.NO
        self.accelerator = Accelerator(
            cpu=not on_gpu,
            mixed_precision="bf16" if in_bf16 else "no",
            kwargs_handlers=[
                DistributedDataParallelKwargs(
                    comm_hook=hook,
                    # Such as experts in a batch without their type, or a head that learns no text.
                    find_unused_parameters=True,
                    gradient_as_bucket_view=True,
                    broadcast_buffers=False,  # they never change
                )
            ],
        )
        self.sharded = sharding.is_sharded(self.settings)
        self.has_cut_items = sharding.has_cut_items(self.settings)
        if self.sharded:
            sharding.shard(self.catalog_lm, config["device"])
        # RecBole checks for the folder before it makes it, which fails in several processes.
        Path(config["checkpoint_dir"]).mkdir(parents=True, exist_ok=True)
        super().__init__(config, model)
        self.curriculum = Curriculum(self.settings, self.epochs, self.eval_step)

    def fit(
        self,
        train_data: Any,
        valid_data: Any = None,
        verbose: bool = True,
        saved: bool = True,
        show_progress: bool = False,
        callback_fn: Callable[[int, float], None] | None = None,
    ) -> tuple[float, dict[str, float] | None]:
        """Train to ``epochs`` or an early stop; arguments and result as in RecBole's ``Trainer``.

        Raises:
            DataError: the training split is empty.
            IdiomoeError: the loss is not finite, or a sequence does not fit into the memory.
        """
        self._prepare(train_data)
        if saved and not self._resumed:
            self.model_folder.save_codes()
        self.eval_collector.data_collect(train_data)
        if self._resumed:
            set_random_state(self._resumed["random"])
        for epoch in range(self.start_epoch, self.epochs):
            if self.is_out_of_patience:
                self.logger.info(f"No better for {self.stopping_step} evaluations: stopped early")
                break
            start = time()
            loss = self._train_epoch(train_data, epoch, show_progress=show_progress)
            self.train_loss_dict[epoch] = loss
            self.tensorboard.add_scalar("Loss/Train", loss, epoch)
            if verbose:
                self._log_epoch(epoch, "train", start, f"loss {loss:.4f}")
            self._report(epoch, verbose)
            score, is_best = None, valid_data is None
            if valid_data is not None and self.curriculum.is_evaluated(epoch):
                score, is_best = self._validate(valid_data, epoch, verbose, show_progress)
            if saved:
                if is_best:
                    self._save_checkpoint(epoch, verbose=verbose)
                self._save_state(epoch)
            if callback_fn and score is not None:
                callback_fn(epoch, score)
        return self.best_valid_score, self.best_valid_result

    def _validate(
        self, valid_data: Any, epoch: int, verbose: bool, show_progress: bool
    ) -> tuple[float, bool]:
        """Validate after ``epoch``; returns the score, and whether it is the best so far."""
        start = time()
        score, result = self._valid_epoch(valid_data, show_progress=show_progress)
        self.tensorboard.add_scalar("Valid_score", score, epoch)
        if verbose:
            self._log_epoch(epoch, "valid", start, f"{self.valid_metric} {score:.4f}")
        self.best_valid_score, self.cur_step, _, is_best = early_stopping(
            score,
            self.best_valid_score,
            self.cur_step,
            max_step=self.stopping_step,
            bigger=self.valid_metric_bigger,
        )
        if not self.curriculum.may_stop_after(epoch):
            self.cur_step = 0
        if is_best:
            self.best_valid_result = result
        return score, is_best

    def _prepare(self, train_data: Any) -> None:
        """Make the loader, the schedule, which needs its length, and what the steps go through."""
        builder, max_items = self.catalog_lm.builder, self.config["MAX_ITEM_LIST_LENGTH"]
        dataset = train_data._dataset
        windows = dataset.training_windows(max_items, builder.code_lengths, builder.room)
        self._window_users = dataset.history_users[windows.starts]
        held = builder.room // np.median(builder.code_lengths[1:])
        if held < max_items:
            self.logger.warning(
                f"max_tokens={builder.max_tokens} holds about {held:.0f} of a history's "
                f"{max_items} items, without their text; raise it"
            )
        if not windows:
            raise DataError(
                f"{self.config['dataset']}: no user is left with two training interactions; "
                "loosen the filters or give more data."
            )
        self.loader = WindowLoader(
            windows,
            builder,
            batch_size=self.config["train_batch_size"],
            max_batch_tokens=self.settings.max_batch_tokens,
            pad_token_id=self.catalog_lm.pad_token_id,
            seed=self.config["seed"],
            num_workers=self.config["worker"],
            device=self.device,
            queries=self._queries(train_data._dataset),
            rank=distributed.rank(),
            ranks=distributed.world_size(),
        )
        steps = len(self.loader) * self.epochs
        self.scheduler = get_cosine_schedule_with_warmup(
            self.optimizer, min(self.settings.warmup_steps, steps // 2), steps
        )
        if self._resumed:
            self.scheduler.load_state_dict(self._resumed["scheduler"])
            # A new schedule sets the learning rates of the first step.
            rates = self.scheduler.get_last_lr()
            for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
                group["lr"] = rate
        self._make_fast()
        if self.sharded or not sharding.leave_cut_to_ranks(self.model):
            self.engine = self.model
        else:
            with warnings.catch_warnings():
                # The newer name of this DDP option is missing from some versions of torch.
                warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)
                prepared = self.accelerator.prepare(self.model, self.optimizer)
            self.engine, self.optimizer = prepared
        if self.settings.ema_decay:
            self._average = WeightAverage(self.model, self.settings.ema_decay)
            if self._resumed:
                means = zip(self._resumed["ema"], self._average.weights, strict=True)
                self._average.load([sharding.cut(saved, weight) for saved, weight in means])
        self.micro_batches = MicroBatches(
            self.loader,
            self._backward,
            self.optimizer.zero_grad,
            no_sync=lambda: self.accelerator.no_sync(self.engine),
        )

    def _make_fast(self) -> None:
        """Change the speed and the memory of the model, but no result."""
        lm, compiles = self.catalog_lm.lm, self.settings.compile
        if self.catalog_lm.uses_bf16 and not self.sharded:
            halve_frozen(lm)
        if self.settings.activation_checkpointing:
            checkpoint_blocks(lm.backbone)
        if compiles is None:
            compiles = lm.backbone.config.hidden_size >= COMPILED_WIDTH
        if compiles and self.device.type == "cuda":
            compile_blocks(lm.backbone)

    def _train_epoch(
        self,
        train_data: Any,
        epoch_idx: int,
        loss_func: Callable[..., Any] | None = None,
        show_progress: bool = False,
    ) -> float:
        """One epoch; returns the mean loss of its steps."""
        self.model.train()
        shares = self.curriculum.text_share(epoch_idx), self.curriculum.query_share(epoch_idx)
        self.loader.set_epoch(epoch_idx, *shares)
        distributed.seed_others(self.config["seed"], epoch_idx)
        bar = tqdm(
            self.loader,
            total=len(self.loader),
            ncols=80,
            desc=set_color(f"Train {epoch_idx:>5}", "pink"),
            disable=not show_progress,
        )
        clip = sharding.clip_gradients if self.has_cut_items else self.accelerator.clip_grad_norm_
        total = torch.zeros((), device=self.device)
        sums: list[torch.Tensor] = []  # of the losses up to each step since the last check
        for step, batches in enumerate(bar, start=1):
            for loss in self.micro_batches.run(step - 1, batches):
                total = total + loss
            sums.append(total)
            if self.clip_grad_norm:
                clip(self.model.parameters(), **self.clip_grad_norm)
            self.optimizer.step()
            if self._average:
                self._average.update()
            self.scheduler.step()
            self.optimizer.zero_grad()
            if step % LOSS_EVERY == 0 or step == len(self.loader):
                mean = self._checked(sums, train_data._dataset, epoch_idx, step) / step
                sums.clear()
                bar.set_postfix_str(f"loss {mean:.4f}")
        return mean

    def _checked(self, sums: list[torch.Tensor], dataset: Any, epoch: int, step: int) -> float:
        """The last of ``sums`` over all processes; stops the training if one is not finite.

        They are the sums of the epoch's losses up to the newest steps, which end with ``step``.
        """
        every = distributed.summed(torch.stack(sums))
        if math.isfinite(loss := every[-1].item()):
            return loss
        first = step - len(sums) + every.isfinite().tolist().index(False)
        before, users = (
            self._window_users[self.loader.sampler.batches[number]] if number >= 0 else []
            for number in (first - 1, first)
        )
        stop_training(self.folder, dataset, loss, epoch, users, before)

    def _backward(self, batch: SequenceBatch) -> torch.Tensor:
        """Add the gradients of a batch to the present ones; returns its detached loss."""
        loss = self.engine(batch.to(self.device))
        # The loss is a share of the step's mean, but DDP and FSDP2 average over the processes.
        self.accelerator.backward(loss * distributed.world_size())
        return loss.detach()

    def _queries(self, dataset: Any) -> list[list[np.ndarray]]:
        """Token ids of the queries that each item answers, by catalogue row."""
        if not self.settings.query_share:
            return []
        if not any(map(self.curriculum.query_share, range(self.epochs))):
            self.logger.warning(
                f"query_share={self.settings.query_share} has no effect: all {self.epochs} epochs "
                f"are warm-up on items alone (item_warmup={self.settings.item_warmup})"
            )
        encode = self.catalog_lm.encode_query
        asked = item_queries(dataset, self.settings)
        return [[encode(query) for query in queries] for queries in asked]

    def _log_epoch(self, epoch: int, phase: str, start: float, outcome: str) -> None:
        self.logger.info(
            set_color(f"epoch {epoch} {phase}", "green") + f" [{time() - start:.1f}s, {outcome}]"
        )

    def _report(self, epoch: int, verbose: bool) -> None:
        """Log what the architecture reports on the epoch, if anything."""
        for name, by_layer in self.catalog_lm.lm.training_report().items():
            for layer, value in enumerate(by_layer):
                self.tensorboard.add_scalar(f"{name}/layer_{layer}", value, epoch)
            if verbose:
                shown = " ".join(f"{value:.3f}" for value in by_layer)
                self.logger.info(f"{name}, by layer: {shown}")

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        if self.learner.lower() != "adamw":
            raise SettingError(
                f"learner={self.learner!r}: {self.config['model']} trains with adamw alone."
            )
        beta1, beta2 = self.settings.adam_betas
        return torch.optim.AdamW(
            self.catalog_lm.lm.parameter_groups(
                weight_decay=self.weight_decay,
                learning_rate=self.learning_rate,
                backbone_learning_rate=self.settings.backbone_learning_rate,
            ),
            betas=(beta1, beta2),
            fused=True if self.device.type == "cuda" else None,  # None: torch chooses
        )

    def _averaged(self) -> AbstractContextManager[None]:
        """A context in which the model has the weights that are evaluated and saved."""
        return self._average.applied() if self._average else nullcontext()

    def _valid_epoch(self, *args: Any, **kwargs: Any) -> tuple[float, dict[str, float]]:
        with self._averaged():
            return super()._valid_epoch(*args, **kwargs)

    @cached_property
    def model_folder(self) -> ModelFolder:
        """The run's folder, with the best model and the state."""
        return ModelFolder(self.folder, self.catalog_lm, self.sharded)

    def load_best_model(self, file: str | Path | None = None) -> None:
        """Load the best model of the run, or the model of another run's folder ``file``."""
        self.model_folder.load_best(Path(file) if file else None)

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """Write the model into the run's folder as the best one so far."""
        with self._averaged():
            self.model_folder.save_best()
        if verbose:
            self.logger.info(set_color("Saving current", "blue") + f": {self.folder}")

    def place_unseen_items(self) -> None:
        """Load the best model, and let it rank items that it was not trained on, by their text."""
        self.catalog_lm.load_weights(self.folder)
        place_unseen_items(self.catalog_lm, self.config["seed"])
        distributed.from_main(lambda: self.catalog_lm.save(self.folder))

    def _save_state(self, epoch: int) -> None:
        """Write the state after ``epoch``, and its model if ``keep_last`` asks for it."""
        if self.settings.keep_last:
            with self._averaged():
                self.model_folder.keep_epoch(epoch, self.settings.keep_last)
        self.model_folder.save_state(self, epoch, self._average)

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Resume after the last finished epoch of a run, or start again if there is none.

        Args:
            resume_file: the folder of the run.

        Raises:
            CheckpointError: the state is damaged, or belongs to another catalogue or model.
        """
        folder = Path(resume_file)
        state = read_state(self, folder, self.sharded or self.has_cut_items)
        if state is not None:
            self.model_folder.load_state(state, self.optimizer, folder)
            self._resumed = state
