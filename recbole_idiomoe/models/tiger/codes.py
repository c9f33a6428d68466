"""The codes that a generative model writes items in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from recbole_idiomoe.base.errors import DataError

PADDING = 0


@dataclass(frozen=True, eq=False)
class CodeTable:
    """The code of every item as a row of tokens; codes may have different lengths."""

    tokens: np.ndarray
    """``(item_num, longest)``, int64: tokens from 1, padded with 0 on the right. Row 0, the padding
    item's, is zero."""
    token_num: int
    """Number of tokens, with the padding token and unused ones."""

    @classmethod
    def of(
        cls, codes: Sequence[Sequence[int] | np.ndarray], token_num: int | None = None
    ) -> CodeTable:
        """The table of the given codes.

        Args:
            codes: tokens of each item, from 1, one code per catalogue row; the code of row 0, the
                padding item's, is empty. Items with the same code get the same score.
            token_num: number of tokens with padding; None: the largest token plus 1.

        Raises:
            DataError: an item has no code, a code begins another one, or a token is out of range.
        """
        spelt = [tuple(int(token) for token in code) for code in codes]
        if not spelt or spelt[0] or not all(spelt[1:]):
            raise DataError(
                "codes: row 0 must be empty, and every other row must hold at least one token."
            )
        used = [token for code in spelt for token in code]
        if token_num is None:
            token_num = max(used, default=PADDING) + 1
        if not all(PADDING < token < token_num for token in used):
            raise DataError(
                f"codes: tokens from {min(used)} to {max(used)}; they must be between 1 and "
                f"{token_num - 1}."
            )
        # In sorted order, a code that begins others stands directly before one of them.
        for code, following in pairwise(sorted(set(spelt[1:]))):
            if following[: len(code)] == code:
                raise DataError(
                    f"codes: {code} begins {following}, so that they cannot be told apart; add a "
                    "token that ends a code."
                )
        tokens = np.full((len(spelt), max(map(len, spelt))), PADDING, dtype=np.int64)
        for row, code in zip(tokens, spelt, strict=True):
            row[: len(code)] = code
        return cls(tokens, token_num)
