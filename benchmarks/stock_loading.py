"""RecBole's own loading of files for SASRec, as installed; a part of at_size.py.

    python benchmarks/stock_loading.py FOLDER NAME SETTINGS.json

Does not import the package, so that none of its fixes apply. Only the names that numpy 2 removed
are restored, since RecBole 1.2.1 fails without them.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import numpy as np

for _name, _meant in (
    {"float_": np.float64, "complex_": np.complex128, "unicode_": np.str_, "float": np.float64}
    | {"int": np.int_, "bool": np.bool_, "object": np.object_, "str": np.str_, "long": np.int_}
    | {"complex": np.complex128, "unicode": np.str_}
).items():
    if _name not in vars(np):
        setattr(np, _name, _meant)

from recbole.config import Config  # noqa: E402
from recbole.data import create_dataset, data_preparation  # noqa: E402
from stages import stage  # noqa: E402


def main() -> None:
    folder, name, settings = sys.argv[1:]
    given = json.loads(Path(settings).read_text())
    warnings.simplefilter("ignore")  # of pandas 2 about pandas 3
    sys.argv = sys.argv[:1]  # RecBole reads the command line too
    given |= {
        "data_path": folder,
        "train_neg_sample_args": None,
        "eval_args": {
            "split": {"LS": "valid_and_test"},
            "order": "TO",
            "group_by": "user",
            "mode": "full",
        },
        "gpu_id": "",
        "show_progress": False,
    }
    config = Config("SASRec", name, config_dict=given)
    with stage("files to tables"):
        dataset = create_dataset(config)
    with stage("rows and split"):
        data_preparation(config, dataset)


if __name__ == "__main__":
    main()
