"""Texts to measure on: a file, or by default prompts in several registers of English."""

from __future__ import annotations

from pathlib import Path

from recbole_idiomoe.base.errors import DataError, short_reason

PROMPTS = (
    "The old harbour was quiet in the morning. Two men mended nets on the wall, and a dog slept "
    "between them until the first boat came in.",
    "To make the dough, mix the flour with the salt, add warm water a little at a time, and knead "
    "it for ten minutes. Let it rest under a cloth for an hour.",
    "The committee met on Tuesday and agreed on three points: the budget will stay as it is, the "
    "old building will be sold, and a new chair will be chosen in May.",
    "Water boils at a lower temperature on a mountain, because the air presses on it less. For the "
    "same reason an egg takes longer to cook there.",
    "I bought this lamp for my daughter's desk. It is bright, it does not get hot, and the arm "
    "stays where you put it. The switch, however, is hard to find in the dark.",
    "Dear Anna, thank you for your letter. We were glad to hear that you arrived safely and that "
    "the new house is as large as you had hoped.",
    "The river rises in the hills north of the town, runs through two lakes, and reaches the sea "
    "after about ninety miles. In spring it often floods the lower fields.",
    "She asked him whether he had seen the film. He said that he had, twice, and that the second "
    "time he had understood why the brother never came back.",
    "A list that is sorted can be searched by halves: look at the middle entry, keep the half in "
    "which the wanted one must be, and look at the middle of that.",
    "The king had three sons. The eldest was proud, the second was clever, and the youngest was "
    "neither, so that nobody at court paid him any attention.",
    "Prices rose by two per cent last year, less than in the year before. Rents rose most, and "
    "bread, which had become dear, was a little cheaper again.",
    "If the engine does not start, check first that there is fuel, then that the battery holds its "
    "charge. Only then take out the plugs and see whether they are wet.",
)


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
