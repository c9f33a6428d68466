"""The stranger, for every test here."""

import logging
from collections.abc import Iterator

import pytest

from tests.bad_input.stranger import Stranger


@pytest.fixture
def stranger(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Stranger]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    yield Stranger(capsys)
    for handler in logging.getLogger().handlers[:]:  # RecBole's, which write to this test's stderr
        if type(handler) is logging.StreamHandler:
            logging.getLogger().removeHandler(handler)
