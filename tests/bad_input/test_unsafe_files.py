"""Files that would run code, or write where they should not: refused in one line, nothing run."""

import ast
import json
import os
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.utils import url as recbole_url

import recbole_idiomoe
from recbole_idiomoe import cli, load
from recbole_idiomoe.base.errors import BackboneError, DataError
from recbole_idiomoe.compat import extract_zip
from recbole_idiomoe.config.run_config import RunConfig
from recbole_idiomoe.data.location import locate
from recbole_idiomoe.lm import load_backbone
from recbole_idiomoe.lm.bundled import verified_folder
from recbole_idiomoe.recommend import __main__ as recommend
from tests.bad_input.stranger import Stranger, both
from tests.bad_input.traps import Trap, zip_with


@pytest.fixture
def trap(tmp_path: Path) -> Trap:
    return Trap(tmp_path / "sprung")


@pytest.fixture
def decoder(tmp_path: Path) -> Path:
    """A copy of the bundled decoder, whose checksums nobody looks at."""
    return Path(shutil.copytree(verified_folder(), tmp_path / "decoder"))


@pytest.fixture(autouse=True)
def nobody_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers asks at the terminal whether to run code, unless it was told."""

    def ask(question: str = "") -> str:
        raise AssertionError(f"asked {question}")

    monkeypatch.setattr("builtins.input", ask)


def test_the_traps_work(trap: Trap) -> None:
    Path("state").write_bytes(trap.pickled["zip"])
    torch.load("state", weights_only=False)
    assert trap.sprung
    trap.trace.unlink()
    eval(trap.code)
    assert trap.sprung


# Checkpoints


@both
def test_a_pickle_is_no_checkpoint(model: str, stranger: Stranger, trap: Trap) -> None:
    folder = Path(stranger.result(model)["folder"])
    state = folder / "training_state.pt"
    for content in trap.pickled.values():
        state.write_bytes(content)
        assert "cannot be read" in stranger.refused(model, f"--resume={folder}", "--epochs=2")
    assert not trap.sprung


def test_a_pickle_is_no_first_stage_of_s3rec(stranger: Stranger, trap: Trap) -> None:
    options = {"train_stage": "finetune", "pre_model_path": "pre.pth", "item_attribute": "title"}
    for content in trap.pickled.values():
        Path("pre.pth").write_bytes(content)
        message = stranger.refused("S3Rec", **options)
        assert "pre.pth cannot be read" in message and "weights_only=False" in message
    assert not trap.sprung


def test_a_run_s_folder_has_no_pickled_weights(stranger: Stranger, trap: Trap) -> None:
    folder = Path(stranger.result("IDIOMoE")["folder"])
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(trap.pickled["zip"])
    command = [str(folder), "--history=i1,i2"]
    assert "no complete model" in stranger.said(recommend.main(command), stranger.debris())
    assert not trap.sprung


def test_vectors_have_no_objects(stranger: Stranger, trap: Trap) -> None:
    names = np.array(["i1", trap], dtype=object)
    np.savez("vectors.npz", item_ids=names, vectors=np.ones((2, 3), dtype=np.float32))
    message = stranger.refused("IDIOMoE", text_encoder="vectors.npz")
    assert "vectors.npz' cannot be read" in message
    assert not trap.sprung


@pytest.mark.parametrize(
    "setting", ["save_dataset", "dataset_save_path", "save_dataloaders", "dataloaders_save_path"]
)
def test_recbole_s_pickled_data_are_refused(setting: str, stranger: Stranger) -> None:
    value = True if setting.startswith("save") else "data.pth"
    assert "can run code" in stranger.refused("SASRec", **{setting: value})


# Settings


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['sprung']]",
        "epochs: !!python/object/apply:os.system ['touch sprung']",
        "epochs: !!python/object/new:os.system ['touch sprung']",
        "epochs: !!python/name:os.system",
        "epochs: !!python/module:os",
    ],
)
def test_yaml_makes_no_objects(text: str, stranger: Stranger) -> None:
    Path("evil.yaml").write_text(text)
    stranger.files()
    before = stranger.debris()
    message = stranger.said(cli.main(["--config_files=evil.yaml"]), before)
    assert "evil.yaml is not YAML (line 1)" in message
    message = stranger.refused("SASRec", f"--epochs={text.removeprefix('epochs: ')}")
    assert "must be a number" in message
    assert not Path("sprung").exists()


@both
def test_settings_are_not_evaluated(model: str, stranger: Stranger, trap: Trap) -> None:
    """RecBole evaluates each value that is text."""
    names = ("learning_rate", "metrics", "topk", "user_inter_num_interval", "eval_args", "learner")
    for name in names:
        stranger.refused(model, **{name: trap.code})
        stranger.refused(model, f"--{name}={trap.code}")
    Path("result.json").write_text(json.dumps({"settings": {"epochs": trap.code}}))
    before = stranger.debris()
    stranger.said(cli.main(["--config_files=result.json"]), before)
    assert not trap.sprung


def test_the_script_has_recbole_read_no_command_line(
    stranger: Stranger, trap: Trap, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its ``Config`` takes ``sys.argv`` whoever builds it."""
    monkeypatch.setattr("sys.argv", ["run.py", f"--epochs={trap.code}"])
    stranger.result("SASRec")
    assert cli.main([f"--epochs={trap.code}"]) == 2
    assert not trap.sprung


# Code that comes with a model


def test_a_backbone_s_own_code_is_not_run(decoder: Path, stranger: Stranger, trap: Trap) -> None:
    config = (decoder / "config.json").read_bytes()
    trap.give_code(decoder)
    message = stranger.refused("IDIOMoE", backbone=str(decoder))
    assert f"backbone={decoder}" in message and "set trust_remote_code: True" in message
    # Of a decoder that transformers has, the tokenizer that transformers has for it is taken.
    (decoder / "config.json").write_bytes(config)
    tokenizer = json.loads((decoder / "tokenizer.json").read_text())
    (decoder / "tokenizer.json").write_text(json.dumps(tokenizer | {"normalizer": {"type": "NFC"}}))
    load_backbone(str(decoder))
    assert not trap.sprung


def test_it_is_run_where_that_is_asked_for(decoder: Path, trap: Trap) -> None:
    trap.give_code(decoder)
    with pytest.raises(BackboneError):
        load_backbone(str(decoder), trust_remote_code=True)
    assert trap.sprung


def test_a_text_encoder_s_own_code_is_not_run(
    decoder: Path, stranger: Stranger, trap: Trap
) -> None:
    trap.give_code(decoder)
    message = stranger.refused("IDIOMoE", text_encoder=str(decoder))
    assert "could not be loaded" in message and "no code of its own" in message
    assert not trap.sprung


def test_a_text_encoder_has_no_pickled_weights(
    decoder: Path, stranger: Stranger, trap: Trap
) -> None:
    (decoder / "model.safetensors").unlink()
    (decoder / "pytorch_model.bin").write_bytes(trap.pickled["zip"])
    message = stranger.refused("IDIOMoE", text_encoder=str(decoder))
    assert "could not be loaded" in message and "safetensors" in message
    assert not trap.sprung


def test_a_run_s_folder_asks_for_no_code(stranger: Stranger, decoder: Path, trap: Trap) -> None:
    """Neither by its model's files nor by the settings that it was made with."""
    folder = Path(stranger.result("IDIOMoE")["folder"])
    run = json.loads((folder / "run.json").read_text())
    whole = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    trap.give_code(folder)
    load(folder)
    for name, content in whole.items():
        (folder / name).write_bytes(content)
    trap.give_code(decoder)
    run["settings"] |= {"backbone": str(decoder), "backbone_args": None, "trust_remote_code": True}
    (folder / "run.json").write_text(json.dumps(run))
    Path("c.yaml").write_text("{}")
    before = stranger.debris()
    code = cli.main([f"--resume={folder}", "--epochs=2"])
    assert "set trust_remote_code: True" in stranger.said(code, before)
    assert not trap.sprung


def test_nor_does_that_of_a_baseline(stranger: Stranger, decoder: Path, trap: Trap) -> None:
    options = {"hidden_size": 16, "n_heads": 2, "head_size": 8, "inner_size": 16, "n_layers": 1}
    folder = Path(stranger.result("TIGER", semantic_codebook_size=4, **options)["folder"])
    trap.give_code(decoder)
    run = json.loads((folder / "run.json").read_text())
    run["settings"] |= {
        "text_encoder": "backbone",
        "backbone": str(decoder),
        "trust_remote_code": True,
    }
    (folder / "run.json").write_text(json.dumps(run))
    with pytest.raises(BackboneError, match="trust_remote_code"):
        load(folder)
    assert not trap.sprung


# Archives


@pytest.mark.parametrize(
    ("name", "link"),
    [
        ("../outside.inter", None),
        ("files/../../outside.inter", None),
        ("/outside.inter", None),
        ("..\\outside.inter", None),
        ("C:\\outside.inter", None),
        ("\\\\server\\share\\outside.inter", None),
        ("Toys.item", "/etc/passwd"),
    ],
)
def test_an_archive_stays_in_its_folder(
    name: str, link: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = zip_with(tmp_path / "Toys.zip", name, link)
    with pytest.raises(DataError, match="would lie outside"):
        extract_zip(archive, tmp_path / "files")
    assert list((tmp_path / "files").iterdir()) == []
    # And as a download of RecBole's, of which nothing stays.
    monkeypatch.setattr(recbole_url, "decide_download", lambda url: True)
    monkeypatch.setattr(recbole_url, "download_url", lambda url, folder: str(archive))
    (tmp_path / "data").mkdir()
    config = RunConfig("SASRec", "amazon-toys-games", settings={"data_path": f"{tmp_path}/data"})
    with pytest.raises(DataError, match="would lie outside") as caught:
        locate(config)
    assert "\n" not in str(caught.value)
    names = {path.name for path in tmp_path.rglob("*")}
    assert names == {"Toys.zip", "files", "data"}


def test_a_name_with_dots_is_a_name(tmp_path: Path) -> None:
    archive = zip_with(tmp_path / "a.zip", "more/..Toys..item")
    extract_zip(archive, tmp_path / "files")
    files = {path.name for path in (tmp_path / "files").rglob("*.i*")}
    assert files == {"Toys.inter", "..Toys..item"}


def test_an_archive_that_is_larger_than_the_disk_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "bomb.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("Toys.inter", bytes(2**24))
    assert archive.stat().st_size < 2**15
    room = os.statvfs(tmp_path)
    usage = shutil._ntuple_diskusage(room.f_blocks, 0, 2**24 - 1)  # type: ignore[attr-defined]
    monkeypatch.setattr("shutil.disk_usage", lambda folder: usage)
    with pytest.raises(DataError, match=r"unpacks to 0\.0 GiB, and 0\.0 GiB are free"):
        extract_zip(archive, tmp_path / "files")
    assert list((tmp_path / "files").iterdir()) == []


@pytest.mark.parametrize("altered", ["cut short", "one byte"])
def test_an_altered_archive_is_refused(altered: str, tmp_path: Path) -> None:
    archive = zip_with(tmp_path / "a.zip", "Toys.item")
    whole = bytearray(archive.read_bytes())
    whole[whole.index(b"u\ti\t1")] ^= 1
    archive.write_bytes(whole if altered == "one byte" else whole[:-30])
    with pytest.raises(zipfile.BadZipFile):
        extract_zip(archive, tmp_path / "files")


# What comes later


def calls(tree: ast.AST) -> list[tuple[str, dict[str, str]]]:
    """Every call: what is called, and its named arguments, as they are written."""
    return [
        (ast.unparse(node.func), {k.arg or "**": ast.unparse(k.value) for k in node.keywords})
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


def unsafe(name: str, options: dict[str, str]) -> bool:
    module, _, function = name.rpartition(".")
    if function in ("load", "loads", "Unpickler"):
        if module == "torch":
            return options.get("weights_only") != "True"
        if module in ("np", "numpy"):
            return options.get("allow_pickle", "False") != "False"
        if module == "yaml":
            return options.get("Loader") != "Loader"  # yaml_files', which is a safe one
        return module in ("pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib")
    if function == "from_pretrained" and module.startswith("Auto"):
        return not {"trust_remote_code", "**"} & options.keys()
    if function in ("extract", "extractall", "unpack_archive"):
        return module != "opened"  # extract_zip's in compat.py, after its checks
    whole = {"eval", "exec", "os.system", "os.popen", "yaml.full_load", "yaml.unsafe_load"}
    return name in whole or options.get("shell", "False") != "False"


def test_nothing_in_the_package_reads_what_could_run() -> None:
    found = [
        f"{path.name}: {name}({options})"
        for path in Path(recbole_idiomoe.__file__).parent.rglob("*.py")
        for name, options in calls(ast.parse(path.read_text(encoding="utf-8")))
        if unsafe(name, options)
    ]
    assert not found
