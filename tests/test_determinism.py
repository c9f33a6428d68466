"""One seed, one result: whatever the loader workers, the hash seed and the process."""

import json
import os
import subprocess
import sys
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from recbole_idiomoe import api
from recbole_idiomoe.data.semantic_ids import fit_semantic_ids
from recbole_idiomoe.data.text_encoder import item_vectors
from recbole_idiomoe.models.registry import BASELINES, LANGUAGE_MODELS, MODELS
from tests.models.tiny_baselines import SMALL
from tests.training.cycle import TINY, write_cycle

ROOT = Path(__file__).parent.parent
VARIANTS: dict[str, dict[str, Any]] = {
    **{name: {} for name in LANGUAGE_MODELS},
    **{name: SMALL[name] for name in BASELINES},
    "E4SRec": {"id_encoder": {"hidden_size": 16, "n_heads": 2, "n_layers": 1, "epochs": 1}},
    "IDIOMoE-semantic": {
        "item_tokens": "semantic",
        "semantic_codebook_size": 8,
        "segment_order": "ID text",
    },
    "IDIOMoE-queries": {"query_share": 0.5, "dropout": 0.1},
}
"""Settings of every model of ours, and of what draws more than they do by themselves."""
# They have their data as IDIOMoE has, and their golden metrics are made under any hashes.
SLOW = ("ItemLLM", "IDTransformer", "IAM", "WideFFN", "AppendBlocks", "PrependBlocks", "MoT")
QUICK = tuple(name for name in VARIANTS if name not in SLOW)


def metrics(name: str, data: Path, **options: Any) -> dict[str, Any]:
    """All that a run measured, and nothing that a clock did."""
    settings = TINY | VARIANTS[name] | {"epochs": 2, "data_path": str(data), "state": "error"}
    (result,) = api.run(name.split("-")[0], "cycle", settings=settings | options)
    kept = ("best_valid_result", "test_result", "learning_curve")
    found = {key: result[key] for key in kept}
    for point in found["learning_curve"]:
        point.pop("seconds", None)
    return found


def main(data: str, names: Sequence[str]) -> None:
    """What :func:`elsewhere` runs: one line of JSON for all that is named, and the codes."""
    found = {name: metrics(name, Path(data), worker=0) for name in names}
    print(json.dumps({**found, "codes": codes(1)}))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("data") / "cycle", items=24, users=24, length=6)


def elsewhere(code: str, folder: Path, **environment: str) -> Any:
    """What ``code`` prints last, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def in_another_process(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Any]:
    """A variant's metrics, without loader workers and with other hashes than here."""
    hashes = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"

    @cache
    def of(names: tuple[str, ...]) -> Any:
        code = f"from tests import test_determinism as t; t.main({str(data)!r}, {names})"
        return elsewhere(code, tmp_path_factory.mktemp("cwd"), PYTHONHASHSEED=hashes)

    return lambda name: of(SLOW if name in SLOW else QUICK)[name]


def test_every_model_of_ours_is_tried() -> None:
    assert {name.split("-")[0] for name in VARIANTS} == set(MODELS)


@pytest.mark.parametrize(
    "name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]
)
def test_metrics_are_the_same_with_loader_workers_and_in_another_process(
    name: str, data: Path, in_another_process: Callable[..., Any]
) -> None:
    found = json.loads(json.dumps(metrics(name, data, worker=2)))
    assert found == in_another_process(name)
    assert found["test_result"]["ndcg@10"] > 0


def test_another_seed_is_another_run(data: Path, in_another_process: Callable[..., Any]) -> None:
    found = metrics("IDIOMoE", data, seed=7)
    assert found["test_result"] != in_another_process("IDIOMoE")["test_result"]


# Semantic IDs


def texts(items: int = 600) -> list[str]:
    """Titles of a few words out of many, some of them twice; the padding item has none."""
    rng = np.random.default_rng(0)
    words = [f"word{n}" for n in range(300)]
    return ["", *(" ".join(rng.choice(words, 5)) for _ in range(items)), "word1 word2", ""]


class Texts:
    """As much of a catalogue as text vectors are made of."""

    texts, untrained = texts(), ()


def codes(threads: int) -> list[int]:
    """Checksums of vectors, codebooks and tokens, made where libraries have so many threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with threadpool_limits(threads):
            vectors = item_vectors(Texts(), "tfidf", dim=64)  # type: ignore[arg-type]
            ids = fit_semantic_ids(vectors, levels=3, codebook_size=64)
            libraries = [library["num_threads"] for library in threadpool_info()]
        assert torch.get_num_threads() == threads and set(libraries) == {threads}
    finally:
        torch.set_num_threads(before)
    return [zlib.crc32(a.tobytes()) for a in (vectors, ids.codebooks, ids.tokens)]


def test_semantic_ids_are_the_same_with_any_number_of_threads_and_in_another_process(
    in_another_process: Callable[..., Any],
) -> None:
    assert codes(1) == codes(2) == codes(4) == in_another_process("codes")


def test_last_bits_of_text_vectors_change_no_code() -> None:
    """As another machine's arithmetic would change them.

    In the first place all items agree but for those bits, as where their texts share a word.
    """
    vectors = np.random.default_rng(0).normal(size=(601, 16)).astype(np.float32)
    vectors[:, 0] = 1
    ids = fit_semantic_ids(vectors, levels=3, codebook_size=64)
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(size=vectors.shape)
        nearly = (vectors * (1 + 1e-7 * noise)).astype(np.float32)
        assert len(np.unique(nearly[:, 0])) > 1
        moved = fit_semantic_ids(nearly, levels=3, codebook_size=64)
        assert (moved.codes[1:] == ids.codes[1:]).mean() > 0.99
