"""Time and memory from files to training and evaluation, with 500,000 items.

    python benchmarks/at_size.py --data_path=DATA            # --scale=0.1: a tenth of everything

Files of 800,000 users, 500,000 items and 9.5 million reviews, which synthetic_catalogue.py creates
in DATA if needed, are loaded, tokenized, trained on for a few steps and ranked for a few users. The
backbone is the bundled one, with the package's default settings but smaller steps. Each stage has
its seconds and its peak resident memory. For comparison, the same call measures RecBole's own
loading of the files for SASRec (stock_loading.py).

The comparison is from files to the three loaders. Ours also checks every row and masks seen items.
A side that needs more than --most_gib is stopped, which the table reports.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import stages
import synthetic_catalogue
from measuring import markdown, where
from stages import Stage, Stopped, stage

HERE = Path(__file__).parent
TO_LOADERS = ("rows checked", "files to tables", "rows and split")
SMALL_STEPS: dict[str, Any] = {  # steps that a CPU does in seconds
    "train_batch_size": 32,
    "max_batch_tokens": 8192,
    "item_warmup": 0.0,  # text from the first epoch on
    "text_ramp": 0.0,
}
SLICES = {"full": (4, 256), "tiny": (1, 16)}
"""Numbers of training steps, and of users to rank."""


def ours(folder: Path, name: str, settings: dict[str, Any], steps: int, users: int) -> None:
    """The stages of the package, in this process."""
    from training_sides import FirstSteps

    from recbole_idiomoe.config.run_config import RunConfig
    from recbole_idiomoe.data import loading
    from recbole_idiomoe.data.catalog import read_catalog
    from recbole_idiomoe.data.text_tokens import text_tokens
    from recbole_idiomoe.models.language.catalog_lm import CatalogLM, untouched_backbone
    from recbole_idiomoe.models.registry import get_model
    from recbole_idiomoe.protocol.loader import CandidateLoader
    from recbole_idiomoe.protocol.seen_items import SeenItemMask
    from recbole_idiomoe.protocol.splits import split_dataset
    from recbole_idiomoe.training.trainers import get_trainer

    config = RunConfig("IDIOMoE", name, settings=settings)
    with stage("rows checked"):
        loading.find_data(config)
    with stage("files to tables"):
        dataset = loading.read_dataset(config)
    with stage("rows and split"):
        splits = split_dataset(config, dataset)
    train, test = splits.train, splits.test
    with stage("catalogue"):
        catalog = read_catalog(train._dataset, config.settings)

    _, tokenizer = untouched_backbone(config.settings, seed=0)
    most, cache = config.settings.max_item_text_tokens, config.settings.token_cache
    some = catalog.texts[1 : 1 + len(catalog.texts) // 10]
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with stage("a tenth of the texts to tokens, on one core"):
        text_tokens(tokenizer, some, most)
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    with stage("a tenth of the texts to tokens, on all"):
        text_tokens(tokenizer, some, most)
    with stage("texts to tokens, and kept"):
        tokens = text_tokens(tokenizer, catalog.texts, most, cache)
    with stage("tokens read again"):
        text_tokens(tokenizer, catalog.texts, most, cache)
    print(f"{tokens.lengths[1:].mean():.1f} tokens a text")
    del catalog, tokens, tokenizer

    with stage("model, its item table from text"):
        model = get_model("IDIOMoE")(config, train._dataset)
    trainer = get_trainer("IDIOMoE")(config, model)
    trainer.saved_model_file = str(folder / "run" / "best")
    with stage("training windows"):
        trainer._prepare(train)
    trainer.loader = first = FirstSteps(trainer.loader, steps)
    with stage("training slice"):
        trainer._train_epoch(train, 0)
    print(
        f"training slice: {len(first)} steps of {config['train_batch_size']} histories, "
        f"{sum(int(lengths.sum()) for lengths in first.lengths):,} tokens"
    )
    part = test._dataset.copy(test._dataset.inter_feat[:users])
    loader = CandidateLoader(config, part)
    loader.mask(SeenItemMask(test.seen.seen, part))
    trainer.eval_collector.data_collect(train)
    with stage("evaluation slice"):
        trainer.evaluate(loader, load_best_model=False)
    print(f"evaluation slice: {len(part):,} users")
    with stage("model saved"):
        model.catalog_lm.save(folder / "run")
    with stage("model read"):
        CatalogLM.load(folder / "run", config.settings, "cpu")


def data_set(data_path: Path, scale: float) -> str:
    """The name of the data set of this size, which is created if it does not exist."""
    name = synthetic_catalogue.NAME + ("" if scale == 1 else f"-{scale:g}")
    if not (data_path / name).exists():
        full = (
            synthetic_catalogue.USERS,
            synthetic_catalogue.ITEMS,
            synthetic_catalogue.INTERACTIONS,
        )
        synthetic_catalogue.write(data_path / name, *(round(number * scale) for number in full))
    return name


def table(mine: Sequence[Stage], theirs: Sequence[Stage], stopped: dict[str, str]) -> str:
    """A table of all stages of both sides, and a comparison from files to loaders."""
    header = ["", "seconds", "peak GiB"]
    rows = [[one.name, f"{one.seconds:.2f}", f"{one.gib:.2f}"] for one in mine]
    rows += [[f"RecBole: {one.name}", f"{one.seconds:.2f}", f"{one.gib:.2f}"] for one in theirs]
    lines = [markdown(header, rows), ""]
    lines += [f"{side}: {reason}." for side, reason in stopped.items()]
    if not stopped:
        both = [[one for one in side if one.name in TO_LOADERS] for side in (mine, theirs)]
        seconds = [sum(one.seconds for one in side) for side in both]
        gib = [max(one.gib for one in side) for side in both]
        lines.append(
            f"Files to loaders: {seconds[0]:.2f} s and {gib[0]:.2f} GiB; RecBole's "
            f"{seconds[1]:.2f} s and {gib[1]:.2f} GiB: {seconds[1] / seconds[0]:.2f} times the "
            f"time, {gib[1] / gib[0]:.2f} times the memory."
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True, help="where the files are or go")
    parser.add_argument("--scale", type=float, default=1.0, help="of users, items and reviews")
    parser.add_argument("--most_gib", type=float, default=16.0, help="of memory, for each side")
    parser.add_argument("--most_minutes", type=float, default=60.0, help="for each side")
    parser.add_argument("--side", choices=("ours", "recbole"), help="that one alone")
    parser.add_argument("--tiny", action="store_true", help="0.0005 of all, the smallest slices")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    data_path = given.data_path.resolve()
    scale = 0.0005 if given.tiny else given.scale
    name = data_set(data_path, scale)
    if given.here:
        settings = json.loads((given.here / "settings.json").read_text()) | SMALL_STEPS
        settings |= {"data_path": str(data_path), "gpu_id": "", "show_progress": False}
        settings |= {"token_cache": str(given.here / "tokens")}
        settings |= {"checkpoint_dir": str(given.here)}
        with contextlib.chdir(given.here):  # RecBole writes logs into the working directory
            ours(given.here, name, settings, *SLICES["tiny" if given.tiny else "full"])
        return
    found: dict[str, list[Stage]] = {"ours": [], "recbole": []}
    stopped = {}
    with tempfile.TemporaryDirectory() as place:
        settings_file = Path(place, "settings.json")
        settings_file.write_text(json.dumps(synthetic_catalogue.SETTINGS))
        own = [str(HERE / "at_size.py"), f"--data_path={data_path}", f"--scale={scale:g}"]
        own += [f"--here={place}", *(["--tiny"] if given.tiny else [])]
        stock = [str(HERE / "stock_loading.py"), str(data_path), name, str(settings_file)]
        for side, command in (("ours", own), ("recbole", stock)):
            if given.side in (None, side):
                with contextlib.chdir(place):
                    try:
                        found[side] = stages.measure(
                            command, given.most_gib, 60 * given.most_minutes
                        )
                    except Stopped as error:
                        found[side], stopped[side] = error.stages, str(error)
    if given.side:
        stopped.setdefault("The other side", "not asked for")
    print(f"{where('cpu')}; {os.cpu_count()} cores; {name}\n")
    print(table(found["ours"], found["recbole"], stopped))


if __name__ == "__main__":
    main()
