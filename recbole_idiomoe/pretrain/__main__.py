"""``python -m recbole_idiomoe.pretrain --text=FILES --out=FOLDER``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any, cast

from transformers import HfArgumentParser

from recbole_idiomoe.base.command_line import Parser, run_program
from recbole_idiomoe.base.errors import SettingError
from recbole_idiomoe.pretrain.pipeline import pretrain
from recbole_idiomoe.pretrain.settings import PretrainSettings


class _Parser(Parser, HfArgumentParser):
    """Parses settings into a dataclass and reports errors in one line."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a model with the settings in the arguments; returns the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("recbole_idiomoe").setLevel(logging.INFO)
    return run_program(
        lambda: _pretrain(given),
        interrupted="interrupted; the same command goes on from its last checkpoint",
    )


def _pretrain(given: list[str]) -> None:
    parser = _Parser(
        cast(Any, PretrainSettings),
        prog="python -m recbole_idiomoe.pretrain",
        description="Train a small decoder and its tokenizer from plain text.",
    )
    settings, unknown = parser.parse_args_into_dataclasses(given, return_remaining_strings=True)
    if unknown:
        raise SettingError(f"unknown setting {unknown[0]}; --help names them all.")
    pretrain(settings, command=given)


if __name__ == "__main__":
    sys.exit(main())
