"""The text of items as the ``.item`` file has it.

RecBole replaces a missing number by the mean of its column, keeps numbers as float32 and splits
words at ``seq_separator``. The language model reads what the file says instead.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from recbole_idiomoe.data.atomic_files import AtomicFile

if TYPE_CHECKING:
    from recbole.data.dataset import Dataset


def item_entries(dataset: Dataset, columns: Sequence[str]) -> dict[str, list[list[str]]]:
    """The entries of every item in ``columns`` of the ``.item`` file, a list per catalogue row.

    A column of type ``token_seq`` or ``float_seq`` has several entries if ``seq_separator`` is not
    a blank; all others have one. An item has none where its value is missing, which is a text that
    pandas reads as missing (such as an empty one, ``NA`` or ``nan``), or where it has no row.
    """
    config = dataset.config
    path = Path(dataset.dataset_path) / f"{dataset.dataset_name}.item"
    kinds = AtomicFile(path, config["field_separator"], config["encoding"]).columns
    table = pd.read_csv(
        path,
        sep=config["field_separator"],
        names=list(kinds),
        header=0,
        usecols=list({dataset.iid_field, *columns}),
        dtype=str,
        encoding=config["encoding"],
        quoting=csv.QUOTE_NONE,
        engine="c" if len(config["field_separator"]) == 1 else "python",
    )
    table = table.drop_duplicates(dataset.iid_field).set_index(dataset.iid_field, drop=False)
    table = table.reindex([str(name) for name in dataset.field2id_token[dataset.iid_field]])
    table = table.fillna("")
    separator = config["seq_separator"]
    is_list = {c: kinds[c].endswith("_seq") and separator != " " for c in columns}
    return {
        column: [
            [entry for entry in (text.split(separator) if is_list[column] else [text]) if entry]
            for text in table[column]
        ]
        for column in columns
    }
