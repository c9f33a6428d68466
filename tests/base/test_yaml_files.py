"""Settings in files: what is plain is read, and what has no end is refused at once."""

from pathlib import Path

import pytest

from recbole_idiomoe.base.errors import CheckpointError, SettingError
from recbole_idiomoe.base.run_folder import read_run
from recbole_idiomoe.base.yaml_files import RepeatedKey, parse, read_settings
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


def test_a_mapping_overrides_what_it_merges() -> None:
    rows = parse("base: &b {model: SASRec, seed: 3}\nrow: {<<: *b, model: GRU4Rec}")
    assert rows["row"] == {"model": "GRU4Rec", "seed": 3}
    nested = "x: &x {a: 1, b: 2}\nA: {inner: &i {<<: *x, a: 5}}\nB: {<<: [*i, *x], c: 3}"
    assert parse(nested)["B"] == {"a": 5, "b": 2, "c": 3}
    assert parse(nested)["A"] == {"inner": {"a": 5, "b": 2}}


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("a: 1\nb: 2\na: 3", "a"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  b: 1\n  b: 2", "b"),
        ("x: &x {a: 1, a: 2}\ny: {<<: *x}", "a"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n  <<: *x", "<<"),
    ],
)
def test_a_key_given_twice_is_refused_beside_merges(text: str, key: str) -> None:
    with pytest.raises(RepeatedKey, match=f"'{key}' twice"):
        parse(text)


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfseed: 3\ntopk: [5]\n",
        b"seed: 3\r\ntopk: [5]\r\n",
        b"\xef\xbb\xbfseed: 3\r\n\r\n# end\r\ntopk:\r\n- 5",
    ],
)
def test_files_of_windows_editors_are_read(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "settings.yaml"
    file.write_bytes(content)
    assert read_settings(file) == {"seed": 3, "topk": [5]}
    (tmp_path / "r.json").write_bytes(b'\xef\xbb\xbf{"model": "SASRec", "settings": {"seed": 3}}')
    assert read_settings(tmp_path / "r.json") == {"model": "SASRec", "seed": 3}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("topk:\n\t- 5", r"is not YAML \(line 2\): found character '.t'"),
        ("when: 2020-13-45", "is not YAML"),
        ("- seed", "must hold 'name: value' lines"),
        ("seed", "must hold 'name: value' lines"),
        ("3: seed", "must hold 'name: value' lines"),
        ("<<: 3", r"is not YAML \(line 1\)"),
        ("seed: &s 3\nseed: *s", r"has 'seed' twice \(line 2\)"),
    ],
)
def test_a_file_of_no_settings_is_refused_in_one_line(
    content: str, said: str, tmp_path: Path
) -> None:
    (tmp_path / "c.yaml").write_text(content)
    with pytest.raises(SettingError, match=said) as error:
        read_settings(tmp_path / "c.yaml")
    assert "\n" not in str(error.value)


def test_an_empty_file_has_no_settings(tmp_path: Path) -> None:
    for content in ("", "# nothing\n", "---\n", "\ufeff"):
        (tmp_path / "c.yaml").write_text(content, encoding="utf-8")
        assert read_settings(tmp_path / "c.yaml") == {}


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
