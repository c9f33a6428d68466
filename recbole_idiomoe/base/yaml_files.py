"""Settings in YAML files, and the folder of the package's own files.

Imports neither torch nor RecBole, so that ``--help`` answers at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import yaml

from recbole_idiomoe.base.errors import SettingError

MOST_VALUES = 1_000_000
"""Limit for a YAML text: a few lines of nested aliases can expand to billions of values."""


class Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-3`` is a number, as in RecBole's files.

    A separate class, since RecBole changes ``yaml.FullLoader`` for the whole process.
    """

    def __init__(self, stream: str) -> None:
        super().__init__(stream)
        self._flattened: set[yaml.Node] = set()

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Put the entries of merged mappings (``<<``) in front of the mapping's own.

        A key that overrides a merged one is ordinary YAML. A key that the mapping itself has twice
        is an error, unlike in PyYAML.
        """
        # A mapping that others merge comes here again, with the merged entries among its own.
        if node not in self._flattened:
            self._flattened.add(node)
            self._refuse_repeated_keys(node)
            super().flatten_mapping(node)

    def _refuse_repeated_keys(self, node: yaml.MappingNode) -> None:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            special = key_node.tag in ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")
            key = key_node.value if special else self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                return  # PyYAML reports it
            if key in seen:
                raise RepeatedKey(problem=f"{key!r} twice", problem_mark=key_node.start_mark)
            seen.add(key)


class TooManyValues(yaml.YAMLError):
    """A YAML text whose aliases expand to too many values, or without end."""


class RepeatedKey(yaml.MarkedYAMLError):
    """A mapping names the same key twice."""


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9][0-9_]*)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def parse(text: str) -> Any:
    """Parse a YAML text.

    Raises:
        yaml.YAMLError: ``text`` is not YAML, or :class:`TooManyValues`.
    """
    loader = Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _values(node, {}) > MOST_VALUES:
            raise TooManyValues
        return loader.construct_document(node)
    except RecursionError as error:
        raise TooManyValues from error
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        # Of what looks like a date or a number and is none, as 2020-13-01.
        raise yaml.YAMLError(str(error)) from error
    finally:
        loader.dispose()


def _values(node: yaml.Node, known: dict[yaml.Node, int]) -> int:
    """The number of values in ``node`` with its aliases expanded; a cycle counts as the limit."""
    if node not in known:
        known[node] = MOST_VALUES
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        inside = chain.from_iterable(parts) if isinstance(node, yaml.MappingNode) else parts
        known[node] = 1 + sum(_values(part, known) for part in inside)
    return known[node]


def read_layers(files: Sequence[str | Path]) -> list[dict[str, Any]]:
    """The settings in each of ``files``; see :func:`read_settings`.

    Raises:
        SettingError: a file cannot be read, or ``files`` is not a list.
    """
    if isinstance(files, str | Path | Mapping):
        raise SettingError(
            f"config_files={str(files)[:200]!r} must be a list of files, as ['mine.yaml']; "
            "settings by name go into settings={...}."
        )
    return [read_settings(file) for file in files]


def read_settings(path: str | Path) -> dict[str, Any]:
    """The settings in a YAML file, or in the ``settings`` of a JSON result file.

    They include ``model``, ``dataset``, ``variants``, ``baseline`` and ``seeds`` where the file
    has them.

    Raises:
        SettingError: the file cannot be read, or is not a mapping of names to values.
    """
    path = Path(path)
    where = f"Settings file {path}"
    try:
        text = path.read_text(encoding="utf-8-sig")  # Windows editors write a byte-order mark
        content = json.loads(text) if path.suffix == ".json" else parse(text)
    except OSError as error:
        raise SettingError(f"Cannot read settings from {path}: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise SettingError(f"{where} is not UTF-8; save it as UTF-8.") from error
    except json.JSONDecodeError as error:
        raise SettingError(f"{where} is not JSON: {error}.") from error
    except (TooManyValues, RecursionError) as error:
        fault = f"is nested too deep, or stands for more than {MOST_VALUES:,} values"
        raise SettingError(f"{where} {fault}; write plain settings.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        if isinstance(error, RepeatedKey):
            raise SettingError(f"{where} has {error.problem}{place}.") from error
        fault = f": {error.problem}" if mark else ""  # type: ignore[attr-defined]
        raise SettingError(f"{where} is not YAML{place}{fault}; fix or quote it.") from error
    if path.suffix == ".json" and isinstance(content, list):
        raise SettingError(
            f"Result file {path} holds {len(content)} runs; keep the one that is meant."
        )
    is_result = path.suffix == ".json" and isinstance(content, dict) and "settings" in content
    if is_result and isinstance(content["settings"], dict):
        names = ("model", "dataset", "variants", "baseline", "seeds")
        content = {**content["settings"], **{k: content[k] for k in names if k in content}}
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise SettingError(f"{where} must hold 'name: value' lines.")
    return content


def tuned_file(folder: str | Path, model: str, dataset: str) -> Path:
    """The path in ``folder`` of the tuned settings for ``model`` on ``dataset``."""
    return Path(folder) / f"{model}_{dataset}.yaml"


def tuned_settings(folder: str | Path, model: str, dataset: str) -> dict[str, Any]:
    """The tuned settings for ``model`` on ``dataset``.

    Raises:
        SettingError: ``folder`` has no such file, or it cannot be read.
    """
    file = tuned_file(folder, model, dataset)
    if not file.is_file():
        raise SettingError(
            f"tuned={folder} has no {file.name}; make it with --model={model} "
            f"--dataset={dataset} --tune=20 --tuned={folder}, or leave tuned out."
        )
    return read_settings(file)


def properties_path() -> Path:
    """The folder of the package's YAML files, in an installation or in a checkout."""
    package = Path(__file__).parent.parent
    installed = package / "properties"
    return installed if installed.is_dir() else package.parent / "properties"
