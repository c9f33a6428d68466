"""What a conversion needs, as a process of its own: 10 million reviews in less than 4 GB."""

import gzip
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.data.amazon.dumps import metadata, review

MEASURE = (
    "import resource, sys; from recbole_idiomoe.data.amazon.__main__ import main;"
    "assert main(sys.argv[1:]) == 0;"
    "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
)
BUDGET = 4e9
REVIEWS = 10_000_000


def peak(folder: Path, reviews: int, new_users: float) -> float:
    """Bytes of memory, at its highest, of the conversion of a dump of 2023.

    ``new_users`` is the share of reviews whose user has no other; the rest have ten each.
    """
    folder.mkdir()
    generator = random.Random(5)
    others = int(reviews * (1 - new_users) / 10)
    items = max(reviews // 18, 200)  # as there are for each review in Toys and Games of 2023
    with gzip.open(folder / "r.jsonl.gz", "wb", compresslevel=1) as file:
        for row in range(reviews):
            new = generator.random() < new_users
            user, item = (row, items) if new else (generator.randrange(others), 200)
            name = f"AGKHLEW2SOWHNMFQI{'N' if new else 'O'}{user:010d}"  # as long as theirs
            file.write(review(2023, name, f"B{generator.randrange(item):09d}", row))
    with gzip.open(folder / "m.jsonl.gz", "wb", compresslevel=1) as file:
        file.writelines(metadata(2023, f"B{item:09d}", f"Toy {item}") for item in range(items))
    files = [f"--reviews={folder}/r.jsonl.gz", f"--metadata={folder}/m.jsonl.gz"]
    options = ["--dataset=x", f"--data_path={folder}", *files]
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, *options], capture_output=True, text=True, check=True
    )
    print(done.stdout, f"{time.perf_counter() - began:.0f} s")
    return float(done.stdout.split()[-1]) * (1 if sys.platform == "darwin" else 1024)


@pytest.mark.slow
@pytest.mark.parametrize("new_users", [0.45, 0.95])
def test_ten_million_reviews_fit(new_users: float, tmp_path: Path) -> None:
    """From the slope between two sizes; 0.45 has the users of Toys and Games of 2023."""
    sizes = 200_000, 1_000_000
    small, large = (peak(tmp_path / str(n), n, new_users) for n in sizes)
    slope = (large - small) / (sizes[1] - sizes[0])
    total = large + slope * (REVIEWS - sizes[1])
    print(f"{large / 1e6:.0f} MB at a million, {slope:.0f} bytes a review, {total / 1e9:.2f} GB")
    assert total < BUDGET
