"""Atomic files of a synthetic shop, as large as Amazon-2023 Books, from a seed.

    python benchmarks/synthetic_catalogue.py --data_path=DATA

The default size is the 5-core of Amazon-2023 Books, rounded: 800,000 users (the paper's Table 8:
776,370), 500,000 items (495,063) and 9.5 million reviews. As in a 5-core, every user has at least
five different items and every item five users. Popularity falls with an item's rank r as
1 / (r + 10)^0.8, and lengths of histories have a Pareto tail. Titles are as long as in amazon-toys
(median 6 words, 1 in 20 above 13, the longest near 100), with words of the bundled tokenizer and
invented names. An item has four nested categories. Users' items are random, so that only
popularity can be learned: the files are for measuring time and memory.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from transformers import AutoTokenizer

from recbole_idiomoe.base.files import atomic_new_folder
from recbole_idiomoe.lm.bundled import verified_folder

NAME = "synthetic-books"
USERS, ITEMS, INTERACTIONS = 800_000, 500_000, 9_500_000
CORE = 5
SETTINGS = {  # settings that read the files
    "load_col": {
        "inter": ["user_id", "item_id", "timestamp"],
        "item": ["item_id", "title", "categories"],
    },
    "seq_separator": "|",
    "user_inter_num_interval": f"[{CORE},inf)",
    "item_inter_num_interval": f"[{CORE},inf)",
    "item_text_fields": {"title": "title", "category": "categories"},
}

_FIRST, _LAST = 946_684_800_000, 1_694_000_000_000  # ms: from 2000 to September 2023
_LONGEST_HISTORY = 300  # in mean lengths beyond the core
_TAIL = 1.8  # of a Pareto distribution
_ID_LETTERS = np.array(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ234567"))
_ROWS = 1 << 18  # written at once
_WORDS_IN_TITLE, _SPREAD, _MOST_WORDS = 6.5, 0.55, 98
_NAMES, _NAME_SHARE = 60_000, 0.25
_KINDS = ("Stories", "History", "Essays", "Guides", "Reference", "Classics & Anthologies")
_AREAS = ("Travel", "Art & Photography", "Science", "Childhood", "Love", "War", "Food & Drink")
_SYLLABLES = ("ka", "lo", "min", "ra", "ven", "tor", "el", "is", "an", "do", "ber", "sha", "quin")


def write(
    folder: Path,
    users: int = USERS,
    items: int = ITEMS,
    interactions: int = INTERACTIONS,
    seed: int = 0,
) -> None:
    """Write the new data set ``folder`` atomically.

    Args:
        users: number of users.
        items: number of items.
        interactions: number of interactions, at least five for each user and item.

    Raises:
        ValueError: there are too few interactions, or too few items for them.
        FileExistsError: ``folder`` exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} is there already.")
    if interactions < CORE * max(users, items):
        raise ValueError(f"{interactions} interactions are not {CORE} a user and an item.")
    rng = np.random.default_rng(seed)
    user, item = draw_interactions(rng, users, items, interactions)
    time = _times(rng, user, users)
    order = np.lexsort((time, user))
    user, item, time = user[order], item[order], time[order]
    user_ids, item_ids = draw_ids(rng, users, 28, "A"), draw_ids(rng, items, 10, "B0")
    with atomic_new_folder(folder) as temporary:
        with open(temporary / f"{folder.name}.inter", "w", encoding="utf-8") as file:
            file.write("user_id:token\titem_id:token\ttimestamp:float\n")
            for start in range(0, interactions, _ROWS):
                rows = slice(start, start + _ROWS)
                named = user_ids[user[rows]].tolist(), item_ids[item[rows]].tolist()
                lines = zip(*named, map(str, time[rows].tolist()), strict=True)
                file.write("\n".join(map("\t".join, lines)) + "\n")
        with open(temporary / f"{folder.name}.item", "w", encoding="utf-8") as file:
            file.write("item_id:token\ttitle:token\tcategories:token_seq\n")
            texts = draw_titles(rng, items), draw_categories(rng, items)
            lines = zip(item_ids.tolist(), *texts, strict=True)
            file.writelines("\t".join(line) + "\n" for line in lines)


def draw_interactions(
    rng: np.random.Generator, users: int, items: int, interactions: int
) -> tuple[np.ndarray, np.ndarray]:
    """Users and items, both ``(interactions,)``, grouped by user and without repeated pairs."""
    likes = np.minimum(rng.pareto(_TAIL, users), _LONGEST_HISTORY / (_TAIL - 1))
    beyond = interactions - CORE * users
    likes = np.minimum(likes, likes.sum() * items / (8 * max(beyond, 1)))  # fewer than all items
    lengths = CORE + rng.multinomial(beyond, likes / likes.sum())
    popularity = (np.arange(items) + 10.0) ** -0.8
    counts = CORE + rng.multinomial(interactions - CORE * items, popularity / popularity.sum())
    user = np.repeat(np.arange(users), lengths)
    item = rng.permutation(np.repeat(np.arange(items), counts))
    for _ in range(1000):
        pairs = user * items + item
        order = np.argsort(pairs, kind="stable")
        again = order[1:][pairs[order][1:] == pairs[order][:-1]]
        if not len(again):
            return user, item
        # Swapping the item with a random row keeps the counts of users and items.
        for one, other in zip(again, rng.integers(interactions, size=len(again)), strict=True):
            item[one], item[other] = item[other], item[one]
    raise ValueError(f"{items} items are too few for {interactions} interactions.")


def draw_ids(rng: np.random.Generator, count: int, length: int, prefix: str) -> np.ndarray:
    """Distinct ids like Amazon's, of ``length`` characters: strings ``(count,)``."""
    letters = rng.integers(len(_ID_LETTERS), size=(count, length - len(prefix)))
    # The last letters encode the number of the id, so that ids are distinct.
    digits = 32 ** np.arange(4)[::-1]
    letters[:, -4:] = np.arange(count)[:, None] // digits % 32
    rows = np.ascontiguousarray(_ID_LETTERS[letters]).view(f"<U{letters.shape[1]}").ravel()
    return np.array([prefix + row for row in rows.tolist()], dtype=object)


def draw_titles(rng: np.random.Generator, count: int) -> list[str]:
    """Random titles of ``count`` items."""
    words, chances = _lexicon(rng)
    lengths = rng.lognormal(np.log(_WORDS_IN_TITLE), _SPREAD, count).round().astype(int)
    lengths = lengths.clip(1, _MOST_WORDS)
    drawn = words[rng.choice(len(words), size=lengths.sum(), p=chances)].tolist()
    ends = np.cumsum(lengths).tolist()
    return [" ".join(drawn[end - n : end]) for n, end in zip(lengths.tolist(), ends, strict=True)]


def _lexicon(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Words of the bundled tokenizer and invented names, and their probabilities in a title."""
    tokenizer = AutoTokenizer.from_pretrained(verified_folder(weights=False))
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda entry: entry[1])
    known = [word[1:].title() for word, _ in vocabulary if re.fullmatch("Ġ[a-z]{2,}", word)]
    drawn = rng.integers(len(_SYLLABLES), size=(_NAMES, 4)).tolist()
    names = sorted({"".join(_SYLLABLES[i] for i in row).title() for row in drawn})
    chances = [(1 - _NAME_SHARE) * _zipf(len(known)), _NAME_SHARE * _zipf(len(names))]
    return np.array(known + names, dtype=object), np.concatenate(chances)


def _zipf(count: int) -> np.ndarray:
    falling = 1 / (np.arange(count) + 3.0)
    return falling / falling.sum()


def draw_categories(rng: np.random.Generator, count: int) -> Iterator[str]:
    """Four nested categories for each item, the first of which is the whole shop."""
    topics = [f"{kind} of {area}" for kind in _KINDS for area in _AREAS]
    topic = rng.choice(len(topics), count, p=_zipf(len(topics))).tolist()
    shelf, board = (rng.integers(most, size=count).tolist() for most in (20, 6))
    for one, two, three in zip(topic, shelf, board, strict=True):
        name = topics[one]
        yield f"Books|{name}|{name}, Shelf {two + 1}|Shelf {two + 1}, Board {three + 1}"


def _times(rng: np.random.Generator, user: np.ndarray, users: int) -> np.ndarray:
    """Times of the interactions in ms, from a random start of each user to a common end."""
    begins = rng.integers(_FIRST, _LAST, size=users)
    return rng.integers(begins[user], _LAST)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data_path", type=Path, required=True, help="where its folder goes")
    parser.add_argument("--name", default=NAME, help=f"of the folder (default: {NAME})")
    parser.add_argument("--users", type=int, default=USERS)
    parser.add_argument("--items", type=int, default=ITEMS)
    parser.add_argument("--interactions", type=int, default=INTERACTIONS)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    folder = given.data_path / given.name
    write(folder, given.users, given.items, given.interactions, given.seed)
    print(folder)


if __name__ == "__main__":
    main()
