"""Settings in files: what is plain is read, and what has no end is refused at once."""

from pathlib import Path

import pytest

from recbole_idiomoe.base.errors import CheckpointError, SettingError
from recbole_idiomoe.base.run_folder import read_run
from recbole_idiomoe.base.yaml_files import parse, read_settings
from recbole_idiomoe.data.catalog import Catalog

LAUGHS = "\n".join(
    ["- &a0 [lol, lol, lol]", *(f"- &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10))]
)
DEEP = "[" * 100_000 + "]" * 100_000


def test_aliases_and_merges_are_read() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, z: 3}\nc: [*a, *a]"
    a = {"x": 1, "y": [1, 2]}
    assert parse(text) == {"a": a, "b": a | {"z": 3}, "c": [a, a]}
    assert parse("") is None and parse("# nothing") is None and parse("1e-3") == 0.001


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("laughs.yaml", f"topk:\n{LAUGHS}"),
        ("itself.yaml", "topk: &x\n- *x"),
        ("itself.yaml", "backbone_args: &x {y: {z: *x}}"),
        ("deep.yaml", f"topk: {DEEP}"),
        ("deep.json", f'{{"model": "IDIOMoE", "settings": {DEEP}}}'),
    ],
)
def test_a_file_without_end_is_refused(name: str, content: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(SettingError, match="nested too deep") as error:
        read_settings(tmp_path / name)
    assert len(str(error.value)) < 300 and str(tmp_path / name) in str(error.value)


def test_a_folder_whose_files_are_nested_without_end_is_refused(tmp_path: Path) -> None:
    for name in ("run.json", "catalog.json"):
        (tmp_path / name).write_text(f'{{"settings": {DEEP}}}')
    with pytest.raises(CheckpointError):
        read_run(tmp_path)
    with pytest.raises(CheckpointError):
        Catalog.load(tmp_path)
