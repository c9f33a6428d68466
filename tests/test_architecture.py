"""The house is in order: layers, no circles, small files, and nothing foreign replaced."""

from __future__ import annotations

import ast
import inspect
import logging
from collections.abc import Iterable, Iterator
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import recbole
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, PreTrainedTokenizerBase

ROOT = Path(__file__).parent.parent
PACKAGE = "recbole_idiomoe"
ROOMS = (
    "run_recbole_idiomoe",
    "benchmarks",
    "__main__",
    "cli",
    "__init__",
    "tuning",
    "api",
    "leaderboard",
    "analysis",
    "grid",
    "runs",
    "recommend",
    "training",
    "protocol",
    "config",
    "models",
    "pretrain",
    "data",
    "lm",
    "report",
    "compat",
    "base",
)
"""Files and folders from the top down; each imports only what stands below it."""


def files() -> Iterator[tuple[str, Path]]:
    """Module names and their files."""
    for folder in (ROOT / PACKAGE, ROOT / "benchmarks", ROOT / "run_recbole_idiomoe.py"):
        for path in [folder] if folder.is_file() else sorted(folder.rglob("*.py")):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def imports() -> dict[str, set[str]]:
    """The modules of ours that each module imports, inside functions and for types too."""
    known = {name.removesuffix(".__init__"): name for name, _ in files()}
    found: dict[str, set[str]] = {}
    for name, path in files():
        found[name] = taken = set()
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Import):
                taken |= {known[alias.name] for alias in node.names if alias.name in known}
            elif isinstance(node, ast.ImportFrom) and node.module in known:
                whole = [f"{node.module}.{alias.name}" for alias in node.names]
                taken |= {known.get(module, known[node.module]) for module in whole}
        taken.discard(name)
    return found


def room(module: str) -> str:
    """The room that a module stands in."""
    first, *rest = module.split(".")
    return rest[0] if first == PACKAGE else first


def test_each_room_imports_only_rooms_below_it() -> None:
    arrows = {(room(a), room(b)) for a, taken in imports().items() for b in taken}
    arrows = {(a, b) for a, b in arrows if a != b}
    upwards = [f"{a} -> {b}" for a, b in sorted(arrows) if ROOMS.index(a) >= ROOMS.index(b)]
    assert not upwards
    assert len(ROOMS) <= 25 and len(arrows) <= 110, len(arrows)


def test_no_circle_of_files() -> None:
    TopologicalSorter(imports()).prepare()  # raises CycleError, which names the circle


def test_the_language_model_needs_nothing_above_it() -> None:
    taken = {room(b) for a, found in imports().items() if room(a) == "lm" for b in found}
    assert taken <= {"lm", "base"}


def test_no_file_is_long() -> None:
    lengths = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in files()}
    assert not {name: length for name, length in lengths.items() if length > 400}


FOREIGN = (
    torch.nn.Module,
    torch.optim.Optimizer,
    torch.Tensor,
    DataLoader,
    Accelerator,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    logging.Handler,
    logging.Logger,
)


NO_METHODS = {"__class__", "__init__", "item_num", "sampler", "step"}
"""Names that are also data of loaders, configurations and progress bars, which may be set; and an
object may become one of a subclass, as FSDP2 makes modules."""


@cache
def foreign_methods() -> set[str]:
    """Names of functions and methods of RecBole, torch and others."""
    names = {name for cls in FOREIGN for name, _ in inspect.getmembers(cls, callable)}
    for path in Path(recbole.__file__).parent.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    return names - NO_METHODS


def replaced(tree: ast.AST) -> list[str]:
    """Assignments to methods of objects that are not the assigning object's own."""
    found = []
    for node in ast.walk(tree):
        for target in _targets(node):
            if isinstance(target, ast.Attribute) and target.attr in foreign_methods():
                owner = ast.unparse(target.value)
                if owner not in ("self", "cls"):
                    found.append(f"line {target.lineno}: {owner}.{target.attr}")
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "setattr":
            name = node.args[1]
            if isinstance(name, ast.Constant) and name.value in foreign_methods():
                found.append(f"line {node.lineno}: {ast.unparse(node)}")
    return found


def _targets(node: ast.AST) -> Iterable[ast.AST]:
    """What a statement assigns to or deletes; ``vars(x)["name"]`` counts as ``x.name``."""
    match node:
        case ast.Assign(targets=targets) | ast.Delete(targets=targets):
            pass
        case ast.AugAssign(target=target) | ast.AnnAssign(target=target):
            targets = [target]
        case _:
            return
    for target in targets:
        for part in target.elts if isinstance(target, ast.Tuple | ast.List) else [target]:
            match part:
                case ast.Subscript(
                    value=ast.Call(func=ast.Name("vars"), args=[owner])
                    | ast.Attribute(value=owner, attr="__dict__"),
                    slice=ast.Constant(str(name)),
                ):
                    yield ast.copy_location(ast.Attribute(owner, name), part)
                case _:
                    yield part


def test_nothing_foreign_is_replaced_outside_compat() -> None:
    found = {name: replaced(parsed(path)) for name, path in files() if room(name) != "compat"}
    assert not {name: lines for name, lines in found.items() if lines}


def test_a_replaced_method_is_found() -> None:
    for line in (
        "loader.collate_fn = mine",
        "trainer.evaluate, other = mine, 1",
        "del trainer._full_sort_batch_eval",
        'vars(handler)["handleError"] = mine',
        'setattr(model, "forward", mine)',
        'model.__dict__["calculate_loss"] = mine',
        "for trainer in all: trainer.model.predict = mine",
    ):
        assert len(replaced(ast.parse(line))) == 1, line
    assert not replaced(ast.parse("self.forward = mine\nmodel.weight = mine\nx = y.forward"))
