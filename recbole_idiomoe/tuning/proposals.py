"""Proposals of settings by optuna's TPE, computed anew for every trial.

A proposal depends only on the earlier trials and the seed, so that an interrupted search resumes
without a difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from recbole_idiomoe.base.errors import MissingLibraryError
from recbole_idiomoe.tuning.space import SearchSpace


def load_optuna() -> Any:
    """Import optuna and silence its log.

    Raises:
        MissingLibraryError: optuna is not installed.
    """
    try:
        import optuna
    except ImportError as error:
        raise MissingLibraryError("--tune needs optuna: pip install optuna") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def propose(
    space: SearchSpace,
    tried: Sequence[tuple[Mapping[str, Any], float | None]],
    seed: int,
    bigger: bool,
) -> dict[str, Any]:
    """Propose a value for every setting of ``space``.

    Args:
        space: the search space.
        tried: settings and value of all earlier trials. A failed trial has the value None and
            counts as the worst value. Settings outside ``space``, as defaults may be, are ignored.
        seed: seed of the search; it is combined with the number of the trial.
        bigger: whether a bigger value is better.

    Raises:
        MissingLibraryError: optuna is not installed.
    """
    optuna = load_optuna()
    entries = {name: _distribution(optuna, entry) for name, entry in space.entries.items()}
    (own_seed,) = np.random.SeedSequence([seed, len(tried)]).generate_state(1)
    study = optuna.create_study(
        direction="maximize" if bigger else "minimize",
        sampler=optuna.samplers.TPESampler(seed=int(own_seed)),
    )
    values = [value for _, value in tried if value is not None]
    worst = (min if bigger else max)(values)
    for settings, value in tried:
        with suppress(ValueError):  # from optuna, for settings outside the space
            study.add_trial(
                optuna.trial.create_trial(
                    params=dict(settings),
                    distributions=entries,
                    value=worst if value is None else value,
                )
            )
    proposed: dict[str, Any] = study.ask(entries).params
    return proposed


def _distribution(optuna: Any, entry: Mapping[str, Any]) -> Any:
    kinds = optuna.distributions
    if "choices" in entry:
        return kinds.CategoricalDistribution(entry["choices"])
    low, high, step = entry["low"], entry["high"], entry.get("step")
    log = entry.get("log", False)
    if all(isinstance(number, int | None) for number in (low, high, step)):
        return kinds.IntDistribution(low, high, log=log, step=step or 1)
    return kinds.FloatDistribution(low, high, log=log, step=step)
