"""What an installed package holds, and what it says when RecBole is not there."""

import configparser
import subprocess
import sys
import venv
from importlib.metadata import requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from recbole_idiomoe.base import yaml_files

ROOT = Path(__file__).parent.parent
COUNTED = ("dataset", "ablations")
FIND_PROPERTIES = (
    "from recbole_idiomoe.base.yaml_files import properties_path, read_settings;"
    f"print(*(len(list(properties_path().glob(d + '/*.yaml'))) for d in {COUNTED}),"
    "read_settings(properties_path() / 'overall.yaml')['repeatable'])"
)
# Every name here is of the installed package; the libraries that it needs are borrowed.
FIND_BACKBONE = (
    "import sys; sys.path.append(sys.argv[1])\n"
    "import recbole_idiomoe\n"
    "from recbole_idiomoe.lm import bundled, load_backbone\n"
    "backbone, tokenizer = load_backbone('bundled')\n"
    "print(recbole_idiomoe.__file__, bundled.FOLDER, len(tokenizer), sep='\\n')"
)


def run(*command: object, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        check=False,
        **options,  # type: ignore[call-overload]
    )
    return str(done.stdout) if done.returncode == 0 else f"failed: {done.stderr}"


def test_properties_are_found_from_any_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (yaml_files.properties_path() / "overall.yaml").is_file()


def test_every_folder_of_code_is_a_package() -> None:
    for source in (ROOT / "recbole_idiomoe").rglob("*.py"):
        assert (source.parent / "__init__.py").is_file(), source.parent


@pytest.mark.parametrize(
    ("fake", "said"),
    [
        (None, "recbole_idiomoe needs RecBole: pip install --no-deps recbole==1.2.1"),
        ("1.2.0", "not tested with RecBole 1.2.0: pip install --no-deps recbole==1.2.1"),
    ],
)
def test_a_missing_or_untested_recbole_is_an_import_error(
    fake: str | None, said: str, tmp_path: Path
) -> None:
    body = "raise ImportError" if fake is None else f"__version__ = {fake!r}"
    (tmp_path / "recbole.py").write_text(body)
    code = (
        f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(ROOT)!r}]\n"
        "import recbole_idiomoe\n"
        "try: recbole_idiomoe.run\n"
        "except ImportError as error: print(error)"
    )
    assert run(sys.executable, "-c", code).strip().endswith(said)


def test_run_and_load_are_found_on_first_use(tmp_path: Path) -> None:
    code = (
        "import sys, recbole_idiomoe as package; assert 'torch' not in sys.modules;"
        "assert {'run', 'load'} <= set(dir(package)); assert callable(package.run);"
        "assert 'transformers' not in sys.modules;"  # for models without a language, seconds less
        "assert callable(package.load); assert not hasattr(package, 'no_such_name')"
    )
    env_path = {"PYTHONPATH": str(ROOT), "PATH": ""}
    assert run(sys.executable, "-c", code, cwd=tmp_path, env=env_path) == ""


def test_recboles_needs_are_ours_but_for_those_that_nobody_imports() -> None:
    not_imported = {"ray", "thop", "tabulate", "plotly"}
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    lines = setup["options"]["install_requires"].strip().splitlines()
    ours = {Requirement(line).name for line in lines if not line.startswith("#")}
    theirs = [Requirement(line) for line in requires("recbole") or []]
    needed = {need.name.lower() for need in theirs if need.marker is None}
    assert needed - not_imported <= ours


def test_the_tested_set_is_pinned_without_local_tags() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
    assert {"recbole", "torch", "transformers", "numpy", "pandas"} <= {pin.name for pin in pins}
    assert all(str(pin.specifier).startswith("==") and "+" not in str(pin) for pin in pins)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist", "editable"])
def test_its_files_are_found_however_it_is_installed(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Built from a copy, away from the checkout, and run with nothing of the checkout in sight."""
    import recbole
    import yaml

    monkeypatch.delenv("PYTHONPATH", raising=False)
    tree = tmp_path / "tree"
    run("cp", "-r", *(ROOT / name for name in PARTS if (ROOT / name).exists()), tree_in(tree))
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    if kind == "editable":
        target: list[object] = ["-e", tree]
    else:
        build = f"from setuptools import build_meta as b; print(b.build_{kind}({str(tmp_path)!r}))"
        built = run(sys.executable, "-c", build, cwd=tree).strip().splitlines()[-1]
        target = [tmp_path / built]
    installed = run(python, "-m", "pip", "install", "--quiet", "--no-deps", *target)
    assert not installed.startswith("failed"), installed
    site = Path(run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    for borrowed in (recbole, yaml):
        source = Path(borrowed.__file__).parent
        (site / source.name).symlink_to(source)
    counts = [len(list((ROOT / "properties" / name).glob("*.yaml"))) for name in COUNTED]
    assert min(counts) > 0
    found = run(python, "-c", FIND_PROPERTIES, cwd=tmp_path).strip()
    assert found == "{} {} True".format(*counts)
    script = tmp_path / "venv" / "bin" / "recbole-idiomoe"
    assert "IDIOMoE" in run(script, "--list_models", cwd=tmp_path).splitlines()
    libraries = Path(recbole.__file__).parent.parent
    found = run(python, "-c", FIND_BACKBONE, libraries, cwd=tmp_path)
    assert not found.startswith("failed"), found
    package, folder, size = found.splitlines()
    where = tree if kind == "editable" else site
    assert Path(package).is_relative_to(where) and Path(folder).is_relative_to(where), found
    assert int(size) > 1000
    pages = [f"{room}/page.html" for room in ("report", "leaderboard", "analysis")]
    for file in (*pages, "analysis/prompts.txt"):
        assert (Path(package).parent / file).is_file()


PARTS = ("recbole_idiomoe", "properties", "run_recbole_idiomoe.py", "setup.py", "setup.cfg")
PARTS += ("pyproject.toml", "MANIFEST.in", "LICENSE", "README.md", "constraints.txt")


def tree_in(tree: Path) -> Path:
    tree.mkdir()
    return tree
