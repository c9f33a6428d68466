"""Semantic IDs: a short code per item, from its text vector (section B.6.2; after TIGER).

Residual quantisation: the first code is the nearest of a codebook's vectors, the second the
nearest of another codebook's to what the first leaves over, and so on. Items that read alike
share the beginning of their codes, and an item that nobody has seen has a code all the same.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from string import ascii_lowercase

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from recbole_idiomoe.base.environment import one_thread
from recbole_idiomoe.base.errors import CheckpointError, DataError, MissingLibraryError
from recbole_idiomoe.base.files import atomic_write
from recbole_idiomoe.lm.embedding import centred_directions
from recbole_idiomoe.lm.vocabulary import PADDING_ITEM, item_token

FILE_NAME = "semantic_ids.safetensors"
# Tie tokens beyond those in use, so that a trained model can take up as many new items that
# read like one of its own, or that have no text. Each costs one row of the token table.
SPARE_TIES = 16

_KMEANS_ITERATIONS = 10
_PASSES = 10  # twice as many changed neither collisions nor perplexities
# A codebook's vector that is nearest to less than this share of an even part of the items moves
# to one of them. Without it a quarter of a level's codes stood for hardly any item.
_RARE = 0.2
_BATCH_ROWS = 8192


@dataclass(frozen=True, eq=False)
class SemanticIds:
    """Every item's code, and the codebooks that give a new item one.

    Tokens are numbered from 1; 0 is padding. Code ``c`` of level ``l`` is token
    ``1 + l * codebook_size + c``. Items that share the codes of all levels are told apart by
    one more token, ``1 + levels * codebook_size + t`` for the ``t``-th of them; an item whose
    codes are its own has none. So no two items have the same tokens, and no item's tokens
    begin with all of another's.
    """

    codes: np.ndarray
    """(item_num, levels), int64; row 0 is the padding item's and means nothing."""
    codebooks: np.ndarray
    """(levels, codebook_size, k), float32."""
    mean: np.ndarray
    """(k,), float32: what is taken from a text vector before it is brought to length 1."""
    tie_tokens: int
    """Number of tokens that tell apart items with the same codes, spare ones included."""

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
        """Codes to choose from at each level; fewer than asked for in a small catalogue."""
        return self.codebooks.shape[1]

    @property
    def table_size(self) -> int:
        """Number of tokens, padding included."""
        return 1 + self.levels * self.codebook_size + self.tie_tokens

    @cached_property
    def tokens(self) -> np.ndarray:
        """Tokens per item, (item_num, levels + 1), int64, padded with 0; row 0 is zero."""
        tokens = np.zeros((self.item_num, self.levels + 1), dtype=np.int64)
        tokens[1:, :-1] = 1 + np.arange(self.levels) * self.codebook_size + self.codes[1:]
        tokens[1:, -1] = np.where(self._ties, self.levels * self.codebook_size + self._ties, 0)
        return tokens

    @cached_property
    def _ties(self) -> np.ndarray:
        """Per item but the padding one: 0 if nobody shares its codes, else 1, 2 ... in order."""
        _, group, sizes = np.unique(self.codes[1:], axis=0, return_inverse=True, return_counts=True)
        by_group = np.argsort(group, kind="stable")
        rank = np.empty(len(group), dtype=np.int64)
        rank[by_group] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        return np.where(sizes[group] > 1, rank + 1, 0)

    def token_names(self) -> list[str]:
        """What the tokens are called in a tokenizer, ``table_size`` names.

        ``<|a-17|>`` is code 17 of the first level, ``<|b-3|>`` code 3 of the second,
        ``<|tie-0|>`` the first of several items with the same codes.
        """
        return [
            item_token(PADDING_ITEM),
            *(
                f"<|{letter}-{code}|>"
                for letter in ascii_lowercase[: self.levels]
                for code in range(self.codebook_size)
            ),
            *(f"<|tie-{tie}|>" for tie in range(self.tie_tokens)),
        ]

    def token_vectors(self) -> np.ndarray:
        """(table_size, k), float32: the codebooks' vectors; zero for padding and tie tokens."""
        vectors = np.zeros((self.table_size, self.codebooks.shape[2]), dtype=np.float32)
        codes = self.codebooks.reshape(-1, self.codebooks.shape[2])
        vectors[1 : 1 + len(codes)] = codes
        return vectors

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """Codes of text vectors: (n, k), zeros where there is no text, -> (n, levels), int64.

        Raises:
            DataError: vectors of another width, or values that are not finite.
        """
        rows = _checked(vectors)
        if rows.shape[1] != len(self.mean):
            raise DataError(
                f"text vectors of width {rows.shape[1]} do not fit semantic IDs made of vectors "
                f"of width {len(self.mean)}; use the text_encoder that the model was made with."
            )
        directions = centred_directions(rows, torch.from_numpy(self.mean)).numpy()
        codes = np.empty((len(rows), self.levels), dtype=np.int64)
        for start in range(0, len(rows), _BATCH_ROWS):
            part = slice(start, start + _BATCH_ROWS)
            codes[part] = _nearest(directions[part], self.codebooks)
        return codes

    def with_items(self, vectors: np.ndarray) -> SemanticIds:
        """The same with new items after the old ones; ``vectors`` is (n, k) as for `encode`.

        Old items keep their tokens, except that one whose codes were its own until now gets
        the first tie token if a new item has the same codes.

        Raises:
            DataError: as `encode`, or too many items with the same codes.
        """
        return replace(self, codes=np.concatenate([self.codes, self.encode(vectors)]))

    @property
    def collision_rate(self) -> float:
        """Share of the items whose codes are not theirs alone; 0 for an empty catalogue."""
        return float((self._ties > 0).mean()) if self.item_num > 1 else 0.0

    @property
    def perplexities(self) -> list[float]:
        """Per level, how many codes it would take to spread the items as evenly."""
        counts = [np.unique(level, return_counts=True)[1] for level in self.codes[1:].T]
        shares = [count / count.sum() for count in counts]
        return [float(np.exp(-(share * np.log(share)).sum())) for share in shares]

    def describe(self) -> str:
        """One line for the log: sizes, codes in use, items that share theirs."""
        use = ", ".join(f"{perplexity:.1f}" for perplexity in self.perplexities)
        return (
            f"semantic IDs: {self.levels} levels of {self.codebook_size} codes (perplexity "
            f"{use}); {self.collision_rate:.2%} of {self.item_num - 1} items share all of theirs, "
            f"at most {self._ties.max(initial=1)} the same; {self.tie_tokens} tie tokens"
        )

    def save(self, folder: Path) -> None:
        """Write codes and codebooks into ``folder``, aside and then renamed."""
        content = {f.name: np.asarray(getattr(self, f.name)) for f in fields(self)}
        with atomic_write(folder / FILE_NAME) as aside:
            save_file(content, aside)

    @classmethod
    def load(cls, folder: Path) -> SemanticIds:
        """Read the semantic IDs of a saved model.

        Raises:
            CheckpointError: there are none, or the file is broken.
        """
        path = folder / FILE_NAME
        try:
            content = load_file(path)
            tie_tokens = int(content.pop("tie_tokens").item())
            found = cls(**content, tie_tokens=tie_tokens)
            found._check()
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
            raise CheckpointError(
                f"{path} holds no semantic IDs ({type(error).__name__}); give the folder of a "
                "model that this package saved with item_tokens: semantic."
            ) from error
        return found

    def _check(self) -> None:
        """Raise ValueError where the arrays do not fit each other."""
        levels, size, width = self.codebooks.shape
        if not 1 <= levels <= len(ascii_lowercase):
            raise ValueError("levels")
        if self.codes.shape[1:] != (levels,) or self.mean.shape != (width,) or not self.item_num:
            raise ValueError("shapes")
        if (self.codes < 0).any() or (self.codes >= size).any() or self.tie_tokens < 0:
            raise ValueError("codes")
        kinds = self.codes.dtype, self.codebooks.dtype, self.mean.dtype
        if kinds != (np.int64, np.float32, np.float32):
            raise ValueError("types")
        if not np.isfinite(self.codebooks).all() or not np.isfinite(self.mean).all():
            raise ValueError("numbers")


@one_thread()  # a last bit may decide an item's cluster, and that one others
def fit_semantic_ids(
    vectors: np.ndarray,
    *,
    levels: int,
    codebook_size: int,
    fitted: np.ndarray | None = None,
    seed: int = 0,
) -> SemanticIds:
    """Semantic IDs of a catalogue. Some 8 s for 12,000 items of width 256 on one CPU thread.

    The text vectors less their mean, of length 1, are quantised residually: k-means, then
    moving averages of all levels together. Items without text are left out of that and
    get the codes of a zero vector. The same vectors and seed give the same codes, whatever the
    number of threads.

    Args:
        vectors: (item_num, k) from :func:`item_vectors`; row 0 is the padding item's.
        levels: codes per item.
        codebook_size: codes to choose from at each level. A catalogue with fewer different
            vectors gets one code for each.
        fitted: (item_num,), bool: items that mean and codebooks may come from; None: all.
        seed: of everything random here; the global generators are left alone.

    Raises:
        DataError: vectors that are no matrix or not finite.
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
    """Equal rows once, in the order of the catalogue; equal are those that agree to five places.

    k-means starts from rows, and equal ones would make equal codes. It draws them by their
    number: sorted by value, a last bit that changed places would change every code.
    """
    rounded = rows.numpy().round(5) + 0.0  # no -0
    first = np.unique(rounded, axis=0, return_index=True)[1]
    return rows[np.sort(first)]


def _fit_codebooks(points: torch.Tensor, levels: int, size: int, seed: int) -> np.ndarray:
    """Codebooks (levels, size, k) of a residual quantiser of the rows of ``points``."""
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
            kmeans_iters=_KMEANS_ITERATIONS,
            threshold_ema_dead_code=_RARE * len(points) / size,
            sync_codebook=False,  # or several processes, with the same points, take them for more
        )
        for _ in range(_PASSES):
            quantiser(points)
    return quantiser.codebooks.numpy()


def _checked(vectors: np.ndarray) -> torch.Tensor:
    """``vectors`` in float32, if they are a matrix of finite numbers."""
    rows = torch.from_numpy(np.asarray(vectors, dtype=np.float32))
    if rows.ndim != 2:
        raise DataError(f"text vectors of shape {tuple(rows.shape)}: (items, k) is wanted.")
    if not torch.isfinite(rows).all():
        raise DataError("text vectors hold values that are not finite.")
    return rows


def _nearest(directions: np.ndarray, codebooks: np.ndarray) -> np.ndarray:
    """Codes (n, levels) of (n, k) rows, each level's nearest to what the ones before leave.

    Distances that agree to six places are a tie, which the lower code wins: further places
    depend on the machine and on which rows are worked out together.
    """
    residual = directions.astype(np.float64)
    codes = []
    for codebook in codebooks.astype(np.float64):
        distances = (codebook**2).sum(1) - 2 * residual @ codebook.T
        codes.append(distances.round(6).argmin(1))
        residual -= codebook[codes[-1]]
    return np.stack(codes, axis=1)
