"""Texts to measure on: a file, or by default prompts in several registers of English."""

from __future__ import annotations

from pathlib import Path

from recbole_idiomoe.base.errors import DataError, short_reason

PROMPTS = Path(__file__).with_name("prompts.txt").read_text(encoding="utf-8").splitlines()


def text_file(path: str) -> str:
    """Read the file of ``--text``.

    Raises:
        DataError: the file cannot be read, is not UTF-8, or is empty.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"--text={path} cannot be read ({short_reason(error)}); name a text file in UTF-8."
        ) from error
    if not text.strip():
        raise DataError(f"--text={path} is empty; name a file with text in it.")
    return text
