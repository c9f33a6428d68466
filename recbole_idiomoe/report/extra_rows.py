"""Extra rows and notes of tables: mixes with a counting model, change in language, seeds.

:mod:`recbole_idiomoe.protocol.mixing` makes a result's ``mix``,
:mod:`recbole_idiomoe.protocol.language` its ``language``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from recbole_idiomoe.report.result_files import Result

NLL_CHANGE = "ΔNLL"
"""Title of the change of a text's likelihood by training; see the setting ``language_file``."""

_Listed = defaultdict[str, defaultdict[str, list[str]]]


def with_mixes(results: Sequence[Result], named: str = "model") -> list[Result]:
    """``results``, each followed by its mix as another result; ``named`` is the key of names."""
    every: list[Result] = []
    for result in results:
        every.append(result)
        if mix := mix_of(result):
            every.append({**mix, named: f"{result[named]} + {mix['with']}"})
    return every


def mix_of(result: Result) -> dict[str, Any] | None:
    """The mix of ``result`` as a result, or None. Only a mix has the key ``weight``."""
    if not (mix := result.get("mix")):
        return None
    return {k: v for k, v in result.items() if k != "mix"} | mix | {"learning_curve": []}


def mix_notes(results: Sequence[Result], chosen_by: str, named: str = "model") -> list[str]:
    """Notes that explain the mixes among ``results`` and list their weights by seed."""
    weights: _Listed = defaultdict(lambda: defaultdict(list))
    for result in results:
        if "weight" in result:
            counter = result["with"]
            name = result[named].removesuffix(f" + {counter}")
            weights[counter][name].append(f"{result['weight']:g}")
    return [
        f"A row + {counter} is (1 - w) softmax(scores) + w (its counts / their sum), the share of "
        "counts also where the model counts; nothing is trained for it. w, chosen by "
        f"{chosen_by} on validation: {_listed(found)}."
        for counter, found in weights.items()
    ]


def _listed(values: Mapping[str, Sequence[str]]) -> str:
    return "; ".join(f"{name} {', '.join(found)}" for name, found in values.items())


def language_notes(runs: Sequence[Result], named: str = "model", values: bool = True) -> list[str]:
    """Notes on :data:`NLL_CHANGE`, one for each text and tokenizer, with all values if wanted."""
    changes: _Listed = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if (found := run.get("language")) and "weight" not in run:
            about = (
                f"nats a token on {found['file']}, of the trained model on text alone less those "
                f"of its untouched backbone ({found['tokens']:,} tokens of {found['tokenizer']}'s "
                f"tokenizer, windows of {found['context']} that overlap by half)"
            )
            changes[about][run[named]].append(nll_change(found["nll_change"]))
    if values:
        return [f"{NLL_CHANGE}, {about}: {_listed(rows)}." for about, rows in changes.items()]
    of = [f" of {', '.join(rows)}" if len(changes) > 1 else "" for rows in changes.values()]
    return [f"{NLL_CHANGE}{whose}: {about}." for whose, about in zip(of, changes, strict=True)]


def trained_notes(runs: Sequence[Result], named: str = "model") -> list[str]:
    """A note on what was trained of language models; results of earlier versions do not say."""
    rows: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        if (trained := run.get("trained")) and run[named] not in rows[trained]:
            rows[trained] += [run[named]] if "weight" not in run else []
    listed = (f"{trained}: {', '.join(names)}" for trained, names in rows.items())
    return [f"Language models, {'; '.join(listed)}."] if rows else []


def nll_change(value: float) -> str:
    """A change of NLL with four decimals, or ``0`` if nothing changed at all."""
    return f"{value:+.4f}" if value else "0"


def unable_note(names: Sequence[str]) -> str:
    """A note on the models that cannot rank unseen items."""
    listed = ", ".join(dict.fromkeys(names))
    return f"Unseen items are no candidates of a model that cannot rank them: {listed}."


def same_with_any_seed(runs: Sequence[Result], tested: str) -> bool:
    """Whether a row's model is deterministic: it has no parameters, and its runs agree.

    With a cold start the seed also draws the data, so that runs of the same model may differ.
    ``tested`` is the key of a run's test metrics.
    """
    first = runs[0]
    return not first["parameters"]["total"] and all(run[tested] == first[tested] for run in runs)


def seed_notes(seeds: Mapping[str, int], same: Sequence[str]) -> list[str]:
    """Notes on the number of runs of each row, and on the deterministic rows (``same``)."""
    counts = sorted({number for name, number in seeds.items() if name not in same})
    over = " to ".join(map(str, dict.fromkeys((*counts[:1], *counts[-1:]))))
    notes = [f"Mean ± standard deviation over {over} seeds."] if counts else []
    if counts == [1]:
        return ["One seed."]
    if same:
        notes.append(f"The same with any seed, as nothing is drawn by chance: {', '.join(same)}.")
    return notes
