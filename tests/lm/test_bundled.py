"""idiom-mini as it is shipped: small, whole or refused, and the measure of an untrained one."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel, Qwen2ForCausalLM

from recbole_idiomoe.base.errors import BackboneError, SettingError
from recbole_idiomoe.lm import bundled, encode_text, load_backbone
from recbole_idiomoe.lm.likelihood import likelihood
from tests.helpers import TINY_BACKBONE

FILES = ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
WEIGHTS = "model.safetensors"
TITLE = "Crème bru\u0302lée"  # one accent in one code point, one in two


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the bundle, taken for the bundle."""
    copy = tmp_path / "idiom-mini"
    shutil.copytree(bundled.FOLDER, copy)
    monkeypatch.setattr(bundled, "FOLDER", copy)
    return copy


def test_the_bundle_is_small_and_safe() -> None:
    found = {path.name: path.stat().st_size for path in bundled.FOLDER.iterdir()}
    assert set(found) == {*FILES, WEIGHTS, bundled.SUMS_FILE, "README.md"}
    assert sum(found.values()) <= 24e6


def test_the_bundled_decoder_is_read_as_it_was_saved(folder: Path) -> None:
    backbone, tokenizer = load_backbone("bundled")
    assert backbone.dtype == torch.float32 and not backbone.training
    saved = Qwen2ForCausalLM.from_pretrained(folder, dtype=torch.float32).state_dict()
    assert all(torch.equal(weight, saved[name]) for name, weight in backbone.state_dict().items())
    assert len(tokenizer) == backbone.config.vocab_size
    ids = backbone.generation_config
    assert (ids.eos_token_id, ids.pad_token_id) == (tokenizer.eos_token_id,) * 2
    assert not ids.do_sample


def test_the_bundled_decoder_has_learnt_english() -> None:
    text = """The rain had stopped before the two friends reached the village. They left their wet
coats by the door of the inn, asked for bread and a little cheese, and sat down beside the fire.
Neither of them spoke for a long time; there was so much to say that it was hard to know where to
begin."""
    trained, untrained = (
        likelihood(*load_backbone(name), [text], context=1024) for name in ("bundled", "untrained")
    )
    assert trained.nll_per_token == pytest.approx(3.8177, abs=0.0005)
    assert untrained.nll_per_token > 9  # ln 16384 = 9.7


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def one_bit(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


def dos_lines(content: bytes) -> bytes:
    return content.replace(b"\n", b"\r\n")


def refused(name: str) -> str:
    with pytest.raises(BackboneError) as error:
        load_backbone(name, backbone_args=TINY_BACKBONE if name == "untrained" else None)
    message = str(error.value)
    assert "\n" not in message and len(message) < 500
    assert "pip install --force-reinstall recbole_idiomoe" in message
    assert "git checkout -- recbole_idiomoe/idiom-mini" in message
    return message


@pytest.mark.parametrize("name", ["bundled", "untrained"])
@pytest.mark.parametrize(
    ("file", "change"),
    [
        (WEIGHTS, cut),
        (WEIGHTS, one_bit),
        ("tokenizer.json", cut),
        ("tokenizer.json", one_bit),
        ("config.json", one_bit),
        ("config.json", dos_lines),
        ("tokenizer_config.json", one_bit),
        ("generation_config.json", one_bit),
    ],
)
def test_an_altered_file_is_refused(
    file: str, change: Callable[[bytes], bytes], name: str, folder: Path
) -> None:
    path = folder / file
    path.write_bytes(changed := change(path.read_bytes()))
    if (name, file) == ("untrained", WEIGHTS):
        load_backbone(name, backbone_args=TINY_BACKBONE)  # they are no business of it
        return
    message = refused(name)
    assert str(path) in message and f"{len(changed):,} bytes" in message
    assert hashlib.sha256(changed).hexdigest()[:12] in message


@pytest.mark.parametrize("file", [*FILES, bundled.SUMS_FILE])
@pytest.mark.parametrize("name", ["bundled", "untrained"])
def test_a_missing_file_is_refused(name: str, file: str, folder: Path) -> None:
    (folder / file).unlink()
    assert f"{folder / file} cannot be read (No such file" in refused(name)


def test_only_the_pretrained_decoder_needs_the_weights(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    load_backbone("untrained")
    assert WEIGHTS in refused("bundled")


def test_a_missing_folder_is_refused(folder: Path) -> None:
    shutil.rmtree(folder)
    assert bundled.SUMS_FILE in refused("bundled")


@pytest.mark.parametrize("file", [WEIGHTS, "config.json", "tokenizer.json"])
def test_a_file_that_has_no_sum_is_refused(file: str, folder: Path) -> None:
    sums = folder / bundled.SUMS_FILE
    kept = [line for line in sums.read_text().splitlines(True) if not line.endswith(f" {file}\n")]
    sums.write_text("".join(kept))
    assert f"has no sum of {file}" in refused("bundled")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"who knows\n"])
def test_sums_that_are_none_are_refused(content: bytes, folder: Path) -> None:
    (folder / bundled.SUMS_FILE).write_bytes(content)
    assert bundled.SUMS_FILE in refused("bundled")


def shape(backbone: PreTrainedModel) -> object:
    config = backbone.config.to_dict()
    for said_of_the_file in ("_name_or_path", "architectures", "dtype", "transformers_version"):
        config.pop(said_of_the_file, None)
    return config, {name: weight.shape for name, weight in backbone.state_dict().items()}


def test_untrained_is_the_bundled_architecture() -> None:
    (one, tokenizer), (other, same) = load_backbone("bundled"), load_backbone("untrained")
    assert shape(one) == shape(other)
    assert one.dtype == other.dtype and one.training == other.training
    assert not torch.equal(one.get_input_embeddings().weight, other.get_input_embeddings().weight)
    assert tokenizer.get_vocab() == same.get_vocab()
    assert encode_text(tokenizer, [TITLE]) == encode_text(same, [TITLE])


def test_the_bundled_decoder_takes_no_sizes() -> None:
    with pytest.raises(SettingError) as error:
        load_backbone("bundled", backbone_args={"hidden_size": 32})
    message = str(error.value)
    assert "backbone=untrained" in message and "hidden_size" in message and "\n" not in message
