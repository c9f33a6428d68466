"""A compact sequence of arrays of different lengths.

numpy and scipy have none, and torch's jagged tensors take milliseconds to index one row.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np


class RaggedArray(Sequence[np.ndarray]):
    """Arrays of different lengths, stored as one flat array and the bounds of each.

    A million short Python lists would take gigabytes. They would also be copied into every data
    loading process, because Python writes a reference count into each list that it reads.

    Args:
        values: the flat array, shape ``(n,)``.
        starts: index in ``values`` at which each array starts, shape ``(arrays,)``.
        stops: index in ``values`` before which each array ends, shape ``(arrays,)``. The arrays
            may overlap.
    """

    def __init__(self, values: np.ndarray, starts: np.ndarray, stops: np.ndarray) -> None:
        self.values, self.starts, self.stops = values, starts, stops

    @classmethod
    def of(cls, arrays: Iterable[Sequence[int] | np.ndarray]) -> RaggedArray:
        """Copy arrays of integers into an int64 array; a :class:`RaggedArray` is returned as is."""
        if isinstance(arrays, RaggedArray):
            return arrays
        each = [np.asarray(array, dtype=np.int64) for array in arrays]
        lengths = np.array([len(array) for array in each], dtype=np.int64)
        return cls.from_lengths(np.concatenate([np.zeros(0, dtype=np.int64), *each]), lengths)

    @classmethod
    def from_lengths(cls, values: np.ndarray, lengths: np.ndarray) -> RaggedArray:
        """Split ``values``, shape ``(n,)``, into consecutive arrays of these lengths."""
        stops = np.cumsum(lengths)
        return cls(values, stops - lengths, stops)

    @property
    def lengths(self) -> np.ndarray:
        """The length of each array, shape ``(arrays,)``."""
        return np.subtract(self.stops, self.starts)

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> RaggedArray: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | RaggedArray:
        """One array, as a view; or a :class:`RaggedArray` of several."""
        starts, stops = self.starts[index], self.stops[index]
        if isinstance(index, slice):
            return RaggedArray(self.values, starts, stops)
        return self.values[starts:stops]
