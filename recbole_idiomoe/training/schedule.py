"""Schedules over epochs."""

from __future__ import annotations


def text_share(epoch: int, epochs: int, warmup: float, ramp: float) -> float:
    """Share of training sequences that carry text (paper, section B.5, item 8).

    The first ``warmup`` of the epochs see item tokens alone; then the share rises linearly
    until ``ramp`` of the epochs are over, and stays 1.

    Args:
        epoch: from 0.
        epochs: in all.
        warmup, ramp: shares of ``epochs``, ``warmup <= ramp``.
    """
    start, end = round(warmup * epochs), round(ramp * epochs)
    if epoch < start:
        return 0.0
    return 1.0 if epoch + 1 >= end else (epoch + 1 - start) / (end - start)
