"""A leaderboard's folder: its index of rows, and the runs that its tables are made of.

``leaderboard.json``, the index, has the protocol and the rows. ``runs/`` has a JSON file, the ranks
of the targets, and the ranks under the mix of every run. ``targets/`` has once what all runs on a
data set share. No file names users or items, so that the folder can be passed on without the data;
the one exception are the users of a step with a non-finite loss, kept in ``runs/`` until the run is
tried again. A row with new settings keeps its earlier runs, which count again when the earlier
settings return. A crash leaves a valid folder: the ranks of a run are written before its JSON file,
which marks it as finished, and both before the index.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from recbole_idiomoe.base.errors import IdiomoeError, SettingError, short_reason
from recbole_idiomoe.base.files import unwritable_reason, write_text
from recbole_idiomoe.base.run_folder import MIX_RANKS_FILE, RANKS_FILE
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.grid.cells import Cell, Grid
from recbole_idiomoe.models.registry import is_of_family
from recbole_idiomoe.protocol.description import protocol
from recbole_idiomoe.protocol.ranks import NamedRanks, Ranks, is_ranked, load_arrays, save_arrays
from recbole_idiomoe.report.extra_rows import mix_of

INDEX, RUNS, TARGETS = "leaderboard.json", "runs", "targets"
_VERSION = 1
_DATA = (".inter", ".item")
_PLACES = ("checkpoint_dir", "data_path", "language_file")
_RANKS, _MIX_RANKS = ".npz", ".mix.npz"
_ELSEWHERE = "the numbers do not compare; name another folder."


@dataclass
class Row:
    """A row of the table on one data set."""

    model: str
    ours: bool
    """Whether the model is one of this package; otherwise it is a baseline."""
    own: dict[str, Any]
    """The settings of this row alone."""
    identity: str
    """Identity of its runs: :attr:`recbole_idiomoe.grid.cells.Cell.identity`."""
    runs: dict[str, str] = field(default_factory=dict)
    """Names of its runs in ``runs/``, by seed."""
    failed: dict[str, str] = field(default_factory=dict)
    """Reasons of failed runs, by seed, until they succeed."""
    tuned: dict[str, Any] = field(default_factory=dict)
    """The settings that tuning chose."""


@dataclass
class Board:
    """The content of ``leaderboard.json``."""

    folder: Path
    protocol: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Protocol of the runs, by data set; the number of candidates is added after the first run."""
    data: dict[str, dict[str, str]] = field(default_factory=dict)
    """Digests of the data files by name, by data set."""
    rows: dict[str, dict[str, Row]] = field(default_factory=dict)
    """Rows by name, by data set."""

    def enter(self, grid: Grid, cells: Sequence[Cell]) -> list[str]:
        """Add the rows of ``cells``, and count the runs that are kept already.

        Returns:
            Names of the rows whose settings changed.

        Raises:
            SettingError: their protocol or data differ from the leaderboard's, or their protocol
                does not give every target one rank.
        """
        for dataset, cell in {cell.dataset: cell for cell in cells}.items():
            self._check(dataset, cell)
        changed = []
        for cell in cells:
            rows = self.rows.setdefault(cell.dataset, {})
            row = rows.get(cell.variant)
            if row is None or row.identity != cell.identity:
                if row is not None:
                    changed.append(f"{cell.variant} on {cell.dataset}")
                own = {k: v for k, v in grid.variants[cell.variant].items() if k != "model"}
                ours = is_of_family(cell.model)
                row = rows[cell.variant] = Row(cell.model, ours, own, cell.identity)
            row.tuned = cell.tuned
            if self.has(cell):
                self._count(cell, row)
        self.save()
        return changed

    def has(self, cell: Cell) -> bool:
        """Whether the run of ``cell`` is kept."""
        return self._run_file(cell.key).exists()

    def keep(self, cell: Cell, result: Mapping[str, Any], alone: bool) -> None:
        """Keep a finished run, whose folder still exists, and count it in rows of its identity.

        ``alone`` is whether no other run ran at the same time.

        Raises:
            SettingError: its protocol or its test targets differ from the other runs'.
        """
        found = dict(result["protocol"])
        self._check_same(f"{cell.variant!r}", found, self.protocol[cell.dataset])
        self.protocol[cell.dataset] = found
        folder = Path(result["folder"])
        path = self._run_file(cell.key)
        ranks_files = {_RANKS: RANKS_FILE, _MIX_RANKS: MIX_RANKS_FILE if "mix" in result else ""}
        for suffix, name in ranks_files.items():
            if name:
                ranks = NamedRanks.load(folder / name)
                self._keep_targets(cell, ranks)
                save_arrays(path.with_suffix(suffix), rank=ranks.rank.astype(np.int32))
        kept = {key: value for key, value in result.items() if key != "folder"}
        # Paths of the user's machine stay out of the folder.
        settings = {k: v for k, v in result["settings"].items() if k not in _PLACES}
        kept |= {"settings": settings, "alone": alone}
        write_text(path, json.dumps(kept, indent=1))
        for row in self._rows_of(cell):
            self._count(cell, row)
        self.save()

    def fail(self, cell: Cell, reason: str) -> None:
        """Record why a run failed."""
        for row in self._rows_of(cell):
            row.failed[str(cell.settings["seed"])] = reason
        self.save()

    def results(self, row: Row, *, mixed: bool = False) -> list[tuple[dict[str, Any], Ranks]]:
        """The kept runs of ``row``, or their mixes as runs, with ranks, in the order of seeds.

        Raises:
            IdiomoeError: a run cannot be read.
        """
        suffix = _MIX_RANKS if mixed else _RANKS
        found: list[tuple[dict[str, Any], Ranks]] = []
        targets: dict[str, np.ndarray] = {}
        for seed in sorted(row.runs, key=int):
            path = self._run_file(row.runs[seed])
            run = _read_run(path)
            if shown := mix_of(run) if mixed else run:
                path_of_targets = self._targets_file(run["dataset"])
                targets = targets or load_arrays(path_of_targets, "history", "popularity")
                ranks = load_arrays(path.with_suffix(suffix), "rank")
                found.append((shown, Ranks(**ranks, **targets)))
        return found

    def save(self) -> None:
        """Write the index."""
        content = asdict(self) | {"version": _VERSION}
        del content["folder"]
        write_text(self.folder / INDEX, json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def _check(self, dataset: str, cell: Cell) -> None:
        config = RunConfig(cell.model, dataset, settings=cell.settings)
        found = protocol(config, 0)
        if reason := _without_ranks(config, found):
            raise SettingError(f"leaderboard={self.folder}: {reason}")
        del found["candidates"]  # their number is only known once the data are loaded
        known = self.protocol.setdefault(dataset, found)
        expected = {name: value for name, value in known.items() if name in found}
        self._check_same(f"the {dataset} asked for", found, expected)
        data = {name: digest for name, digest in cell.files if name.endswith(_DATA)}
        known_data = self.data.setdefault(dataset, data)
        if data != known_data:
            names = ", ".join(sorted({name for name, _ in data.items() ^ known_data.items()}))
            raise SettingError(
                f"leaderboard={self.folder} was made with other data of {dataset} ({names}): "
                + _ELSEWHERE
            )

    def _check_same(self, what: str, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
        differing = [name for name in expected if found.get(name) != expected[name]]
        if differing:
            raise SettingError(
                f"leaderboard={self.folder} has another protocol than {what} "
                f"({', '.join(differing)}): {_ELSEWHERE}"
            )

    def _keep_targets(self, cell: Cell, ranks: NamedRanks) -> None:
        path, digest = self._targets_file(cell.dataset), ranks.targets_digest()
        if not path.exists():
            path.parent.mkdir(exist_ok=True)
            history, popularity = ranks.history.astype(np.int32), ranks.popularity.astype(np.int32)
            save_arrays(path, digest=np.array(digest), history=history, popularity=popularity)
        elif str(load_arrays(path, "digest")["digest"]) != digest:
            raise SettingError(
                f"leaderboard={self.folder}: {cell.variant} has other test targets on "
                f"{cell.dataset} than the runs there: {_ELSEWHERE}"
            )

    def _targets_file(self, dataset: str) -> Path:
        return self.folder / TARGETS / f"{dataset}.npz"

    def _count(self, cell: Cell, row: Row) -> None:
        seed = str(cell.settings["seed"])
        row.runs[seed] = cell.key
        row.failed.pop(seed, None)

    def _rows_of(self, cell: Cell) -> list[Row]:
        """The rows with the identity of ``cell``."""
        rows = self.rows[cell.dataset].values()
        return [row for row in rows if row.identity == cell.identity]

    def _run_file(self, key: str) -> Path:
        return self.folder / RUNS / f"{key}.json"


def _read_run(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise IdiomoeError(
            f"{path} cannot be read ({short_reason(error)}); the command that made it runs it "
            "anew once it is deleted."
        ) from error


@contextmanager
def open_board(folder: Path) -> Iterator[Board]:
    """Create or open the leaderboard in ``folder`` and lock it until the block ends.

    Raises:
        SettingError: ``folder`` holds something else, cannot be written, or is locked.
    """
    is_new = not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
    if not is_new:
        read_board(folder)
    if reason := unwritable_reason(folder):
        raise SettingError(f"leaderboard={folder} cannot be written ({reason}); name another.")
    if is_new:
        Board(folder).save()
    (folder / RUNS).mkdir(exist_ok=True)
    lock = os.open(folder / RUNS, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise SettingError(
                f"leaderboard={folder} is being written by another process; wait for it, or name "
                "another folder."
            ) from error
        yield read_board(folder)  # read again under the lock
    finally:
        os.close(lock)


def read_board(folder: str | Path) -> Board:
    """Read the leaderboard in ``folder``.

    Raises:
        SettingError: ``folder`` holds no leaderboard.
    """
    folder = Path(folder)
    try:
        content = json.loads((folder / INDEX).read_text(encoding="utf-8"))
        if content["version"] != _VERSION:
            raise ValueError("another version")
        rows = {
            dataset: {name: Row(**row) for name, row in named.items()}
            for dataset, named in content["rows"].items()
        }
        return Board(folder, content["protocol"], content["data"], rows)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingError(
            f"leaderboard={folder} is no leaderboard: its {INDEX} cannot be read "
            f"({short_reason(error)}); name another folder, or one that is not there yet."
        ) from error


def _without_ranks(config: RunConfig, found: Mapping[str, Any]) -> str | None:
    """Why the protocol ``found`` does not give every target one rank; None if it does."""
    if config["cold_start"]:
        return (
            f"cold_start={config['cold_start']} gives a target another rank in each length of "
            "list; leave it out, or use seeds and result_file."
        )
    if not str(found["candidates"]).startswith("all "):
        return (
            f"eval_args: mode={found['candidates']} ranks sampled candidates, which reorders "
            "models; set it to full."
        )
    if not is_ranked(config["valid_metric"]):
        return (
            f"valid_metric={config['valid_metric']} does not follow from a target's rank; take "
            "NDCG@10 or another of Hit, Recall, NDCG, MRR, MAP, Precision."
        )
    return None
