"""One thread: tiny models on many threads spend their time waiting for one another."""

import gc
import logging
import os
from collections.abc import Iterator

# Before anything imports torch, so that it holds for data loader workers too.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import settings

# Collecting tests makes millions of objects, and nearly all of them stay.
gc.disable()

# The same examples each time. For more: pytest --hypothesis-profile=slow
settings.register_profile("quick", max_examples=40, deadline=None, derandomize=True, database=None)
settings.register_profile("slow", max_examples=500, deadline=None, derandomize=True, database=None)
settings.load_profile("quick")


def pytest_collection_finish() -> None:
    """What is imported by now stays; to look whether it is garbage took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def power_that_never_fails() -> Iterator[None]:
    """A run waits a dozen times until its files are on the disk; nobody pulls a plug here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        yield


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RecBole writes ./log, ./log_tensorboard and ./saved wherever it stands."""
    monkeypatch.chdir(tmp_path_factory.mktemp("cwd"))


@pytest.fixture(autouse=True)
def loud_as_it_was() -> Iterator[None]:
    """RecBole sets how much is logged, for whatever runs after it too."""
    loggers = [logging.getLogger(), logging.getLogger("recbole_idiomoe")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)
