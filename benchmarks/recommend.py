"""Time of a recommendation, and of one more item in a session compared with a new request.

    python benchmarks/recommend.py --tokenizer=QWEN2.5 --device=cuda

The model has Qwen2.5-0.5B's shape and random weights. The catalogue is invented, as large as
amazon-toys and with texts of about as many tokens; histories have --tokens tokens. Without
--tokenizer, the bundled one with 16,384 tokens is used.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from measuring import markdown, save_qwen, seconds, synchronize, where

from recbole_idiomoe.data.catalog import Catalog
from recbole_idiomoe.lm.compilation import compile_blocks
from recbole_idiomoe.models.language.catalog_lm import CatalogLM
from recbole_idiomoe.models.language.options import LanguageModelOptions
from recbole_idiomoe.recommend.recommender import Recommender

K = 10
WORDS = ("wooden", "train", "set", "puzzle", "doll", "magnetic", "blocks", "deluxe", "game", "kit")


def make_catalog(items: int, words: int) -> Catalog:
    """A catalogue of items with texts of ``words`` words."""
    chosen = np.random.default_rng(0).choice(WORDS, size=(items, words))
    titles = [" ".join(row) for row in chosen.tolist()]
    texts = [f"title: {title}" for title in titles]
    return Catalog(["[PAD]", *(f"i{n}" for n in range(items))], ["", *titles], ["", *texts])


def build(given: argparse.Namespace, folder: Path) -> Recommender:
    save_qwen(folder, given.tokenizer, given.tiny)
    settings = LanguageModelOptions.from_mapping({"backbone": str(folder), "item_init": "random"})
    catalog = make_catalog(given.items, words=24)
    model = CatalogLM.build(catalog, settings, seed=0, device=torch.device("cpu"))
    model = model.to(given.device).eval()
    return Recommender(catalog, model.scores, 50, {"model": "IDIOMoE"}, model)


def make_histories(recommender: Recommender, tokens: int, count: int) -> list[list[str]]:
    """Random histories of about ``tokens`` tokens, with one more item at the end."""
    model, ids = recommender.catalog_lm, recommender.catalog.item_ids
    assert model is not None
    rng = np.random.default_rng(1)
    drawn = [rng.integers(1, len(ids), size=49) for _ in range(count)]
    lengths = [len(model.sequences([drawn[0][:n]])[0].input_ids) for n in range(1, 49)]
    items = 1 + int(np.abs(np.array(lengths) - tokens).argmin())
    return [[ids[row] for row in rows[: items + 1]] for rows in drawn]


def extended(
    begin: Callable[[], Callable[[], object]], device: str, repeats: int, warmup: int = 2
) -> float:
    """Median seconds of the function that ``begin`` returns, which is called once."""
    times = []
    for _ in range(warmup + repeats):
        run = begin()
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times[warmup:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=11_924)
    parser.add_argument("--tokens", type=int, default=250, help="of a history, about")
    parser.add_argument("--tokenizer", help="folder of Qwen2.5's tokenizer")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--device", default="cpu", help="cpu, or cuda")
    parser.add_argument("--tiny", action="store_true", help="a small model")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recommender = build(given, Path(folder))
    histories = make_histories(recommender, given.tokens, 64)

    def at_once(batch: list[list[str]]) -> float:
        return seconds(lambda: recommender.recommend(batch, K), given.device, given.repeats)

    def in_session() -> Callable[[], object]:
        *history, item = histories[0]
        session = recommender.session(history)
        session.recommend(K)

        def go_on() -> object:
            session.add(item)
            return session.recommend(K)

        return go_on

    one, many = at_once(histories[:1]), at_once(histories)
    session = extended(in_session, given.device, given.repeats)
    model = recommender.catalog_lm
    assert model is not None
    rows = recommender.catalog.rows(histories[0])
    before, after = (len(model.sequences([part])[0].input_ids) for part in (rows[:-1], rows))
    costs = {
        "1 history": (one, 1),
        "64 histories": (many, 64),
        "1 history, one item more in a session": (session, 1),
    }
    if given.device.startswith("cuda"):
        compile_blocks(model.lm.backbone)  # like load(folder, compile=True)
        costs["1 history, compiled"] = at_once(histories[:1]), 1
        costs["64 histories, compiled"] = at_once(histories), 64
    table = [
        [name, f"{s * 1e3:.1f}", f"{s / one:.2f}", f"{s / count / one:.2f}"]
        for name, (s, count) in costs.items()
    ]
    header = ["recommend", "ms", "of 1 history's time", "each history"]
    if not given.device.startswith("cuda"):  # milliseconds of a CPU do not compare between machines
        header, *table = ([row[0], *row[2:]] for row in (header, *table))
    print(where(given.device))
    print(
        f"\n{given.items:,} items; histories of {after} tokens, {after - before} the last item's\n"
    )
    print(markdown(header, table))


if __name__ == "__main__":
    main()
