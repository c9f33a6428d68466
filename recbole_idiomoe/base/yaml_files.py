"""Settings in files: how YAML is read here, and where our own files lie.

Light on purpose (no torch, no RecBole), so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from recbole_idiomoe.base.errors import SettingError

MOST_VALUES = 1_000_000
"""In a text; a few lines of aliases of aliases stand for billions."""


class Loader(yaml.SafeLoader):
    """Plain YAML, but ``1e-3`` is a number, as in RecBole's files.

    A class of our own because RecBole changes ``yaml.FullLoader`` for every user
    of yaml in the process.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping in ``node``; YAML forbids a key twice, the library takes the last."""
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            seen: set[Any] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node)
                if key in seen:
                    raise RepeatedKey(problem=f"{key!r} twice", problem_mark=key_node.start_mark)
                seen.add(key)
        return mapping


class TooMuch(yaml.YAMLError):
    """A text that stands for far more than it is long, or without end."""


class RepeatedKey(yaml.MarkedYAMLError):
    """A mapping names the same key twice."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse(text: str) -> Any:
    """What the YAML in ``text`` stands for.

    Raises:
        yaml.YAMLError: ``text`` is not YAML, or :class:`TooMuch`.
    """
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > MOST_VALUES:
            raise TooMuch
        return loader.construct_document(node)
    except RecursionError as error:
        raise TooMuch from error
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """How many values ``node`` stands for if each alias is written out; many if it is in itself."""
    if node not in known:
        known[node] = MOST_VALUES
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inside = chain.from_iterable(parts) if isinstance(node, yaml.MappingNode) else parts
        known[node] = 1 + sum(_values(part, known) for part in inside)
    return known[node]


def read_layers(files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The settings in each of ``files``; see :func:`read_settings`.

    Raises:
        SettingError: a file that cannot be read, or something else than a list of files.
    """
    if isinstance(files, str | Path | Mapping):
        raise SettingError(
            f"config_files={str(files)[:200]!r} must be a list of files, as ['mine.yaml']; "
            "settings by name go into settings={...}."
        )
    return [read_settings(file) for file in files]


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file, or those that a result file of ours was made with.

    ``model`` and ``dataset`` are among them where the file names them, as result files do, and
    the rows of a table.

    Raises:
        SettingError: no such file, not to be read, or not a mapping of names to values.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else parse(text)
    except OSError as error:
        raise SettingError(f"Cannot read settings from {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"Settings file {path} is not UTF-8; save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise SettingError(f"Settings file {path} is not JSON: {error}.") from error
    except (TooMuch, RecursionError) as error:
        raise SettingError(
            f"Settings file {path} is nested too deep, or stands for more than {MOST_VALUES:,} "
            "values; write plain settings."
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        if isinstance(error, RepeatedKey):
            raise SettingError(f"Settings file {path} has {error.problem}{place}.") from error
        raise SettingError(f"Settings file {path} is not YAML{place}; mend or quote it.") from error
    if path.suffix == ".json" and isinstance(content, list):
        raise SettingError(
            f"Result file {path} holds {len(content)} runs; keep the one that is meant."
        )
    if path.suffix == ".json" and isinstance(content, dict) and "settings" in content:
        what = ("model", "dataset", "variants", "baseline", "seeds")
        named = {key: content[key] for key in what if key in content}
        content = {**content["settings"], **named}
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingError(f"Settings file {path} must hold 'name: value' lines.")
    return content


def tuned_file(folder: str | Path, model: str, dataset: str) -> Path:
    """Where ``folder`` has the settings that were found best for ``model`` on ``dataset``."""
    return Path(folder) / f"{model}_{dataset}.yaml"


def tuned_settings(folder: str | Path, model: str, dataset: str) -> dict[str, Any]:
    """The settings that were found best for ``model`` on ``dataset``, and nothing else.

    Raises:
        SettingError: ``folder`` has none for them, or its file cannot be read.
    """
    file = tuned_file(folder, model, dataset)
    if not file.is_file():
        raise SettingError(
            f"tuned={folder} has no {file.name}; make it with --model={model} "
            f"--dataset={dataset} --tune=20 --tuned={folder}, or leave tuned out."
        )
    return read_settings(file)


def properties_path() -> Path:
    """The folder of our YAML files, in an installed package or in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "properties"
    return installed if installed.is_dir() else package.parent / "properties"
