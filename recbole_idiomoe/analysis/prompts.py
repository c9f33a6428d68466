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
    text = read_text("text", path, "in UTF-8")
    if not text.strip():
        raise DataError(f"--text={path} is empty; name a file with text in it.")
    return text


def read_text(setting: str, path: str, form: str) -> str:
    """Read the file of a setting; ``form`` completes "name a text file" in the error message.

    Raises:
        DataError: the file cannot be read, or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = short_reason(error)
        raise DataError(
            f"--{setting}={path} cannot be read ({reason}); name a text file {form}."
        ) from error
