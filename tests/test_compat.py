"""RecBole on today's libraries: each test fails without the fix that it is named after."""

import csv
import os
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from recbole_idiomoe import compat
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.models import registry
from tests.bad_input.traps import Trap

TESTS = Path(__file__).parent
COLUMNS = {
    "inter": "user_id:token\titem_id:token\ttimestamp:float",
    "item": "item_id:token\ttitle:token\tclass:token_seq",
}


def write_dataset(folder: Path, name: str) -> None:
    """Twelve users with eight interactions over ten items; one title opens a quote."""
    rows = [f"u{u}\ti{(u + t) % 10}\t{t}" for u in range(12) for t in range(8)]
    items = [f"i{i}\tTitle {i}\tred blue" for i in range(8)]
    items += ['i8\t"Unbalanced\tred', "i9\t\t"]
    folder.mkdir(parents=True, exist_ok=True)
    for suffix, lines in (("inter", rows), ("item", items)):
        text = "\n".join([COLUMNS[suffix], *lines]) + "\n"
        (folder / f"{name}.{suffix}").write_text(text)


def configure(model: str, root: Path, name: str = "tiny", **settings: Any) -> RunConfig:
    values: dict[str, Any] = {
        "data_path": str(root),
        "checkpoint_dir": str(root / "saved"),
        "load_col": {
            "inter": ["user_id", "item_id", "timestamp"],
            "item": ["item_id", "title", "class"],
        },
        "epochs": 1,
        "train_batch_size": 16,
        "MAX_ITEM_LIST_LENGTH": 6,
        "show_progress": False,
        "metrics": ["NDCG"],
        "topk": [5],
        "valid_metric": "NDCG@5",
    }
    return RunConfig(model, name, settings={**values, **settings})


def train(config: RunConfig) -> tuple[Any, Any]:
    """Train as RecBole does; the trainer and the test data come back."""
    from recbole.data import create_dataset, data_preparation
    from recbole.utils import get_trainer

    train_data, valid_data, test_data = data_preparation(config, create_dataset(config))
    model = registry.get_model(config["model"])(config, train_data.dataset)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    trainer.fit(train_data, valid_data, verbose=False)
    return trainer, test_data


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)  # RecBole writes log_tensorboard/ where it stands
    write_dataset(tmp_path / "tiny", "tiny")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # more only wait for each other on tensors this small
    yield tmp_path
    torch.set_num_threads(threads)


def in_a_new_process(code: str, folder: Path) -> str:
    """What ``code``, run in ``folder``, writes to stderr; it must end well."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(map(str, (TESTS.parent, TESTS))),
            "OMP_NUM_THREADS": "1",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_restore_numpy_names(tiny: Path) -> None:
    in_a_new_process(
        "from recbole_idiomoe import compat; compat.apply();"
        "from recbole.data.interaction import _convert_to_tensor;"
        "import numpy as np; _convert_to_tensor(np.array([1.0, 2.0]));"
        "from recbole.config import Config; Config('SASRec', 'ml-100k', config_dict={"
        "'train_neg_sample_args': None})",
        tiny,
    )


def test_numpy_names_that_exist_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(np, "float", "mine", raising=False)
    compat.restore_numpy_names()
    assert vars(np)["float"] == "mine"


@pytest.mark.parametrize("model", ["SASRec", "FDSA", "DIN", "GRU4RecF", "SASRecF"])
def test_keep_checkpoints_plain(model: str, tiny: Path) -> None:
    """Those of all models are read without unpickling, to the last number."""
    features = {} if model in ("SASRec", "DIN") else {"selected_features": ["class"]}
    trainer, test_data = train(configure(model, tiny, **features))
    result = trainer.evaluate(test_data)
    assert "ndcg@5" in result
    state = torch.load(trainer.saved_model_file, weights_only=True)
    assert state["config"] == {"model": model} and not state["other_parameter"]
    weights = {name: weight.clone() for name, weight in trainer.model.state_dict().items()}
    for weight in trainer.model.parameters():
        weight.data.zero_()
    trainer.resume_checkpoint(trainer.saved_model_file)
    assert trainer.start_epoch == 1
    restored = trainer.model.state_dict()
    assert all(torch.equal(weight, restored[name]) for name, weight in weights.items())
    assert trainer.evaluate(test_data) == result


def test_keep_checkpoints_plain_of_s3rec(tiny: Path) -> None:
    settings = {"item_attribute": "class", "train_batch_size": 4}
    first, _ = train(configure("S3Rec", tiny, pretrain_epochs=1, save_step=1, **settings))
    second, test_data = train(
        configure(
            "S3Rec", tiny, train_stage="finetune", pre_model_path=first.saved_model_file, **settings
        )
    )
    assert "ndcg@5" in second.evaluate(test_data)


def test_forget_pickled_loaders(tiny: Path) -> None:
    """The name is the one that RecBole looks for without being told."""
    from recbole.data import create_dataset, data_preparation

    config = configure("SASRec", tiny)
    (tiny / "saved").mkdir()
    trap = Trap(tiny / "ran")
    (tiny / "saved" / "tiny-for-SASRec-dataloader.pth").write_bytes(pickle.dumps(trap))
    assert len(data_preparation(config, create_dataset(config))) == 3
    assert not trap.sprung


def test_everybody_else_keeps_torch_as_it_is() -> None:
    from recbole.trainer import trainer

    assert torch.load.__module__ == "torch.serialization"
    assert trainer.torch.load is not torch.load
    assert trainer.torch.Tensor is torch.Tensor
    assert pd.read_csv.__module__.startswith("pandas")


def test_skip_lonely_barrier(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recbole.data.dataset import SequentialDataset, dataset

    def download_url(url: str, folder: str) -> str:
        path = Path(folder) / "Toys.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for suffix in COLUMNS:
                archive.write(tiny / "tiny" / f"tiny.{suffix}", f"Toys.{suffix}")
        return str(path)

    monkeypatch.setattr(dataset, "decide_download", lambda url: True)
    monkeypatch.setattr(dataset, "download_url", download_url)
    loaded = SequentialDataset(configure("SASRec", tiny, "amazon-toys-games"))
    assert loaded.user_num == 13


def test_read_quotes_as_text(tiny: Path) -> None:
    from recbole.data.dataset import SequentialDataset

    loaded = SequentialDataset(configure("SASRec", tiny))
    assert loaded.item_num == 11
    assert '"Unbalanced' in loaded.field2id_token["title"]
    assert loaded.inter_num == 96


def test_the_parser_in_c_reads_what_that_in_python_reads(tmp_path: Path) -> None:
    from recbole.data.dataset import dataset

    numbers = ["0.1", "1400000000.123456789", "1e22", "-4.9e-324", "2.2250738585072011e-308", ""]
    numbers += ["123456789012345678901234567890", ".3", "7.", "+5", "NA", "1.7976931348623157e308"]
    words = ["a", "nan", "", '"odd', 'two "words"', "é", "NA", "'", "0123", "1e5", " x ", "\u2028"]
    lines = ["name:token\tn:float\tother:token"]
    lines += [f"{word}\t{number}\tx" for word, number in zip(words, numbers, strict=True)]
    path = tmp_path / "x.inter"
    path.write_text("\n".join([*lines, "", "last\t1\t"]), encoding="utf-8")
    options: dict[str, Any] = {
        "delimiter": "\t",
        "usecols": ["name:token", "n:float"],
        "dtype": {"name:token": str, "n:float": np.float64},
        "encoding": "utf-8",
        "engine": "python",
    }
    wanted = pd.read_csv(path, quoting=csv.QUOTE_NONE, **options)
    found = dataset.pd.read_csv(path, **options)
    pd.testing.assert_frame_equal(found, wanted, check_exact=True)
    assert len(found) == len(lines)
    path.write_text("name:token::n:float\nA 1::2.5\n")
    (row,) = dataset.pd.read_csv(path, **options | {"delimiter": "::"}).to_numpy().tolist()
    assert row == ["A 1", 2.5]


def test_use_current_grad_scaler_and_silence_pandas_3_warnings(tiny: Path) -> None:
    errors = in_a_new_process(
        "from pathlib import Path; from test_compat import configure, train;"
        "trainer, test = train(configure('FDSA', Path('.'), selected_features=['class']));"
        "trainer.evaluate(test)",
        tiny,
    )
    assert "FutureWarning" not in errors, errors


def test_refuse_pandas_3(monkeypatch: pytest.MonkeyPatch) -> None:
    compat.refuse_pandas_3()
    monkeypatch.setattr(pd, "__version__", "3.0.1")
    with pytest.raises(ImportError, match="pip install 'pandas<3'"):
        compat.refuse_pandas_3()


def test_empty_texts_and_titles_are_filled(tiny: Path) -> None:
    """What pandas 3 would leave missing: RecBole fills in place, in a column of a table."""
    from recbole.data.dataset import SequentialDataset

    loaded = SequentialDataset(configure("SASRec", tiny))
    row = loaded.token2id("item_id", "i9")
    assert loaded.item_feat["title"][row] == 0
    assert loaded.item_feat["class"][row].tolist() == []


def test_wrap_the_terminal_once(tiny: Path) -> None:
    code = (
        "from recbole_idiomoe import compat; compat.apply();"
        "from recbole.utils import init_logger; from test_compat import configure;"
        "from pathlib import Path;"
        "config = configure('SASRec', Path('.'));"
        "import sys; init_logger(config); wrapped = sys.stdout, sys.stderr;"
        "[init_logger(config) for _ in range(300)];"
        "assert (sys.stdout, sys.stderr) == wrapped; print('\\033[32mgreen\\033[0m')"
    )
    in_a_new_process(code, tiny)


def test_applying_twice_changes_nothing() -> None:
    from recbole.trainer import trainer

    compat.apply()
    before = trainer.torch
    compat.apply()
    assert trainer.torch is before


def test_ray_is_never_imported(tmp_path: Path) -> None:
    in_a_new_process(
        "import importlib, pkgutil, sys, recbole_idiomoe as package\n"
        "for module in pkgutil.walk_packages(package.__path__, 'recbole_idiomoe.'):\n"
        "    if module.name != 'recbole_idiomoe.lm.ffn_kernels':\n"  # wants Triton, so a GPU
        "        importlib.import_module(module.name)\n"
        "assert 'recbole.trainer' in sys.modules and 'ray' not in sys.modules",
        tmp_path,
    )
