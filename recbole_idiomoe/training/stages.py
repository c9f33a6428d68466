"""Baselines that train in two stages."""

from __future__ import annotations

from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.config import Config
from recbole.trainer import S3RecTrainer

from recbole_idiomoe.registry import get_model


def pretrain(config: Config, train_data: Any, folder: Path) -> None:
    """Run S3Rec's first stage and set ``config`` to the second.

    RecBole asks for two runs with settings changed by hand between them, and writes nothing
    unless ``pretrain_epochs`` reaches ``save_step``. A user who gives ``train_stage: finetune``
    and a ``pre_model_path`` skips this.
    """
    if config["train_stage"] != "pretrain":
        return
    config["save_step"] = config["pretrain_epochs"]
    getLogger().info(f"S3Rec, stage 1 of 2: pre-training, {config['pretrain_epochs']} epochs")
    model = get_model(config["model"])(config, train_data._dataset).to(config["device"])
    checkpoint_dir, config["checkpoint_dir"] = config["checkpoint_dir"], str(folder)
    trainer = S3RecTrainer(config, model)
    trainer.fit(train_data, show_progress=config["show_progress"])
    config["checkpoint_dir"] = checkpoint_dir
    config["train_stage"] = "finetune"
    config["pre_model_path"] = trainer.saved_model_file
    getLogger().info("S3Rec, stage 2 of 2: fine-tuning")
