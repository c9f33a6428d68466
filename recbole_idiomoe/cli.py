"""The command line: ``recbole-idiomoe --model=IDIOMoE --dataset=ml-100k --key=value``.

Light until a run starts: ``--help`` and the lists must not wait for torch.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.base.command_line import run_program
from recbole_idiomoe.base.errors import DiskFullError, SettingError, error_line
from recbole_idiomoe.base.files import DISK_FULL_ERRNOS
from recbole_idiomoe.config.help import settings_help, text_settings
from recbole_idiomoe.data.names import list_datasets
from recbole_idiomoe.models import registry

WIDTH = 80
_FLAGS = ("help", "list_models", "list_datasets")

_USAGE = """\
usage: recbole-idiomoe [--model=NAME,NAME] [--dataset=NAME,NAME]
                       [--config_files="FILE FILE"] [--setting=value ...]

Trains models on data sets and prints a table of their test results, all under
one protocol. Without arguments: IDIOMoE on ml-100k.

  --model=NAME,NAME       models to run (IDIOMoE)
  --dataset=NAME,NAME     data sets to run them on (ml-100k)
  --config_files=FILES    YAML files or result files of earlier runs, separated
                          by spaces or commas; a later one wins; they may name
                          the model and the data set too
  --result_file=PATH      write results there as JSON; finished runs of a table
                          are kept beside it until all are, so that the same
                          command goes on after a failure
  --resume=FOLDER         go on with an unfinished run
  --seeds=N               repeat every run with the seeds seed, seed+1, ... and
                          print means
  --variants={NAME: {SETTING: VALUE, ...}, ...}
                          rows of a table, each with settings of its own, model
                          included; all other settings are for all rows, and a
                          row's own win over them (see properties/ablations/)
  --baseline=NAME         the row that the others are compared with (the first)
  --tune=N                search settings instead of testing: N trials of every
                          model on every data set, its default settings first,
                          chosen on validation (needs optuna; see --tuned)
  --leaderboard=FOLDER    run what is not there yet, keep every run there for
                          good, and write tables, statistics and a page with
                          pictures; later commands add models, data sets and
                          seeds, and one that was cut off is typed again
  --jobs=N                runs of a table at a time, in processes that share the
                          machine (1)
  --list_models           names that --model takes
  --list_datasets         names that --dataset takes
  --help                  this text

A value is written as in YAML; a setting without one is True. RecBole's settings
(epochs, learning_rate, train_batch_size, stopping_step, topk, metrics, seed,
data_path, checkpoint_dir, gpu_id ...) are described in RecBole's documentation
under "Config Settings". The others are below; in brackets stands the section of
the paper that describes it: IDIOMoE's, or that of the method in the heading.
"""


@dataclass
class Arguments:
    """What the command line asks for."""

    models: list[str] | None = None
    datasets: list[str] | None = None
    config_files: list[str] = field(default_factory=list)
    result_file: str | None = None
    resume: str | None = None
    leaderboard: str | None = None
    jobs: int = 1
    tune: int | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    flags: set[str] = field(default_factory=set)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code, as :func:`run_program` gives it.

    Of several processes that a launcher started, the first prints what is not an error.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return run_program(lambda: _main(words, print))
    # Torch says in every process what may slow it down.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from recbole_idiomoe.base import distributed

    def answer(text: str, **options: Any) -> None:
        if distributed.is_main():
            print(text, **options)

    def complain(line: str, **options: Any) -> None:
        if distributed.is_first_to_say(line):
            print(line, **options)

    return distributed.as_one(lambda: run_program(lambda: _main(words, answer), complain))


def _main(arguments: Sequence[str], answer: Callable[..., None]) -> int:
    """The exit code.

    Args:
        answer: prints what was asked for.
    """
    try:
        parsed = parse_arguments(arguments)
        if parsed.flags:
            answer(_answer(parsed.flags))
            return 0
        if parsed.tune is not None:
            answer(_tuned(parsed, parsed.tune))
            return 0
        from recbole_idiomoe.api import run
        from recbole_idiomoe.report.tables import table

        results = run(
            parsed.models,
            parsed.datasets,
            parsed.config_files,
            parsed.settings,
            result_file=parsed.result_file,
            resume=parsed.resume,
            leaderboard=parsed.leaderboard,
            jobs=parsed.jobs,
        )
        answer(table(results))
        return 0
    except OSError as error:  # such as of a log, which others write
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        raise DiskFullError(f"the disk is full ({error}); make room and try again.") from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(
            f"error: memory ran out ({error_line(error):.200}); lower train_batch_size, "
            "eval_batch_size, max_batch_tokens or MAX_ITEM_LIST_LENGTH.",
            file=sys.stderr,
        )
        return 2


def _is_out_of_memory(error: Exception) -> bool:
    """numpy's, torch's of a CPU, or a GPU's; torch has one class for the last alone."""
    said = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(words in str(error) for words in said)


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Read ``--key=value``, ``--key value`` and bare ``--key``, which means True; ``-h`` is help.

    Raises:
        SettingError: a word that belongs to no key, a key with two different values,
            a key of our own without one, or a model that cannot be run here.
    """
    values: dict[str, Any] = {}
    for key, value in _pairs(arguments):
        if key in values and values[key] != value:
            raise SettingError(f"--{key} is given twice, as {values[key]!r} and {value!r}.")
        values[key] = value
    parsed = Arguments(flags={key for key in _FLAGS if values.pop(key, False)})
    for key in ("result_file", "resume", "leaderboard"):
        if key in values:
            setattr(parsed, key, _text(key, values.pop(key)))
    parsed.jobs = values.pop("jobs", 1)
    parsed.tune = values.pop("tune", None)
    for key, name in _LISTS.items():
        if key in values:
            setattr(parsed, name, _names(key, values.pop(key)))
    for model in parsed.models or []:
        registry.check_model(model)
    parsed.settings = values
    return parsed


def help_text() -> str:
    """What ``--help`` prints, at most 80 columns wide."""
    return f"{_USAGE}\n{settings_help(WIDTH)}"


def parse_value(text: str) -> Any:
    """The value that ``text`` stands for, read as YAML and never run.

    Text that is not YAML is itself, as ``[5,inf)``; so is text with a colon or a dash
    that YAML would take for a mapping or a list, unless it has brackets. ``None`` is
    null, as users of RecBole write it.
    """
    if text in ("", "None"):
        return text if text == "" else None
    try:
        value = yaml_files.parse(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, dict | list):
        return value if text.lstrip().startswith(("{", "[")) else text
    return value if value is None or isinstance(value, str | int | float | bool) else text


def _pairs(arguments: Sequence[str]) -> Iterator[tuple[str, Any]]:
    texts = text_settings()
    rest = ["--help" if word == "-h" else word for word in arguments]
    while rest:
        word = rest.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise SettingError(
                f"{word!r} belongs to no setting; settings are given as --key=value."
            )
        if equals:
            yield key, _typed(key, text, texts)
        elif key not in _FLAGS and rest and not rest[0].startswith("--"):
            yield key, _typed(key, rest.pop(0), texts)
        else:
            yield key, True


def _typed(key: str, text: str, texts: tuple[set[str], set[str]]) -> Any:
    """``text`` itself for names, paths and sentences; YAML would make a number of some."""
    always, or_null = texts
    value = text if key in _TEXTS | always else parse_value(text)
    return text if key in or_null and value is not None else value


def _names(key: str, value: Any) -> list[str]:
    names = re.split(r"[,\s]+", _text(key, value).strip(", "))
    return list(dict.fromkeys(names))


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip(", "):
        raise SettingError(f"--{key} needs a value: --{key}=...")
    return value


def _answer(flags: set[str]) -> str:
    if "help" in flags:
        return help_text()
    if "list_models" in flags:
        return "\n".join([*registry.MODELS, *registry.sequential_models()])
    return "\n".join(list_datasets())


def _tuned(parsed: Arguments, trials: int) -> str:
    if parsed.result_file or parsed.resume or parsed.leaderboard or parsed.jobs != 1:
        raise SettingError(
            "--tune goes without result_file, resume, leaderboard and jobs: its trials are kept in "
            "the folder that --tuned names, one is run at a time, and the same command goes on."
        )
    from recbole_idiomoe.tuning import table, tune

    return table(
        tune(
            parsed.models,
            parsed.datasets,
            parsed.config_files,
            parsed.settings,
            trials=trials,
        )
    )


_LISTS = {"model": "models", "dataset": "datasets", "config_files": "config_files"}
_TEXTS = {
    *_LISTS,
    "result_file",
    "resume",
    "leaderboard",
    "data_path",
    "checkpoint_dir",
    "baseline",
}
