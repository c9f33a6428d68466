"""The training loop: next-token loss on packed text, with Accelerate."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from recbole_idiomoe.base.errors import CheckpointError
from recbole_idiomoe.base.files import atomic_new_folder, remove_temporary_files
from recbole_idiomoe.pretrain.corpus import Windows
from recbole_idiomoe.pretrain.settings import PretrainSettings

PROGRESS = "progress.json"
# Settings that may change when a run resumes: they change no weight, or the tokens show the change.
FREE = ("text", "out", "name", "sources", "test", "prompt", "save_every")


@dataclass
class Progress:
    """The progress of a run, which a checkpoint holds with weights and optimizer state."""

    settings: dict[str, Any]  # those that determine the weights, and a hash of the tokens
    step: int = 0  # number of finished steps
    seconds: float = 0.0  # time of training and of the measurements on held-out text
    loss_sum: float = 0.0  # sum of the losses of the steps in the current epoch
    epochs: list[dict[str, float]] = field(default_factory=list)
    """``epoch``, ``train_nll`` and ``heldout_nll`` (nats per token) of each finished epoch."""


class NextTokenLoss(nn.Module):
    """Summed next-token cross entropy of windows, shape ``(batch, context + 1)``."""

    def __init__(self, decoder: PreTrainedModel) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        # Returns a scalar, since Accelerate would copy returned logits to float32.
        logits = self.decoder(windows[:, :-1], use_cache=False).logits
        targets = windows[:, 1:].flatten()
        return F.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="sum")


def train(
    decoder: PreTrainedModel,
    windows: Windows,
    settings: PretrainSettings,
    accelerator: Accelerator,
    folder: Path,
    heldout_nll: Callable[[], float],
) -> Progress:
    """Train ``decoder`` in place on the accelerator's device, and checkpoint into ``folder``.

    Training resumes from a checkpoint in ``folder`` and results in the same weights as without an
    interruption (on a GPU, up to the order of sums in its kernels).

    Args:
        heldout_nll: computes the nats per token on held-out text, after each epoch.

    Raises:
        CheckpointError: the checkpoint is broken, or was made with other settings or text.
    """
    total = max(1, round(settings.epochs * windows.steps_per_epoch))
    groups = _parameter_groups(decoder, settings.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, betas=(0.9, 0.95))
    warmup = min(settings.warmup_steps, total // 2)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, total)
    model, optimizer, schedule = accelerator.prepare(NextTokenLoss(decoder), optimizer, schedule)

    progress = _resume(accelerator, _fingerprint(settings, windows), folder)
    tokens_per_step = settings.batch_size * settings.context
    loss_sum = torch.tensor(progress.loss_sum, device=accelerator.device)
    bar = tqdm(total=total, initial=progress.step, unit="step", mininterval=1, dynamic_ncols=True)
    since = time.perf_counter() - progress.seconds
    for batch in windows.batches(progress.step, total):
        model.train()
        loss = torch.zeros((), device=accelerator.device)
        for part in batch.to(accelerator.device).split(settings.micro_batch_size):
            part_loss = model(part) / tokens_per_step
            accelerator.backward(part_loss)
            loss += part_loss.detach()
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        loss_sum += loss
        progress.step += 1
        bar.update()
        epoch_over = progress.step % windows.steps_per_epoch == 0
        if progress.step % 20 == 0 or epoch_over:  # reading the loss waits for the GPU
            rate = (bar.format_dict["rate"] or 0) * tokens_per_step
            bar.set_postfix_str(f"{rate:,.0f} tokens/s, loss {loss.item():.3f}", refresh=False)
        if epoch_over:
            train_nll = loss_sum.item() / windows.steps_per_epoch
            loss_sum.zero_()
            decoder.eval()
            epoch = progress.step // windows.steps_per_epoch
            found = {"epoch": epoch, "train_nll": train_nll, "heldout_nll": heldout_nll()}
            progress.epochs.append(found)
        if progress.step % settings.save_every == 0 or progress.step == total:
            progress.loss_sum = loss_sum.item()
            progress.seconds = time.perf_counter() - since
            _save(accelerator, progress, folder)
    bar.close()
    decoder.eval()
    return progress


def _parameter_groups(decoder: PreTrainedModel, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for matrices, but not for norms, biases and the embedding."""
    embedding = decoder.get_input_embeddings().weight
    groups: dict[bool, list[nn.Parameter]] = {True: [], False: []}
    for parameter in decoder.parameters():
        groups[parameter.ndim >= 2 and parameter is not embedding].append(parameter)
    decay = {True: weight_decay, False: 0.0}
    return [{"params": group, "weight_decay": decay[key]} for key, group in groups.items()]


def _fingerprint(settings: PretrainSettings, windows: Windows) -> dict[str, Any]:
    chosen = {name: value for name, value in asdict(settings).items() if name not in FREE}
    return chosen | {"tokens": hashlib.sha256(windows.tokens.tobytes()).hexdigest()}


def _save(accelerator: Accelerator, progress: Progress, folder: Path) -> None:
    """Write a checkpoint atomically, then remove the earlier ones."""
    earlier = list(folder.glob("checkpoint-*"))
    remove_temporary_files(folder)
    with atomic_new_folder(folder / f"checkpoint-{progress.step}") as temporary:
        accelerator.save_state(str(temporary))
        (temporary / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
    for old in earlier:
        shutil.rmtree(old)


def _resume(accelerator: Accelerator, chosen: dict[str, Any], folder: Path) -> Progress:
    """Load the last checkpoint into the accelerator's objects; without one, start at step 0."""
    if not (checkpoint := last_checkpoint(folder)):
        return Progress(chosen)
    try:
        progress = Progress(**json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))
        differing = [name for name in chosen if progress.settings.get(name) != chosen[name]]
        if not differing:
            accelerator.load_state(str(checkpoint))
    except Exception as error:  # each library raises its own error for a broken file
        raise CheckpointError(
            f"{checkpoint} cannot be resumed ({type(error).__name__}); if it is broken, "
            "delete it to start again."
        ) from error
    if differing == ["tokens"]:
        raise CheckpointError(f"{checkpoint} was made from other text; give another --out.")
    if differing:
        raise CheckpointError(
            f"{checkpoint} was made with another --{differing[0]}="
            f"{progress.settings.get(differing[0])}; give that, or another --out."
        )
    return progress


def last_checkpoint(folder: Path) -> Path | None:
    """The checkpoint in ``folder`` with the most steps, or None."""
    found = [path for path in folder.glob("checkpoint-*") if path.name[11:].isdecimal()]
    return max(found, key=lambda path: int(path.name[11:]), default=None)
