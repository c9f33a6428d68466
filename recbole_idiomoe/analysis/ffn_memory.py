"""``ffn-memory``: the items and tokens that FFN neurons point to (paper, section 4.3, Figure 5)."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recbole_idiomoe.analysis.neurons import (
    NO_CATEGORY,
    Neurons,
    is_clustered,
    measure,
    references,
    summary,
    value_vectors,
)
from recbole_idiomoe.analysis.results import Analysis, Row
from recbole_idiomoe.analysis.runs import Run, open_runs, require_item_tokens
from recbole_idiomoe.analysis.settings import FfnMemorySettings
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.lm import decoder_layers
from recbole_idiomoe.lm.decoder import ffn_names

logger = logging.getLogger(__name__)

RANDOM = "random vectors"
RANDOM_NUMBER = 1000


@torch.no_grad()
def ffn_memory(folders: Sequence[Path], settings: FfnMemorySettings) -> Analysis:
    """Affinity, purity and clustered fraction of the neurons in every layer of the runs.

    Returns:
        Tables ``layers``, ``neurons`` (the chosen neurons with their neighbours) and, as a long
        table, ``all`` (every neuron).

    Raises:
        IdiomoeError: a folder is not a run with one token per item, items have no categories,
            ``k`` exceeds the catalogue, or a neuron does not exist.
    """
    wanted = _wanted(settings.neuron)
    analysis = Analysis(
        name="ffn-memory",
        title="FFN neurons as key-value memories (section 3.3)",
        settings=asdict(settings),
        tables={"layers": [], "neurons": []},
        notes=_notes(settings),
        long_tables={"all": []},
    )
    for run in open_runs(folders, settings):
        require_item_tokens(run)
        memory = _RunMemory(run, settings, analysis)
        memory.measure_all(wanted)
        analysis.notes.append(memory.note())
        analysis.add_run(run.about, run.catalog_lm.lm.device)
    return analysis


class _RunMemory:
    """Adds the rows of one run to the tables of ``analysis``.

    ``layers`` has rows for the experts of each layer, for each expert over all layers, and for
    random vectors; ``neurons`` the chosen neurons with their neighbours; ``all`` every neuron.
    """

    def __init__(self, run: Run, settings: FfnMemorySettings, analysis: Analysis) -> None:
        self.run, self.settings = run, settings
        self.layers, self.shown = analysis.tables["layers"], analysis.tables["neurons"]
        self.every = analysis.long_tables["all"]
        categories = run.categories(settings.category_field, settings.category_level)
        self.names = sorted(set(categories) - {""})
        number = {name: index for index, name in enumerate(self.names)}
        self.categories = torch.tensor([number.get(name, NO_CATEGORY) for name in categories])
        self.items, self.tokens = references(run.catalog_lm)

    def measure_all(self, wanted: Sequence[tuple[int, int]]) -> None:
        """Add all rows; ``wanted`` are the layers and neurons to show, by default the purest."""
        lm, tau = self.run.catalog_lm.lm, self.settings.tau
        blocks = list(zip(decoder_layers(lm.backbone), ffn_names(lm.backbone), strict=True))
        for layer, _ in wanted:
            if layer >= len(blocks):
                raise SettingError(
                    f"--neuron: {self.run.label} has layers 0 to {len(blocks) - 1}, not {layer}."
                )
        by_expert: dict[str, list[tuple[Row, Neurons]]] = defaultdict(list)
        for layer, (block, name) in enumerate(blocks):
            logger.info(f"{self.run.label}: layer {layer} of {len(blocks)}")
            for expert, values in value_vectors(block, name).items():
                place: Row = {"run": self.run.label, "expert": expert, "layer": layer}
                neurons = self._measured(values)
                self.layers.append(place | summary([neurons], tau))
                self.every.extend(place | row for row in self._each(neurons))
                by_expert[expert].append((place, neurons))
                for neuron in [neuron for at, neuron in wanted if at == layer]:
                    self.shown.extend(self._neighbours(place, neuron, neurons))
        for expert, found in by_expert.items():
            whole: Row = {"run": self.run.label, "expert": expert, "layer": None}
            self.layers.append(whole | summary([neurons for _, neurons in found], tau))
            if not wanted:
                place, neurons = max(found, key=lambda pair: float(_prominence(pair[1]).max()))
                neuron = int(_prominence(neurons).argmax())
                self.shown.extend(self._neighbours(place, neuron, neurons))
        nowhere: Row = {"run": self.run.label, "expert": RANDOM, "layer": None}
        size = RANDOM_NUMBER, lm.config.hidden_size
        random = torch.randn(size, generator=torch.Generator().manual_seed(0))
        self.layers.append(nowhere | summary([self._measured(random.to(lm.device))], tau))

    def note(self) -> str:
        """A note on the numbers of items and categories, and on the purity of random items."""
        counted = self.categories[self.items.ids].numpy()
        purity = _random_purity(counted, self.settings.k)
        share = float(is_clustered(torch.from_numpy(purity), self.settings.tau).double().mean())
        without = int((counted == NO_CATEGORY).sum())
        return (
            f"{self.run.label}: {len(counted):,} items of {len(self.names):,} categories "
            f"({without:,} items without), {len(self.tokens.ids):,} text tokens; "
            f"{self.settings.k} items drawn at random have purity {purity.mean():.4f}, "
            f"{share:.4f} of such draws are clustered."
        )

    def _measured(self, values: Tensor) -> Neurons:
        return measure(values, self.items, self.tokens, self.categories, self.settings.k)

    def _each(self, neurons: Neurons) -> Iterator[Row]:
        clustered = is_clustered(neurons.purity, self.settings.tau).int()
        columns = {
            "neuron": range(len(clustered)),
            "affinity": neurons.affinity.tolist(),
            "purity": neurons.purity.tolist(),
            "clustered": clustered.tolist(),
            "category": map(self._category, neurons.category.tolist()),
        }
        for row in zip(*columns.values(), strict=True):
            yield dict(zip(columns, row, strict=True))

    def _neighbours(self, place: Row, neuron: int, neurons: Neurons) -> Iterator[Row]:
        if neuron >= len(neurons.items):
            raise SettingError(
                f"--neuron={place['layer']}:{neuron}: the {place['expert']} there, of "
                f"{self.run.label}, has neurons 0 to {len(neurons.items) - 1}."
            )
        catalog, tokenizer = self.run.catalog_lm.catalog, self.run.catalog_lm.tokenizer
        near = (neurons.items, neurons.item_cosines, neurons.tokens, neurons.token_cosines)
        rows = zip(*(each[neuron].tolist() for each in near), strict=True)
        for rank, (item, cosine, token, token_cosine) in enumerate(rows, start=1):
            yield place | {
                "neuron": neuron,
                "rank": rank,
                "item": catalog.item_ids[item],
                "title": catalog.titles[item],
                "category": self._category(int(self.categories[item])),
                "cosine": cosine,
                "token": tokenizer.decode([token]),
                "token_cosine": token_cosine,
            }

    def _category(self, number: int) -> str:
        return "" if number == NO_CATEGORY else self.names[number]


def _prominence(neurons: Neurons) -> Tensor:
    """Purity (m,), with affinity as a tie-breaker, smaller than one of up to 256 neighbours."""
    return neurons.purity.nan_to_num(-1) + 1e-3 * neurons.affinity.nan_to_num()


def _notes(settings: FfnMemorySettings) -> list[str]:
    level = settings.category_level
    entry = "all entries" if level == 0 else "the last entry" if level < 0 else f"entry {level}"
    return [
        f"k={settings.k}, tau={settings.tau:g}. Affinity: median cosine of a value vector's k "
        "nearest items less that of its k nearest text tokens. Purity: the largest share of the k "
        f"items that are of one category ({entry} of its field). Clustered: share of neurons with "
        "a purity of at least tau. Layers and neurons count from 0.",
        f"{RANDOM}: {RANDOM_NUMBER:,} Gaussian vectors in place of neurons. Of more candidates "
        "the nearest k are nearer, and neighbouring items share categories whatever a neuron "
        "learned: what neurons have beyond these is their own.",
    ]


def _random_purity(categories: np.ndarray, k: int, draws: int = 2000) -> np.ndarray:
    """Purity (draws,) of random sets of ``k`` different items, from their categories (n,)."""
    rng = np.random.default_rng(0)
    largest = np.zeros(draws)
    for draw in range(draws):
        drawn = categories[rng.choice(len(categories), k, replace=False, shuffle=False)]
        drawn = drawn[drawn != NO_CATEGORY]
        largest[draw] = np.unique(drawn, return_counts=True)[1].max(initial=0)
    return largest / k


def _wanted(given: Sequence[str]) -> list[tuple[int, int]]:
    """Parse texts of the form ``LAYER:NEURON``."""
    pairs = []
    for text in given:
        layer, _, neuron = text.partition(":")
        if not (layer.isdecimal() and neuron.isdecimal()):
            raise SettingError(f"--neuron={text} is not of the form LAYER:NEURON, as 5:120.")
        pairs.append((int(layer), int(neuron)))
    return pairs
