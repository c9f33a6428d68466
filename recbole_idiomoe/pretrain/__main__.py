"""``python -m recbole_idiomoe.pretrain --text=FILES --out=FOLDER``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, cast

from transformers import HfArgumentParser

from recbole_idiomoe.errors import IdiomoeError
from recbole_idiomoe.pretrain.pipeline import pretrain
from recbole_idiomoe.pretrain.settings import PretrainSettings


def main(arguments: Sequence[str] | None = None) -> int:
    """Train a model as the arguments say; the exit status."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    parser = HfArgumentParser(
        cast(Any, PretrainSettings),
        prog="python -m recbole_idiomoe.pretrain",
        description="Train a small decoder and its tokenizer from plain text.",
    )
    try:
        (settings,) = parser.parse_args_into_dataclasses(given)
        pretrain(settings, command=given)
    except IdiomoeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
