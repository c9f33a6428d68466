import numpy as np
import pytest
import torch
from torch.utils.data._utils.pin_memory import pin_memory

from recbole_idiomoe.data.batch import collate, counts
from recbole_idiomoe.data.sequence import ITEM, TEXT
from tests.data.test_sequence import builder
from tests.helpers import sequence_of, training_sequence


def test_for_training() -> None:
    b = builder()
    windows = [np.array([1, 3, 2]), np.array([2, 1])]
    batch = collate([training_sequence(b, window) for window in windows], pad_token_id=9)
    assert batch.input_ids.tolist() == [[50, 51, 1, 2, 3, 101, 103], [50, 51, 4, 102, 9, 9, 9]]
    assert batch.token_types[1].tolist() == [TEXT, TEXT, TEXT, ITEM, TEXT, TEXT, TEXT]
    assert batch.segments.tolist() == [[0, 0, 1, 1, 1, 1, 2], [0, 0, 1, 1, 0, 0, 0]]
    assert batch.lengths.tolist() == [7, 4]
    assert batch.predict_at.tolist() == [5, 6, 7 + 3]
    assert batch.input_ids.flatten()[batch.predict_at].tolist() == [101, 103, 102]
    assert batch.targets.tolist() == [103, 102, 101]
    assert batch.previous.tolist() == [1, 3, 2]
    # Text is predicted from text alone, never across an item token or into padding.
    assert batch.predict_text_at.tolist() == [0, 1, 2, 3, 7, 8]


def test_counts_of_a_step_are_those_of_its_batches() -> None:
    b = builder()
    windows = [np.array(window) for window in ([1, 3, 2], [3, 3, 1], [2, 1, 2, 1])]
    sequences = [training_sequence(b, window) for window in windows]
    batches = [collate(some, pad_token_id=9) for some in (sequences[:2], sequences[2:])]
    assert counts(sequences) == {
        "item_count": sum(len(batch.targets) for batch in batches),
        "text_count": sum(len(batch.predict_text_at) for batch in batches),
        "token_count": sum(int(batch.lengths.sum()) for batch in batches),
    }


def test_item_tokens_are_counted() -> None:
    sequences = [training_sequence(builder(), np.array(window)) for window in ([1, 3, 2], [2, 1])]
    for some in (sequences, sequences[:1], sequences[1:]):
        batch = collate(some, pad_token_id=9)
        assert batch.item_tokens == (batch.token_types == ITEM).sum() > 0


def test_a_batch_moves_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = collate([training_sequence(builder(), np.array([1, 3, 2]))], pad_token_id=9)
    tensors = {n for n, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    assert len(tensors) == 8
    moved = batch.to("meta")
    assert all(getattr(moved, name).is_meta for name in tensors)
    # What the loader's pin_memory makes of a step; there is nothing to pin for without a GPU.
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)
    (pinned,) = pin_memory([batch])
    for name, value in vars(batch).items():
        assert torch.as_tensor(getattr(pinned, name) == value + (name in tensors)).all()


def test_for_use_asks_once_a_sequence() -> None:
    b = builder()
    batch = collate(
        [sequence_of(b, np.array([1, 3])), sequence_of(b, np.array([2]))], pad_token_id=9
    )
    assert batch.predict_at.tolist() == [6, 7 + 3]
    assert len(batch.targets) == 0
