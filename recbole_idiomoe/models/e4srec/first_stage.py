"""E4SRec's first stage: the item vectors of a sequential recommender (its section 3.2)."""

from __future__ import annotations

from logging import getLogger
from typing import Any

import numpy as np
from recbole.data.dataloader import TrainDataLoader
from recbole.utils import init_seed

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.files import atomic_write
from recbole_idiomoe.models.first_stage import StageRun
from recbole_idiomoe.models.registry import get_model

ID_ENCODER = "SASRecCE"
ID_VECTORS_FILE = "id_vectors.npz"


class IdEncoderStage:
    """Trains a SASRecCE and keeps its item vectors as ``ID_VECTORS_FILE`` in the run's folder.

    It has the data, seed and protocol of the run, and its own values for all settings in the recipe
    of either model. Its best epoch on validation counts.
    """

    def is_needed(self, config: Any) -> bool:
        """Whether no file of vectors is given."""
        return config["id_vectors"] is None

    def train(self, run: StageRun) -> None:
        """Train the encoder in one process, and point ``id_vectors`` at its vectors."""
        file = run.folder / ID_VECTORS_FILE

        def train() -> None:
            if not file.exists():  # a resumed run has it already
                _train_id_encoder(run)

        distributed.from_main(train)
        run.config["id_vectors"] = str(file)


def id_encoder_config(config: Any) -> Any:
    """The configuration of the encoder, made from the configuration of E4SRec."""
    return config.of_other_model(ID_ENCODER, config["id_encoder"] or {})


def _train_id_encoder(run: StageRun) -> None:
    stage = id_encoder_config(run.config)
    getLogger().info(f"E4SRec, stage 1 of 2: {ID_ENCODER}, at most {stage['epochs']} epochs")
    init_seed(stage["seed"], stage["reproducibility"])
    histories = run.train_data._dataset
    windows = histories.copy(histories.inter_feat[histories.window_ends()])
    model = get_model(ID_ENCODER)(stage, windows)
    loader = TrainDataLoader(stage, windows, None, shuffle=True)
    trainer = run.fit(stage, model, loader, run.folder / "id_encoder.pth")
    item_ids = histories.field2id_token[histories.iid_field].astype(str)
    vectors = model.items.weight.detach().cpu().numpy()
    with atomic_write(run.folder / ID_VECTORS_FILE) as aside, aside.open("wb") as file:
        np.savez(file, item_ids=item_ids[1:], vectors=vectors[1:])
    result = trainer.best_valid_result
    getLogger().info(f"E4SRec, stage 2 of 2: the language model; stage 1 validated at {result}")
