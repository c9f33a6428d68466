"""Runs that are killed at any moment end like runs that are not, bit for bit."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.training.cycle import TINY, write_cycle
from tests.training.kills import Place, duration, moments
from tests.training.test_trainer import assert_same

COMMON: dict[str, Any] = TINY | {
    "epochs": 4,
    "learning_rate": 0.002,
    "train_batch_size": 16,
    "stopping_step": 2,
}
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    # As random and as full of state as it gets.
    "IDIOMoE": (
        "IDIOMoE",
        {
            "dropout": 0.3,
            "item_warmup": 0.25,
            "text_ramp": 1.0,
            "query_share": 0.3,
            "max_batch_tokens": 600,
            "ema_decay": 0.9,
            "keep_last": 2,
            "cold_start": 0.1,
        },
    ),
    "semantic IDs": ("IDIOMoE", {"item_tokens": "semantic", "segment_order": "ID text"}),
    "E4SRec": ("E4SRec", {"id_encoder": {"epochs": 2, "hidden_size": 16}, "epochs": 2}),
    "SASRec": ("SASRec", {"hidden_size": 16, "inner_size": 16}),
    # Trains on items drawn at random, by numpy and by its loader.
    "SASRec, BPR": (
        "SASRec",
        {
            "hidden_size": 16,
            "inner_size": 16,
            "loss_type": "BPR",
            "train_neg_sample_args": {"distribution": "uniform", "sample_num": 1},
        },
    ),
    "BERT4Rec": ("BERT4Rec", {"hidden_size": 16, "inner_size": 16}),  # Python's, for its masks
    "S3Rec": (
        "S3Rec",
        {
            "hidden_size": 16,
            "inner_size": 16,
            "pretrain_epochs": 1,
            "item_attribute": "categories",
        },
    ),
    # Calls a module one of its parameters, which no state should pickle.
    "GRU4RecF": (
        "GRU4RecF",
        {"embedding_size": 16, "hidden_size": 16, "selected_features": ["categories"]},
    ),
    "SASRecCE": ("SASRecCE", {"hidden_size": 16}),
    "SASRecSS": ("SASRecSS", {"hidden_size": 16, "negatives": 20}),
    "HSTU": ("HSTU", {"hidden_size": 16, "negatives": 20}),
    "stopped early": (
        "SASRecCE",
        {"hidden_size": 16, "epochs": 12, "stopping_step": 0, "learning_rate": 0.03},
    ),
}
TIMED = ("IDIOMoE", "SASRec, BPR")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cycle(tmp_path_factory.mktemp("data") / "cycle", both_ways=True)


class Bench:
    """A run without interruption, and others to be held against it."""

    def __init__(self, name: str, data: Path, place: Path) -> None:
        model, settings = RUNS[name]
        self.settings = COMMON | settings | {"data_path": str(data)}
        self.model, self.place, self.places = model, place, 0
        straight = self.new()
        self.seconds = duration(straight)
        self.wanted = straight.outcome()

    def new(self) -> Place:
        self.places += 1
        return Place(self.place / str(self.places), self.model, self.settings)

    def check(self, place: Place) -> None:
        assert_same(place.outcome(), self.wanted)


@pytest.fixture
def bench(request: pytest.FixtureRequest, data: Path, tmp_path: Path) -> Bench:
    return Bench(request.param, data, tmp_path)


def kill_at_random_moments(bench: Bench, kills: int, seed: int) -> None:
    """Kill runs ``kills`` times in all, each as often as it takes until it has ended."""
    times = moments(seed, bench.seconds)
    survived = 0
    while survived < kills:
        place = bench.new()
        while survived < kills and place.kill_after(*next(times)):
            survived += 1
        place.finish()
        bench.check(place)


@pytest.mark.parametrize("bench", TIMED, indirect=True)
def test_killed_at_three_random_moments(bench: Bench) -> None:
    kill_at_random_moments(bench, kills=3, seed=7)


@pytest.mark.slow
@pytest.mark.parametrize("bench", TIMED, indirect=True)
def test_killed_at_twenty_random_moments(
    bench: Bench, record_property: Callable[[str, object], None]
) -> None:
    kill_at_random_moments(bench, kills=20, seed=11)
    record_property("kills", 20)


@pytest.mark.slow
@pytest.mark.parametrize("bench", RUNS, indirect=True)
def test_killed_in_the_midst_of_writing(
    bench: Bench, record_property: Callable[[str, object], None]
) -> None:
    """At every eleventh moment: all three of a rename come in turn, and every kind of file."""
    for number in count(step=11):
        place = bench.new()
        if not place.kill_at_write(number):
            break
        place.finish()
        bench.check(place)
    assert number >= 22
    record_property("kills", number // 11)
