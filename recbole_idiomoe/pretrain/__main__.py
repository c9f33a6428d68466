"""``python -m recbole_idiomoe.pretrain --text=FILES --out=FOLDER``."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from typing import Any, cast

from transformers import HfArgumentParser

from recbole_idiomoe.errors import IdiomoeError, SettingError
from recbole_idiomoe.pretrain.pipeline import pretrain
from recbole_idiomoe.pretrain.settings import PretrainSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a model as the arguments say; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("recbole_idiomoe").setLevel(logging.INFO)
    parser = HfArgumentParser(
        cast(Any, PretrainSettings),
        prog="python -m recbole_idiomoe.pretrain",
        description="Train a small decoder and its tokenizer from plain text.",
    )
    try:
        settings, unknown = parser.parse_args_into_dataclasses(given, return_remaining_strings=True)
        if unknown:
            raise SettingError(f"unknown setting {unknown[0]}; --help names them all.")
        pretrain(settings, command=given)
    except IdiomoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "interrupted; the same command goes on from its last checkpoint",
            file=sys.stderr,
        )
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
