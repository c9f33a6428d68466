"""The sides of training.py: each measures steps and estimates the time of an epoch."""

from __future__ import annotations

import gc
import re
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
import yaml
from measuring import qwen, seconds, synchronize
from naive import NaiveIdiomoe
from recbole.data import data_preparation
from recbole.data.dataloader import TrainDataLoader
from recbole.trainer import Trainer as RecBoleTrainer
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from recbole_idiomoe.base import distributed
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.batch import SequenceBatch
from recbole_idiomoe.data.catalog import read_catalog
from recbole_idiomoe.data.loader import WindowLoader
from recbole_idiomoe.data.loading import load_dataset
from recbole_idiomoe.data.options import TextOptions
from recbole_idiomoe.data.ragged import RaggedArray
from recbole_idiomoe.data.sequence import NOTHING
from recbole_idiomoe.data.sequence_builder import SequenceBuilder
from recbole_idiomoe.lm import encode_text
from recbole_idiomoe.models.registry import get_model
from recbole_idiomoe.training.sharding import placed
from recbole_idiomoe.training.trainers import get_trainer

SETTINGS: dict[str, Any] = {
    "item_warmup": 0.0,  # text from the first epoch on
    "text_ramp": 0.0,
    "dropout": 0.0,
    "item_init": "random",
    # The paper's loss, which is the only one of the other sides.
    "text_smoothing": 0.0,
    "transition_smoothing": 0.0,
    "ema_decay": 0.0,
    "max_item_text_tokens": 64,
    "precision": "bf16",
    "learner": "adamw",
    "learning_rate": 0.0001,
    "show_progress": False,
}
TINY: dict[str, Any] = {  # some hundred users, for a CPU
    "user_inter_num_interval": "[8,8]",
    "item_inter_num_interval": "[0,inf)",
    "max_tokens": 256,
    "train_batch_size": 16,
}
OTHERS_STEPS = 8
KERNELS = {  # kinds of kernels: the first pattern that matches the name counts
    "attention": "flash|fmha|attention|sdpa",  # before cutlass, which their names contain too
    "matrix products": "nvjet|gemm|cutlass|cublas|gemv",
    "optimizer and clipping": "multi_tensor",
    "norms, activations, routing, residuals: compiled": "triton_",
    "all else": "",
}


@dataclass
class Epoch:
    """One side's epoch of amazon-toys."""

    seconds: float
    lengths: np.ndarray
    """Tokens of each sequence, without padding, (sequences,)."""
    predictions: int
    """Number of predicted items."""
    items: int
    """Number of candidates of each prediction."""
    padding: float
    """Share of padding in the computed tokens."""
    measured: str
    """The part of the epoch that was measured."""


def ours(given: Namespace) -> Epoch:
    """The package's own trainer, set up as in a run."""
    trainer, train_data = warmed_up(given)
    config, loader = trainer.config, trainer.loader.loader
    trainer.loader = timed = FirstSteps(loader, given.steps)
    spent = seconds(lambda: trainer._train_epoch(train_data, 1), given.device, 1, warmup=0)

    tokens = int(torch.cat(timed.lengths).sum())
    lengths = loader.builder.lengths(loader.windows)
    return Epoch(
        seconds=spent * lengths.sum() / tokens,
        lengths=lengths,
        predictions=sum(len(window) - 1 for window in loader.windows),
        items=trainer.model.n_items,
        padding=1 - tokens / timed.computed,
        measured=f"{len(timed):,} of {len(loader):,} steps of {config['train_batch_size']} "
        f"histories, at most {loader.max_batch_tokens:,} tokens a pass",
    )


def warmed_up(given: Namespace) -> tuple[Any, Any]:
    """The package's trainer after its first steps, and RecBole's loader."""
    with TemporaryDirectory() as own:
        folder = distributed.from_main(lambda: own)
        distributed.from_main(lambda: save_backbone(given, folder))
        config, train_data = load("IDIOMoE", given, backbone=folder, checkpoint_dir=folder)
        model = get_model("IDIOMoE")(config, train_data._dataset)
        placed(model, config.settings, config["device"])
        trainer = get_trainer("IDIOMoE")(config, model)
        distributed.gathered(None)  # all ranks have read the backbone
    free()
    trainer._prepare(train_data)
    trainer.loader = FirstSteps(trainer.loader, given.warmup)
    trainer._train_epoch(train_data, 0)
    return trainer, train_data


def save_backbone(given: Namespace, folder: str) -> None:
    """Save a backbone for the setting ``backbone``, without loss in bfloat16."""
    qwen(given.tiny, given.device, given.shape).to(torch.bfloat16).save_pretrained(folder)
    AutoTokenizer.from_pretrained(given.tokenizer).save_pretrained(folder)
    free()


def profiled(given: Namespace) -> dict[str, float]:
    """GPU seconds of a step by kind of kernel, and wall-clock seconds as ``a step``."""
    trainer, train_data = warmed_up(given)
    trainer.loader = FirstSteps(trainer.loader.loader, given.steps or OTHERS_STEPS)
    run = partial(trainer._train_epoch, train_data, 1)
    spent = {"a step": seconds(run, given.device, 1, warmup=0)}
    spent |= dict.fromkeys(KERNELS, 0.0)
    for name, own in kernel_seconds(run).items():
        spent[next(kind for kind, like in KERNELS.items() if re.search(like, name))] += own
    return {kind: value / len(trainer.loader) for kind, value in spent.items()}


def kernel_seconds(run: Callable[[], object]) -> dict[str, float]:
    """GPU seconds of each kernel during ``run``, by its name."""
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        run()
        torch.cuda.synchronize()
    return {
        kernel.key: kernel.self_device_time_total / 1e6
        for kernel in found.key_averages()
        if kernel.device_type == DeviceType.CUDA and not kernel.is_user_annotation
    }


def naive(given: Namespace) -> Epoch:
    """RecBole's trainer and rows, boolean masks in every layer."""
    config, train_data = load("SASRec", given)  # any model with RecBole's own data
    dataset = train_data._dataset
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    builder = sequence_builder(config, dataset, tokenizer)
    steps = given.steps or OTHERS_STEPS

    def attempt(rows: int) -> tuple[int, float]:
        config["train_batch_size"] = rows
        loader = TrainDataLoader(config, dataset, train_data._sampler, shuffle=True)
        backbone = qwen(given.tiny, given.device)
        model = NaiveIdiomoe(config, dataset, backbone, builder, tokenizer.pad_token_id)
        trainer = RecBoleTrainer(config, model.to(given.device))

        def run(number: int) -> None:
            trainer._train_epoch(islice(loader, number), 0)

        run(2)
        return rows, seconds(lambda: run(steps), given.device, 1, warmup=0) / steps

    rows, step = next(those_that_fit(attempt, (8,) if given.tiny else (64, 32, 16, 8)))
    inter = dataset.inter_feat
    histories = zip(inter["item_id_list"].numpy(), inter["item_length"].tolist(), strict=True)
    # ``lengths`` does not count the last item, so any item is appended.
    lengths = builder.lengths(RaggedArray.of(np.r_[items[:n], 1] for items, n in histories))
    return Epoch(
        seconds=step * len(lengths) / rows,
        lengths=lengths,
        predictions=len(lengths),
        items=dataset.item_num,
        padding=1 - lengths.sum() / (len(lengths) * builder.max_tokens),
        measured=f"{steps} steps of {rows} rows, scaled to {len(lengths):,} rows",
    )


def hf_trainer(given: Namespace) -> Epoch:
    """transformers' Trainer, a dense model, padding per batch."""
    config, train_data = load("IDIOMoE", given)
    dataset = train_data._dataset
    tokenizer = AutoTokenizer.from_pretrained(given.tokenizer)
    builder = sequence_builder(config, dataset, tokenizer)
    windows = dataset.training_windows(
        config["MAX_ITEM_LIST_LENGTH"], builder.code_lengths, builder.room
    )
    lengths = builder.lengths(windows) + 1
    in_step = config["train_batch_size"]
    number = (given.steps or OTHERS_STEPS) * in_step
    chosen = np.random.default_rng(0).permutation(len(windows))[:number]
    drawn = [labelled(builder, windows[i]) for i in chosen]
    longest = [labelled(builder, windows[i]) for i in np.argsort(-lengths)[:in_step]]

    def attempt(rows: int) -> tuple[int, float, int]:
        model = qwen(given.tiny, given.device)
        vocabulary = builder.item_token_offset + dataset.item_num
        model.resize_token_embeddings(vocabulary, mean_resizing=False)

        def train(histories: list[dict[str, list[int]]]) -> tuple[float, int]:
            collator, stopwatch = Collator(tokenizer), Stopwatch(given.device)
            with TemporaryDirectory() as folder:
                arguments = TrainingArguments(
                    folder,
                    per_device_train_batch_size=rows,
                    gradient_accumulation_steps=max(1, in_step // rows),
                    num_train_epochs=1,
                    bf16=True,
                    use_cpu=given.device == "cpu",
                    save_strategy="no",
                    report_to="none",
                    disable_tqdm=True,
                )
                trainer = Trainer(
                    model,
                    arguments,
                    data_collator=collator,
                    train_dataset=histories,  # type: ignore[arg-type]
                    callbacks=[stopwatch],
                )
                trainer.train()
            begin, end = stopwatch.times
            return end - begin, collator.computed

        train(longest[: 2 * rows])  # warms up, and tests that the longest fit
        return rows, *train(drawn)

    # More rows are not always faster, since they are padded to the longest of more.
    fitting = those_that_fit(attempt, (2,) if given.tiny else (32, 16, 8))
    rows, spent, computed = min(fitting, key=lambda outcome: outcome[1])
    tokens = lengths[chosen].sum()
    return Epoch(
        seconds=spent * lengths.sum() / tokens,
        lengths=lengths,
        predictions=sum(len(window) - 1 for window in windows),
        items=dataset.item_num,
        padding=1 - tokens / computed,
        measured=f"{len(drawn):,} histories, {rows} a pass, scaled to {len(windows):,}",
    )


def load(model: str, given: Namespace, **settings: Any) -> tuple[RunConfig, Any]:
    """The configuration, and RecBole's training loader of amazon-toys, for ``model``."""
    settings |= SETTINGS | (TINY if given.tiny else {})
    settings["data_path"] = str(given.data_path)
    settings["gpu_id"] = "0" if given.device == "cuda" else ""
    settings |= {name: yaml.safe_load(value) for name, value in given.setting}
    config = RunConfig(model, "amazon-toys", settings=settings)
    train_data, _, _ = data_preparation(config, load_dataset(config))
    return config, train_data


def sequence_builder(config: RunConfig, dataset: Any, tokenizer: Any) -> SequenceBuilder:
    """The package's builder of sequences, for the other sides' models."""
    settings, offset = TextOptions.from_mapping(config), qwen(True, "meta").config.vocab_size
    catalog = read_catalog(dataset, settings)
    instruction, *texts = encode_text(tokenizer, [settings.instruction or "", *catalog.texts])
    return SequenceBuilder(
        [text[: settings.max_item_text_tokens] for text in texts],
        [[offset + row] for row in range(catalog.item_num)],
        offset,
        instruction=instruction,
        item_first=settings.segment_order == "ID text",
        max_tokens=settings.max_tokens,
    )


def labelled(builder: SequenceBuilder, window: np.ndarray) -> dict[str, list[int]]:
    """A history for transformers, which predicts each label from the position before it."""
    (sequence,) = builder.build_training([window], np.array([True]), [NOTHING])
    input_ids = np.r_[sequence.input_ids, sequence.targets[-1]]
    labels = np.full(len(input_ids), -100)
    labels[sequence.predict_at + 1] = sequence.targets
    return {"input_ids": input_ids.tolist(), "labels": labels.tolist()}


class FirstSteps:
    """The first steps of a loader's epoch, or all of them; counts their tokens."""

    def __init__(self, loader: WindowLoader, number: int | None) -> None:
        self.loader = loader
        self.number = min(number or len(loader), len(loader))
        self.set_epoch = loader.set_epoch
        self.computed = 0
        self.lengths: list[torch.Tensor] = []

    def __len__(self) -> int:
        return self.number

    def __iter__(self) -> Iterator[list[SequenceBatch]]:
        for step in islice(self.loader, self.number):
            self.computed += sum(batch.input_ids.numel() for batch in step)
            self.lengths += [batch.lengths for batch in step]
            yield step


class Collator(DataCollatorForSeq2Seq):
    """Pads tokens and labels to the longest of a batch; counts the computed tokens."""

    computed = 0

    def __call__(self, features: Any, return_tensors: str | None = None) -> Any:
        batch = super().__call__(features, return_tensors)
        self.computed += batch["input_ids"].numel()
        return batch


class Stopwatch(TrainerCallback):
    """The start of a Trainer's first step, and the end of its last one."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.times: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        if not self.times:
            self._look()

    def on_train_end(self, *args: Any, **kwargs: Any) -> None:
        self._look()

    def _look(self) -> None:
        synchronize(self.device)
        self.times.append(time.perf_counter())


def those_that_fit(attempt: Callable[[int], Any], sizes: Sequence[int]) -> Iterator[Any]:
    """Yield ``attempt(size)`` for each of ``sizes`` that fits into the device's memory."""
    fitting = 0
    for size in sizes:
        free()  # memory of the last attempt, or of its error
        try:
            outcome = attempt(size)
        except torch.OutOfMemoryError:
            print(f"{size} at once do not fit into the device's memory", file=sys.stderr)
            continue
        fitting += 1
        yield outcome
    if not fitting:
        raise SystemExit(f"not even {sizes[-1]} at once fit into the device's memory")


def free() -> None:
    """Return unused memory to the device."""
    gc.collect()
    torch.cuda.empty_cache()
