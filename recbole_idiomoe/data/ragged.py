"""Many short arrays in a few long ones: half a million lists of Python's would take gigabytes.

Processes that load data ahead share them too: Python counts who holds a list, and with every count
that it writes a page of the memory that was shared becomes the process's own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class Ragged(Sequence[np.ndarray]):
    """Arrays of different lengths, each a view of one.

    Args:
        values: what they are cut from, shape ``(n,)``.
        starts: where each begins, shape ``(arrays,)``.
        stops: where each ends, likewise.
    """

    def __init__(self, values: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> None:
        self.values, self.starts, self.stops = values, starts, stops

    @classmethod
    def of(cls, arrays: Iterable[Sequence[int] | np.ndarray]) -> Ragged:
        """``arrays``, of integers, joined; what is ragged already is left as it is."""
        if isinstance(arrays, Ragged):
            return arrays
        each = [np.asarray(array, dtype=np.int64) for array in arrays]
        lengths = np.array([len(array) for array in each], dtype=np.int64)
        return cls.joined(np.concatenate(each) if each else np.zeros(0, dtype=np.int64), lengths)

    @classmethod
    def joined(cls, values: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Arrays of these lengths that stand in ``values`` one behind the other."""
        stops = np.cumsum(lengths)
        return cls(values, stops - lengths, stops)

    @property
    def lengths(self) -> np.ndarray:
        """Shape ``(arrays,)``."""
        lengths: np.ndarray = self.stops - self.starts
        return lengths

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> Ragged: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | Ragged:
        starts, stops = self.starts[index], self.stops[index]
        if isinstance(index, slice):
            return Ragged(self.values, starts, stops)
        return self.values[starts:stops]
