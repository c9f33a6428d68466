"""Semantic IDs: a short code per item, from its text vector (section B.6.2; after TIGER).

The codes come from residual quantisation. The first code is the number of the codebook vector
that is nearest to the text vector; the second is the number of the vector in a second codebook
that is nearest to the difference, and so on. Items with similar texts share the beginning of
their codes, and a new item gets a code too.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recbole_idiomoe.base.environment import one_thread
from recbole_idiomoe.base.errors import CheckpointError, DataError, MissingLibraryError
from recbole_idiomoe.base.files import atomic_write
from recbole_idiomoe.lm.embedding import centred_directions
from recbole_idiomoe.lm.vocabulary import PADDING_ITEM, item_token

FILE_NAME = "semantic_ids.safetensors"
# Unused tie tokens, so that a trained model can take this many new items that have the same codes
# as another item, or no text. Each costs one row of the token table.
SPARE_TIES = 16

_PASSES = 10  # twice as many changed neither collisions nor perplexities
# The vector of a code that fewer items have than this share of the average moves to an item.
# Without that, a quarter of the codes of a level stood for hardly any item.
_RARE = 0.2
_BATCH_ROWS = 8192


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """The codes of all items, and the codebooks that give codes to new items.

    Tokens are numbered from 1; 0 is padding. Code ``c`` of level ``l`` is token
    ``1 + l * codebook_size + c``. Each of several items with the same codes has one more token,
    the tie token ``1 + levels * codebook_size + t`` for the ``t``-th of them. Therefore no two
    items have the same tokens, and the tokens of no item begin with all tokens of another.
    """

    codes: np.ndarray
    """Shape ``(item_num, levels)``, int64; row 0, of the padding item, has no meaning."""
    codebooks: np.ndarray
    """Shape ``(levels, codebook_size, k)``, float32."""
    mean: np.ndarray
    """Subtracted from a text vector before it is scaled to length 1, shape ``(k,)``, float32."""
    tie_tokens: int
    """Number of tie tokens, spare ones included."""

    def __post_init__(self) -> None:
        most = int(self._ties.max(initial=0))
        if most > self.tie_tokens:
            raise DataError(
                f"{most} items have the same semantic codes, and there are tokens to tell "
                f"{self.tie_tokens} apart; train a model with these items in its catalogue, or "
                "give them texts that differ."
            )

    @property
    def item_num(self) -> int:
        """Number of rows, the padding item included (RecBole's ``item_num``)."""
        return len(self.codes)

    @property
    def levels(self) -> int:
        """Codes per item."""
        return self.codebooks.shape[0]

    @property
    def codebook_size(self) -> int:
        """Codes of each level; fewer than requested in a small catalogue."""
        return self.codebooks.shape[1]

    @property
    def table_size(self) -> int:
        """Number of tokens, padding included."""
        return 1 + self.levels * self.codebook_size + self.tie_tokens

    @cached_property
    def tokens(self) -> np.ndarray:
        """Tokens of each item, shape ``(item_num, levels + 1)``, int64, zeros as padding."""
        tokens = np.zeros((self.item_num, self.levels + 1), dtype=np.int64)
        tokens[1:, :-1] = 1 + np.arange(self.levels) * self.codebook_size + self.codes[1:]
        tokens[1:, -1] = np.where(self._ties, self.levels * self.codebook_size + self._ties, 0)
        return tokens

    @cached_property
    def _ties(self) -> np.ndarray:
        """For each item after the padding item: 0 if its codes are unique, else 1, 2, ..."""
        items = pd.DataFrame(self.codes[1:])
        same = items.groupby(list(items.columns))
        return np.where(same[0].transform("size") > 1, same.cumcount() + 1, 0)

    def token_names(self) -> list[str]:
        """The names of all tokens in a tokenizer, ``table_size`` of them.

        ``<|a-17|>`` is code 17 of the first level, ``<|b-3|>`` is code 3 of the second, and
        ``<|tie-0|>`` is the tie token of the first of several items with the same codes.
        """
        levels = product(ascii_lowercase[: self.levels], range(self.codebook_size))
        codes = [f"<|{letter}-{code}|>" for letter, code in levels]
        ties = [f"<|tie-{tie}|>" for tie in range(self.tie_tokens)]
        return [item_token(PADDING_ITEM), *codes, *ties]

    def token_vectors(self) -> np.ndarray:
        """The codebooks' vectors, zeros for other tokens, shape ``(table_size, k)``, float32."""
        return np.pad(np.concatenate(self.codebooks), ((1, self.tie_tokens), (0, 0)))

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """The codes of text vectors, shape ``(n, levels)``, int64.

        Args:
            vectors: shape ``(n, k)``, zeros for an item without text.

        Raises:
            DataError: the vectors have another width, or values that are not finite.
        """
        rows = _checked(vectors)
        if rows.shape[1] != len(self.mean):
            raise DataError(
                f"text vectors of width {rows.shape[1]} do not fit semantic IDs made of vectors "
                f"of width {len(self.mean)}; use the text_encoder that the model was made with."
            )
        directions = centred_directions(rows, torch.from_numpy(self.mean)).numpy()
        starts = range(0, max(len(rows), 1), _BATCH_ROWS)
        parts = (directions[start : start + _BATCH_ROWS] for start in starts)
        return np.concatenate([_nearest(part, self.codebooks) for part in parts])

    def with_items(self, vectors: np.ndarray) -> SemanticIds:
        """The semantic IDs with new items after the old ones, from vectors as in :meth:`encode`.

        Old items keep their tokens, except that an item with unique codes gets the first tie
        token if a new item has the same codes.

        Raises:
            DataError: as :meth:`encode`, or too many items have the same codes.
        """
        return replace(self, codes=np.concatenate([self.codes, self.encode(vectors)]))

    @property
    def collision_rate(self) -> float:
        """Share of the items whose codes are not unique; 0 for an empty catalogue."""
        return float((self._ties > 0).mean()) if self.item_num > 1 else 0.0

    @property
    def perplexities(self) -> list[float]:
        """Perplexity of the codes of each level: the number of codes if all were equally common."""
        counts = [np.unique(level, return_counts=True)[1] for level in self.codes[1:].T]
        shares = [count / count.sum() for count in counts]
        return [float(np.exp(-(share * np.log(share)).sum())) for share in shares]

    def describe(self) -> str:
        """One line for the log: sizes, perplexities and collisions."""
        use = ", ".join(f"{perplexity:.1f}" for perplexity in self.perplexities)
        return (
            f"semantic IDs: {self.levels} levels of {self.codebook_size} codes (perplexity "
            f"{use}); {self.collision_rate:.2%} of {self.item_num - 1} items share all of theirs, "
            f"at most {self._ties.max(initial=1)} the same; {self.tie_tokens} tie tokens"
        )

    def save(self, folder: Path) -> None:
        """Write codes and codebooks into ``folder`` atomically."""
        content = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        with atomic_write(folder / FILE_NAME) as temporary:
            save_file(content, temporary)

    @classmethod
    def load(cls, folder: Path) -> SemanticIds:
        """Read the semantic IDs of a saved model.

        Raises:
            CheckpointError: there is no file, or it is broken.
        """
        path = folder / FILE_NAME
        try:
            content = load_file(path)
            tie_tokens = int(content.pop("tie_tokens").item())
            found = cls(**content, tie_tokens=tie_tokens)
            if not found._is_valid():
                raise ValueError
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"{path} holds no semantic IDs ({type(error).__name__}); give the folder of a "
                "model that this package saved with item_tokens: semantic."
            ) from error
        return found

    def _is_valid(self) -> bool:
        levels, size, width = self.codebooks.shape
        types = self.codes.dtype, self.codebooks.dtype, self.mean.dtype
        return bool(
            1 <= levels <= len(ascii_lowercase)
            and self.codes.shape == (self.item_num, levels)
            and self.item_num > 0
            and self.mean.shape == (width,)
            and types == (np.int64, np.float32, np.float32)
            and ((self.codes >= 0) & (self.codes < size)).all()
            and self.tie_tokens >= 0
            and np.isfinite(self.codebooks).all()
            and np.isfinite(self.mean).all()
        )


@one_thread()  # the last bit of a sum may change the cluster of an item, and then other clusters
def fit_semantic_ids(
    vectors: np.ndarray,
    *,
    levels: int,
    codebook_size: int,
    fitted: np.ndarray | None = None,
    seed: int = 0,
) -> SemanticIds:
    """Semantic IDs of a catalogue; 12,000 items of width 256 take about 8 s on one CPU thread.

    The mean is subtracted from the text vectors, and they are scaled to length 1. k-means and then
    moving averages of all levels together fit the codebooks. Items without text are left out, and
    get the codes of a zero vector. The same vectors and seed give the same codes with any number
    of threads. The global random generators do not change.

    Args:
        vectors: shape ``(item_num, k)``, from :func:`item_vectors`; row 0 is the padding item's.
        codebook_size: codes of each level; fewer if there are fewer different vectors.
        fitted: the items that mean and codebooks are made from, bool, shape ``(item_num,)``; None:
            all.

    Raises:
        DataError: ``vectors`` is not a matrix of finite numbers.
        MissingLibraryError: vector-quantize-pytorch is not installed.
    """
    rows = _checked(vectors)
    chosen = rows.any(dim=1)
    chosen[0] = False
    if fitted is not None:
        chosen &= torch.from_numpy(fitted)
    known = rows[chosen]
    mean = known.mean(0) if len(known) else torch.zeros(rows.shape[1])
    points = _distinct(centred_directions(known, mean))
    if not len(points):
        points = torch.zeros(1, rows.shape[1])
    codebooks = _fit_codebooks(points, levels, min(codebook_size, len(points)), seed)
    blank = SemanticIds(np.zeros((1, levels), dtype=np.int64), codebooks, mean.numpy(), 0)
    codes = np.concatenate([blank.codes, blank.encode(vectors[1:])])
    ties = int(np.unique(codes[1:], axis=0, return_counts=True)[1].max(initial=1))
    used = ties if ties > 1 else 0
    return replace(blank, codes=codes, tie_tokens=used + SPARE_TIES)


def _distinct(rows: torch.Tensor) -> torch.Tensor:
    """The rows that differ in the first five decimal places, in the order of the catalogue.

    k-means starts from random rows, and equal ones would make equal codes. It draws them by their
    number; in an order by value, the last bit of a vector could change all codes.
    """
    rounded = rows.numpy().round(5) + 0.0  # no -0
    first = np.unique(rounded, axis=0, return_index=True)[1]
    return rows[np.sort(first)]


def _fit_codebooks(points: torch.Tensor, levels: int, size: int, seed: int) -> np.ndarray:
    """Codebooks of a residual quantiser of ``points``, shape ``(levels, size, k)``."""
    try:
        from vector_quantize_pytorch import ResidualVQ
    except ImportError as error:
        raise MissingLibraryError(
            "semantic IDs need vector-quantize-pytorch: pip install vector-quantize-pytorch"
        ) from error
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        quantiser = ResidualVQ(
            dim=points.shape[1],
            num_quantizers=levels,
            codebook_size=size,
            kmeans_init=True,
            kmeans_iters=10,
            threshold_ema_dead_code=_RARE * len(points) / size,
            sync_codebook=False,  # each process has all points and fits the same codebooks
        )
        for _ in range(_PASSES):
            quantiser(points)
    return quantiser.codebooks.numpy()


def _checked(vectors: np.ndarray) -> torch.Tensor:
    """``vectors`` in float32, checked to be a matrix of finite numbers."""
    rows = torch.from_numpy(np.asarray(vectors, dtype=np.float32))
    if rows.ndim != 2:
        raise DataError(f"text vectors of shape {tuple(rows.shape)}: (items, k) is wanted.")
    if not torch.isfinite(rows).all():
        raise DataError("text vectors hold values that are not finite.")
    return rows


def _nearest(directions: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """The codes of ``directions``, shape ``(n, k)``, as an array of shape ``(n, levels)``.

    Of distances that are equal in the first six decimal places, the lower code wins, because
    later places depend on the machine and on the other rows of the batch.
    """
    residual = directions.astype(np.float64)
    codes = []
    for codebook in codebooks.astype(np.float64):
        distances = (codebook**2).sum(1) - 2 * residual @ codebook.T
        codes.append(distances.round(6).argmin(1))
        residual -= codebook[codes[-1]]
    return np.stack(codes, axis=1)
