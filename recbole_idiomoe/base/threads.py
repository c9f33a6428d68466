"""Numbers that do not depend on how many threads a process happens to have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the block's linear algebra, numpy's and torch's, on one thread.

    Several threads add up in another order than one, and the last bits of a sum differ. Where
    a choice follows from them, as a cluster does from a distance, so may all that comes after.
    """
    threads = torch.get_num_threads()
    with threadpool_limits(limits=1):
        torch.set_num_threads(1)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
