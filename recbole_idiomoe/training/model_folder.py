"""What the trainer of a language model keeps in the folder of its run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import CheckpointError
from recbole_idiomoe.base.files import atomic_new_folder
from recbole_idiomoe.base.run_folder import read_run, write_run
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.training import sharding
from recbole_idiomoe.training.averaging import WeightAverage
from recbole_idiomoe.training.state import other_architecture, write_state


class ModelFolder:
    """A folder that holds the best model, and beside it epochs and the state of the training.

    Args:
        path: the folder of the run.
        catalog_lm: the model. If its weights are sharded, rank 0 writes the whole weights.
        sharded: whether FSDP2 shards the weights.
    """

    def __init__(self, path: Path, catalog_lm: CatalogLM, sharded: bool) -> None:
        self.path, self.catalog_lm, self.sharded = path, catalog_lm, sharded

    def save_codes(self) -> None:
        """Write the item codes that the model is trained with."""
        distributed.from_main(lambda: self.catalog_lm.item_codes.save(self.path))

    def save_best(self) -> None:
        """Write the model as the best one so far."""
        weights = sharding.whole_weights(self.catalog_lm.lm)
        distributed.from_main(lambda: self.catalog_lm.save(self.path, weights))

    def load_best(self, path: Path | None = None) -> None:
        """Load the best model, or the model in the run's folder ``path``."""
        folder = path or self.path
        if self.sharded:
            sharding.load_saved(self.catalog_lm.lm, folder)
        else:
            self.catalog_lm.load_weights(folder)

    def keep_epoch(self, epoch: int, most: int) -> None:
        """Write the model into a folder ``epoch-N``, which ``load`` opens like the run's folder.

        Args:
            epoch: number of the epoch, from 0; in the name of the folder it counts from 1.
            most: how many of the newest epochs to keep.
        """
        folder = self.path / f"epoch-{epoch + 1:05d}"
        weights = sharding.whole_weights(self.catalog_lm.lm)

        def write() -> None:
            shutil.rmtree(folder, ignore_errors=True)  # from an interrupted run
            with atomic_new_folder(folder) as aside:
                self.catalog_lm.save(aside, weights)
                write_run(aside, read_run(self.path))
            for older in sorted(self.path.glob("epoch-*"))[:-most]:
                shutil.rmtree(older)

        distributed.from_main(write)

    def save_state(self, trainer: Any, epoch: int, average: WeightAverage | None) -> None:
        """Write the state from which ``trainer`` can resume after ``epoch``, from 0."""
        more = {"ema": sharding.whole(average.means, average.weights)} if average else {}
        write_state(
            trainer,
            epoch,
            fingerprint=self.catalog_lm.catalog.fingerprint,
            model=sharding.whole_weights(self.catalog_lm),
            optimizer=sharding.whole_optimizer_state(trainer.optimizer),
            scheduler=trainer.scheduler.state_dict(),
            **more,
        )

    def load_state(self, state: dict[str, Any], optimizer: Any, folder: Path) -> None:
        """Load a state into the model and ``optimizer``, and the item codes from ``folder``.

        Args:
            state: the state, from :func:`~recbole_idiomoe.training.state.read_state`.
            optimizer: the optimizer of the new training.
            folder: the folder that the state was read from.

        Raises:
            CheckpointError: the state belongs to another catalogue or model.
        """
        if state["fingerprint"] != self.catalog_lm.catalog.fingerprint:
            raise CheckpointError(
                f"{folder} was trained on another catalogue; resume it with the dataset, filters "
                "and text settings of its own run."
            )
        if ("ema" in state) != bool(self.catalog_lm.settings.ema_decay):
            raise CheckpointError(
                f"{folder} was trained {'with' if 'ema' in state else 'without'} a mean of its "
                "weights; resume it with the ema_decay of its own settings."
            )
        self.catalog_lm.load_item_codes(folder)
        try:
            self.catalog_lm.load_state_dict(sharding.cut_weights(state["model"], self.catalog_lm))
            fused = optimizer.defaults["fused"]
            optimizer.load_state_dict(sharding.cut_optimizer_state(state["optimizer"], optimizer))
            for group in optimizer.param_groups:
                group["fused"] = fused  # fits this device, which may not be the state's
        except (RuntimeError, ValueError) as error:
            raise other_architecture(folder, error) from error
