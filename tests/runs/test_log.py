"""What a run opens for its log and its curves is closed when it ends, however it ends."""

import logging
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from recbole_idiomoe.api import run
from recbole_idiomoe.base.errors import IdiomoeError
from tests.training.cycle import TINY, write_cycle

SMALL = TINY | {"epochs": 1, "state": "warning"}
ENCODER = {"epochs": 1, "hidden_size": 16}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_cycle(tmp_path_factory.mktemp("data") / "cycle"))


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    yield
    for handler in logging.getLogger().handlers[:]:
        if type(handler) is logging.StreamHandler:  # RecBole's, which write to this test's stderr
            logging.getLogger().removeHandler(handler)


@pytest.mark.parametrize(
    ("model", "settings"),
    [
        ("IDIOMoE", {}),
        ("E4SRec", {"id_encoder": ENCODER}),
        ("S3Rec", {"hidden_size": 16, "pretrain_epochs": 1, "item_attribute": "categories"}),
        ("IDIOMoE", {"learner": "sgd"}),
    ],
)
def test_a_run_leaves_no_thread(model: str, settings: dict[str, Any], data: str) -> None:
    before = set(threading.enumerate())
    try:
        run(model, "cycle", settings=SMALL | settings | {"data_path": data})
    except IdiomoeError:
        assert settings == {"learner": "sgd"}
    left = {type(thread).__name__ for thread in set(threading.enumerate()) - before}
    assert left <= {"TMonitor"}  # tqdm's, one a process
