"""Models that train in two stages: what comes before the one that every model has."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from recbole.data.dataloader import TrainDataLoader
from recbole.trainer import S3RecTrainer
from recbole.utils import init_seed

from recbole_idiomoe.base import distributed
from recbole_idiomoe.base.files import written_aside
from recbole_idiomoe.config.layers import own_settings
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.models.registry import get_model, get_trainer
from recbole_idiomoe.models.s3rec import pretraining as s3rec_pretraining
from recbole_idiomoe.protocol.clock import Clock
from recbole_idiomoe.protocol.finite_scores import refuse_nan
from recbole_idiomoe.training.loss_watch import watch_loss

ID_ENCODER = "SASRecCE"
ID_VECTORS_FILE = "id_vectors.npz"


def has_first_stage(config: RunConfig) -> bool:
    """Whether :func:`pretrain` has anything to train for this model and its settings."""
    if config["model"] == "S3Rec":
        return bool(config["train_stage"] == "pretrain")
    return config["model"] == "E4SRec" and config["id_vectors"] is None


def pretrain(
    config: RunConfig, train_data: Any, valid_data: Any, folder: Path, clock: Clock
) -> None:
    """Run the first stage of a model that has one, and set ``config`` to the second.

    Args:
        clock: its ``evaluate`` is what the stage's validation takes.
    """
    if not has_first_stage(config):
        return
    if config["model"] == "S3Rec":
        _pretrain_s3rec(config, train_data, folder)
    else:

        def train() -> None:
            if not (folder / ID_VECTORS_FILE).exists():  # else of a run that is gone on with
                _train_id_encoder(config, train_data, valid_data, folder, clock)

        distributed.from_main(train)
        config["id_vectors"] = str(folder / ID_VECTORS_FILE)


def _pretrain_s3rec(config: RunConfig, train_data: Any, folder: Path) -> None:
    """S3Rec's first stage.

    RecBole asks for two runs with settings changed by hand between them, and writes nothing
    unless ``pretrain_epochs`` reaches ``save_step``. A user who gives ``train_stage: finetune``
    and a ``pre_model_path`` skips this. The model is RecBole's, with its tensors and losses made
    as in :mod:`recbole_idiomoe.models.s3rec.pretraining`.
    """
    config["save_step"] = config["pretrain_epochs"]
    getLogger().info(f"S3Rec, stage 1 of 2: pre-training, {config['pretrain_epochs']} epochs")
    model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    s3rec_pretraining.speed_up(model)
    checkpoint_dir, config["checkpoint_dir"] = config["checkpoint_dir"], str(folder)
    trainer = S3RecTrainer(config, model)
    watch_loss(trainer, train_data._dataset, folder)
    trainer.fit(train_data, show_progress=config["show_progress"])
    config["checkpoint_dir"] = checkpoint_dir
    config["train_stage"] = "finetune"
    config["pre_model_path"] = trainer.saved_model_file
    getLogger().info("S3Rec, stage 2 of 2: fine-tuning")


def _train_id_encoder(
    config: RunConfig, train_data: Any, valid_data: Any, folder: Path, clock: Clock
) -> None:
    """E4SRec's first stage: the item vectors of a SASRecCE, into ``ID_VECTORS_FILE``.

    It has the data, seed and protocol of the run, and settings of its own for all that either
    model's options speak of. As in a run of its own, the epoch that validates best is kept.
    """
    stage = _id_encoder_config(config)
    getLogger().info(f"E4SRec, stage 1 of 2: {ID_ENCODER}, at most {stage['epochs']} epochs")
    init_seed(stage["seed"], stage["reproducibility"])
    histories = train_data._dataset
    windows = histories.copy(histories.inter_feat[histories.window_ends()])
    model = get_model(ID_ENCODER)(stage, windows).to(stage["device"])
    trainer = get_trainer(ID_ENCODER)(stage, model)
    folder.mkdir(parents=True, exist_ok=True)
    trainer.saved_model_file = str(folder / "id_encoder.pth")
    watch_loss(trainer, histories, folder)
    refuse_nan(trainer, histories)
    trainer.evaluate = clock.timing("evaluate", trainer.evaluate)
    loader = TrainDataLoader(stage, windows, None, shuffle=True)
    _, result = trainer.fit(loader, valid_data, show_progress=stage["show_progress"])
    trainer.resume_checkpoint(trainer.saved_model_file)  # the best epoch's weights
    item_ids = histories.field2id_token[histories.iid_field].astype(str)
    vectors = model.items.weight.detach().cpu().numpy()
    with written_aside(folder / ID_VECTORS_FILE) as aside, aside.open("wb") as file:
        np.savez(file, item_ids=item_ids[1:], vectors=vectors[1:])
    getLogger().info(f"E4SRec, stage 2 of 2: the language model; stage 1 validated at {result}")


def _id_encoder_config(config: RunConfig) -> RunConfig:
    """What a run of the first stage's model by itself would have."""
    own = own_settings(ID_ENCODER) | own_settings(config["model"])
    shared = {k: v for k, v in config.complete_settings().items() if k not in own}
    return RunConfig(
        ID_ENCODER,
        config["dataset_label"],
        settings=shared,
        beside=[config["model"]],
        own=config["id_encoder"] or {},
    )
