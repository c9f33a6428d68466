"""The command line: ``recbole-idiomoe --model=IDIOMoE --dataset=ml-100k --key=value``.

Torch is imported only when a run starts, so that ``--help`` and the lists answer at once.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from recbole_idiomoe.base import yaml_files
from recbole_idiomoe.base.command_line import run_program
from recbole_idiomoe.base.errors import DiskFullError, SettingError, error_line
from recbole_idiomoe.base.files import DISK_FULL_ERRNOS
from recbole_idiomoe.config.help import settings_help, text_settings
from recbole_idiomoe.data.names import list_datasets
from recbole_idiomoe.models import registry

_LISTINGS = ("help", "list_models", "list_datasets")
# YAML would make a number or a date of some names and paths.
_TEXTS = {"model", "dataset", "config_files", "result_file", "resume", "leaderboard"}
_TEXTS |= {"data_path", "checkpoint_dir", "baseline"}

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
                          rows of a table, each with its own settings, which may
                          include the model; they replace the settings of all
                          rows (see properties/ablations/)
  --baseline=NAME         the row that the others are compared with (the first)
  --tune=N                search settings instead of testing: N trials of every
                          model on every data set, its default settings first,
                          chosen on validation (needs optuna; see --tuned)
  --leaderboard=FOLDER    run what is not there yet, keep every run there, and
                          write tables, statistics and a page with
                          pictures; later commands add models, data sets and
                          seeds; to go on after an interruption, repeat the
                          command
  --jobs=N                runs of a table at a time, in processes that share the
                          machine (1)
  --list_models           names that --model takes
  --list_datasets         names that --dataset takes
  --help                  this text

Values are written as in YAML; a setting without a value is True. RecBole's
settings (epochs, learning_rate, train_batch_size, stopping_step, topk, metrics,
seed, data_path, checkpoint_dir, gpu_id ...) are described in its documentation
under "Config Settings". All other settings are below, with the section of the
IDIOMoE paper, or of the paper of the method in the heading, in brackets.
"""


@dataclass
class Arguments:
    """What the command line asks for: a listing, a search, or the run that ``api.run`` takes."""

    listings: list[str]
    models: list[str] | None
    datasets: list[str] | None
    config_files: list[str]
    result_file: str | None
    resume: str | None
    leaderboard: str | None
    jobs: int
    tune: int | None
    settings: dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see :func:`run_program`.

    If a launcher started several processes, only the first one prints, except for errors.
    """
    words = sys.argv[1:] if arguments is None else arguments
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return run_program(lambda: _run(words, print))
    # Without this torch prints performance warnings in every process.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from recbole_idiomoe.base import distributed

    def print_once(text: str) -> None:
        if distributed.is_main():
            print(text)

    def print_error_once(line: str, **options: Any) -> None:
        if distributed.is_first_to_say(line):
            print(line, **options)

    return distributed.as_one(
        lambda: run_program(lambda: _run(words, print_once), print_error_once)
    )


def _run(words: Sequence[str], answer: Callable[[str], None]) -> int:
    """Do what ``words`` ask for, pass the text to ``answer``, and return the exit code."""
    try:
        answer(_answer(parse_arguments(words)))
        return 0
    except OSError as error:  # from a log of another library, for example
        if error.errno not in DISK_FULL_ERRNOS:
            raise
        raise DiskFullError(f"the disk is full ({error}); make room and try again.") from error
    except (MemoryError, RuntimeError) as error:
        if "shared memory" in str(error):  # of torch's loader workers, in a container for example
            raise SettingError(
                "the shared memory of this machine (/dev/shm) is too small for loader workers; "
                "set worker to 0, or give the machine more."
            ) from error
        if not _is_out_of_memory(error):
            raise
        print(
            f"error: memory ran out ({error_line(error):.200}); lower train_batch_size, "
            "eval_batch_size, max_batch_tokens or MAX_ITEM_LIST_LENGTH.",
            file=sys.stderr,
        )
        return 2


def _answer(asked: Arguments) -> str:
    """The text that the command line asks for; most take a run to find."""
    if "help" in asked.listings:
        return f"{_USAGE}\n{settings_help(80)}"
    if "list_models" in asked.listings:
        return "\n".join([*registry.MODELS, *registry.sequential_models()])
    if "list_datasets" in asked.listings:
        return "\n".join(list_datasets())
    what = (asked.models, asked.datasets, asked.config_files, asked.settings)
    if asked.tune is None:
        from recbole_idiomoe.api import run
        from recbole_idiomoe.report.tables import table

        where = {name: getattr(asked, name) for name in ("result_file", "resume", "leaderboard")}
        return table(run(*what, **where, jobs=asked.jobs))
    if asked.result_file or asked.resume or asked.leaderboard or asked.jobs != 1:
        raise SettingError(
            "--tune goes without result_file, resume, leaderboard and jobs: its trials are kept in "
            "the folder that --tuned names, one is run at a time, and the same command goes on."
        )
    from recbole_idiomoe.tuning import table as trial_table
    from recbole_idiomoe.tuning import tune

    return trial_table(tune(*what, trials=asked.tune))


def _is_out_of_memory(error: Exception) -> bool:
    """Whether numpy, or torch on a CPU or a GPU, could not get memory; torch has no one class."""
    messages = ("can't allocate memory", "out of memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in messages)


def parse_arguments(arguments: Sequence[str]) -> Arguments:
    """Read ``--key=value``, ``--key value`` and ``--key``, which means True; ``-h`` is help.

    Raises:
        SettingError: a word without a key, a key with two different values, a missing value, or a
            model that cannot be run here.
    """
    values: dict[str, Any] = {}
    for key, value in _pairs(arguments):
        if key in values and values[key] != value:
            raise SettingError(f"--{key} is given twice, as {values[key]!r} and {value!r}.")
        values[key] = value

    def text(key: str) -> str | None:
        value = values.pop(key, None)
        if value is not None and (not isinstance(value, str) or not value.strip(", ")):
            raise SettingError(f"--{key} needs a value: --{key}=...")
        return value

    def names(key: str) -> list[str] | None:
        given = text(key)
        return list(dict.fromkeys(re.split(r"[,\s]+", given.strip(", ")))) if given else None

    parsed = Arguments(
        listings=[key for key in _LISTINGS if values.pop(key, False)],
        models=names("model"),
        datasets=names("dataset"),
        config_files=names("config_files") or [],
        result_file=text("result_file"),
        resume=text("resume"),
        leaderboard=text("leaderboard"),
        jobs=values.pop("jobs", 1),
        tune=values.pop("tune", None),
        settings=values,
    )
    for model in parsed.models or []:
        registry.check_model(model)
    return parsed


def parse_value(text: str) -> Any:
    """The value of ``text`` as YAML, which is never run as code.

    Text that is not YAML, as ``[5,inf)``, stays text. So does text that YAML reads as a mapping or
    a list although it has no brackets, as ``a: b``. ``None`` is null, as in RecBole's examples.
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
    texts, texts_or_null = text_settings()
    rest = ["--help" if word == "-h" else word for word in arguments]
    for word in rest:
        if not _is_text(word):
            raise SettingError(
                f"{word!r} is not in the encoding of file names here, "
                f"{sys.getfilesystemencoding()}; set PYTHONUTF8=1, or rename the file."
            )
    while rest:
        word = rest.pop(0)
        key, equals, text = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not key:
            raise SettingError(
                f"{word!r} belongs to no setting; settings are given as --key=value."
            )
        if not equals:
            if key in _LISTINGS or not rest or rest[0].startswith("--"):
                yield key, True
                continue
            text = rest.pop(0)
        value = text if key in _TEXTS | texts else parse_value(text)
        yield key, text if key in texts_or_null and value is not None else value


def _is_text(word: str) -> bool:
    """Whether ``word`` has no bytes that Python could not decode."""
    try:
        word.encode()
    except UnicodeEncodeError:
        return False
    return True
