"""What a language model's trainer keeps in the folder of its run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.errors import CheckpointError
from recbole_idiomoe.base.files import atomic_new_folder
from recbole_idiomoe.base.run_folder import read_run, write_run
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.training.averaging import WeightAverage
from recbole_idiomoe.training.sharding import (
    cut_optimizer_state,
    cut_weights,
    load_saved,
    optimized,
    whole,
    whole_optimizer_state,
    whole_weights,
)
from recbole_idiomoe.training.state import other_architecture, write_state

EPOCH_FOLDER = "epoch-"


class ModelFolder:
    """The folder itself is the best model; beside it are kept epochs and the training's state.

    Args:
        path: the folder of the run.
        catalog_lm: the model. Of several processes each may have a part of its weights; what is
            written is whole, by the first.
        sharded: whether the weights are cut into parts by FSDP2.
    """

    def __init__(self, path: Path, catalog_lm: CatalogLM, sharded: bool) -> None:
        self.path, self.catalog_lm, self.sharded = path, catalog_lm, sharded

    def save_codes(self) -> None:
        """Write the codes that items are trained with."""
        distributed.from_main(lambda: self.catalog_lm.item_codes.save(self.path))

    def save_best(self) -> None:
        """Write the model as the best one so far."""
        weights = whole_weights(self.catalog_lm.lm)
        distributed.from_main(lambda: self.catalog_lm.save(self.path, weights))

    def load_best(self, path: Path | None = None) -> None:
        """Load the best model, or the one that another run left in ``path``."""
        folder = path or self.path
        if self.sharded:
            load_saved(self.catalog_lm.lm, folder)
        else:
            self.catalog_lm.load_weights(folder)

    def keep_epoch(self, epoch: int, most: int) -> None:
        """Write the model into a folder of its own, which ``load`` opens like the best one's.

        Args:
            epoch: its number from 0.
            most: how many of the newest epochs stay.
        """
        name = f"{EPOCH_FOLDER}{epoch + 1:05d}"
        weights = whole_weights(self.catalog_lm.lm)

        def write() -> None:
            shutil.rmtree(self.path / name, ignore_errors=True)  # of one that was broken off
            with atomic_new_folder(self.path / name) as aside:
                self.catalog_lm.save(aside, weights)
                write_run(aside, read_run(self.path))
            for older in sorted(self.path.glob(f"{EPOCH_FOLDER}*"))[:-most]:
                shutil.rmtree(older)

        distributed.from_main(write)

    def save_state(self, trainer: Any, epoch: int, average: WeightAverage | None) -> None:
        """Write everything that going on after ``epoch`` needs."""
        more = {"ema": whole(average.means, average.weights)} if average else {}
        write_state(
            trainer,
            epoch,
            fingerprint=self.catalog_lm.catalog.fingerprint,
            model=whole_weights(self.catalog_lm),
            optimizer=whole_optimizer_state(trainer.optimizer),
            scheduler=trainer.scheduler.state_dict(),
            **more,
        )

    def load_state(self, state: dict[str, Any], optimizer: Any, folder: Path) -> None:
        """Give the model and ``optimizer`` what :meth:`save_state` wrote.

        Items keep the codes that they were trained with, whatever would be made of them now.

        Args:
            state: as :func:`~recbole_idiomoe.training.state.read_state` gives it.
            optimizer: of a new training.
            folder: where the state is from.

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
            self.catalog_lm.load_state_dict(cut_weights(state["model"], self.catalog_lm))
            fused = optimizer.defaults["fused"]
            own = cut_optimizer_state(state["optimizer"], optimized(optimizer))
            optimizer.load_state_dict(own)
            for group in optimizer.param_groups:
                group["fused"] = fused  # as fits this device, whichever the state is from
        except (RuntimeError, ValueError) as error:
            raise other_architecture(folder, error) from error
