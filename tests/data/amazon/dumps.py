"""Small dumps in the exact format of each year."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

YEARS = (2014, 2018, 2023)


def review(year: int, user: str, item: str, time: int) -> bytes:
    """A line of the dump of reviews; ``time`` in seconds."""
    if year == 2023:
        row: dict[str, Any] = {
            "rating": 5.0,
            "title": "Such a lovely scent",
            "text": 'It\'s "great"\nfor <br /> kids',
            "images": [],
            "asin": f"{item}V",  # a variant; the metadata are of the parent
            "parent_asin": item,
            "user_id": user,
            "timestamp": time * 1000 + 923,
            "helpful_vote": 0,
            "verified_purchase": True,
        }
    else:
        row = {
            "reviewerID": user,
            "asin": item,
            "reviewerName": 'J. "Jo" O\'Hara',
            "reviewText": "Don't {'use': this} \u00e9",
            "overall": 5.0,
            "summary": "ok",
            "unixReviewTime": time,
            "reviewTime": "01 30, 2014",
        }
        row |= {"helpful": [3, 4]} if year == 2014 else {"vote": "2", "verified": True, "style": {}}
    return json.dumps(row).encode() + b"\n"


def metadata(
    year: int,
    item: str,
    title: Any = "A toy",
    categories: Any = ("Toys & Games", "Puzzles"),
    brand: str = "Ravensburger",
) -> bytes:
    """A line of the dump of metadata."""
    paths = list(categories)
    if year == 2014:  # Python's repr, not JSON
        row: dict[str, Any] = {
            "asin": item,
            "description": 'Three Dr. Seuss\' "Puzzles"',
            "title": title,
            "price": 37.12,
            "salesRank": {"Toys & Games": 612379},
            "related": {"also_viewed": ["0075728680"]},
            "brand": brand,
            "categories": paths if paths and isinstance(paths[0], list) else [paths],
        }
        return repr(row).encode() + b"\n"
    row = {"title": title, "description": [], "price": "$3", "details": {"Date": "2013"}}
    if year == 2018:
        row |= {"category": paths, "brand": brand, "asin": item, "tech1": "", "also_buy": []}
        row |= {"main_cat": "Toys", "rank": [">#5 in Toys"], "similar_item": "", "fit": ""}
    else:
        row |= {"categories": paths, "store": brand, "parent_asin": item, "main_category": "Toys"}
        row |= {"bought_together": None, "videos": [], "average_rating": 4.2, "features": []}
    return json.dumps(row).encode() + b"\n"


def write(path: Path, lines: Iterable[bytes]) -> Path:
    """``path``, gzipped if its name says so."""
    content = b"".join(lines)
    path.write_bytes(gzip.compress(content, mtime=0) if path.suffix == ".gz" else content)
    return path


def block(users: int = 6, items: int = 5) -> list[tuple[str, str, int]]:
    """Every user with every item, users one after another, each in another order of time."""
    return [
        (f"A{user}USER", f"B{item:09d}", 1_400_000_000 + 86_400 * ((item * (user + 2)) % 7))
        for user in range(users)
        for item in range(items)
    ]


def pair(folder: Path, year: int, users: int = 6, items: int = 5) -> tuple[Path, Path]:
    """Dumps of reviews and metadata of a :func:`block`, named as the publishers name them."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = block(users, items)
    names = {2014: ("reviews_Toys_5.json.gz", "meta_Toys.json.gz")}
    names |= {2018: ("Toys_5.json.gz", "meta_Toys.json.gz")}
    reviews, about = names.get(year, ("Toys.jsonl.gz", "meta_Toys.jsonl.gz"))
    return (
        write(folder / reviews, (review(year, *row) for row in rows)),
        write(folder / about, (metadata(year, f"B{item:09d}") for item in range(items))),
    )
