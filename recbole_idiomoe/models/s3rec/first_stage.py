"""S3Rec's first stage, self-supervised pre-training."""

from __future__ import annotations

from logging import getLogger
from typing import Any

from recbole_idiomoe.models.first_stage import StageRun
from recbole_idiomoe.models.s3rec.pretraining import PretrainingS3Rec


class PretrainingStage:
    """Pre-trains an S3Rec, of whose weights RecBole's fine-tuning starts.

    RecBole asks for two runs with settings changed by hand between them, and writes nothing
    unless ``pretrain_epochs`` reaches ``save_step``. A user who gives ``train_stage: finetune``
    and a ``pre_model_path`` skips this stage.
    """

    def is_needed(self, config: Any) -> bool:
        """Whether no pre-trained model is given."""
        return bool(config["train_stage"] == "pretrain")

    def train(self, run: StageRun) -> None:
        """Pre-train, and point ``pre_model_path`` at the weights."""
        config = run.config
        config["save_step"] = config["pretrain_epochs"]
        getLogger().info(f"S3Rec, stage 1 of 2: pre-training, {config['pretrain_epochs']} epochs")
        checkpoint_dir, config["checkpoint_dir"] = config["checkpoint_dir"], str(run.folder)
        model = PretrainingS3Rec(config, run.train_data._dataset)
        trainer = run.fit(config, model, run.train_data)
        config["checkpoint_dir"] = checkpoint_dir
        config["train_stage"] = "finetune"
        config["pre_model_path"] = trainer.saved_model_file
        getLogger().info("S3Rec, stage 2 of 2: fine-tuning")
