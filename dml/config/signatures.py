"""The arguments of the losses' constructors, read from their source: to import them takes torch, 1.8 s."""

import ast
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

import dml.arguments

_FOLDER = Path(dml.arguments.__file__).parent / "losses"
_CONSTANTS = ("within_batch", "unit_length_defaults")


@dataclass(frozen=True)
class Argument:
    """One argument of a constructor."""

    annotation: Any
    default: Any
    """`...` where it must be given."""
    description: str
    """The first sentence of what the docstring says."""


@dataclass(frozen=True)
class Signature:
    """A class and what its constructor takes."""

    name: str
    summary: str
    """The docstring's first line."""
    bases: frozenset[str]
    """Names of all its base classes."""
    arguments: Mapping[str, Argument]
    constants: Mapping[str, Any]
    """Those of `_CONSTANTS` that it has."""


def read_signatures() -> dict[str, Signature]:
    """Every public class of a file of `dml.losses`, by the file's name."""
    files = {path: ast.parse(path.read_text(encoding="utf-8")) for path in sorted(_FOLDER.rglob("*.py"))}
    nodes = [(path, node) for path, tree in files.items() for node in tree.body]
    classes = {node.name: node for _, node in nodes if isinstance(node, ast.ClassDef)}
    return {
        path.stem: _signature(node, classes)
        for path, node in nodes
        if isinstance(node, ast.ClassDef) and path.parent == _FOLDER
    }


@cache
def read_mining() -> Any:
    """`Mining`, the names of all miners, as `dml.losses.core.miners` has it."""
    tree = ast.parse((_FOLDER / "core" / "miners.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "Mining":
            return eval(ast.unparse(node.value), {"Literal": Literal})
    raise AssertionError("Mining must be assigned in miners.py")


def _signature(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> Signature:
    lineage = list(_lineage(node, classes))
    docstring = ast.get_docstring(node) or ""
    constants = [(name, value) for each in reversed(lineage) for name, value in _constants(each)]
    return Signature(
        node.name,
        docstring.partition("\n")[0],
        frozenset(each.name for each in lineage[1:]),
        dict(_arguments(node, lineage, classes)),
        dict(constants),
    )


def _lineage(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> Iterator[ast.ClassDef]:
    """The class and its base classes in this folder, nearest first."""
    yield node
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in classes:
            yield from _lineage(classes[base.id], classes)


def _constants(node: ast.ClassDef) -> Iterator[tuple[str, Any]]:
    for line in node.body:
        if isinstance(line, ast.Assign | ast.AnnAssign) and line.value is not None:
            name = ast.unparse(line.targets[0] if isinstance(line, ast.Assign) else line.target)
            if name in _CONSTANTS:
                yield name, ast.literal_eval(line.value)


def _arguments(
    node: ast.ClassDef, lineage: Sequence[ast.ClassDef], classes: Mapping[str, ast.ClassDef]
) -> Iterator[tuple[str, Argument]]:
    """Those of the constructor; what it takes as `**options` is found in its base classes."""
    nearest: dict[str, Argument] = {}
    for each in reversed(lineage):
        for name, argument in _own_arguments(each).items():
            said = argument.description or (nearest[name].description if name in nearest else "")
            nearest[name] = replace(argument, description=said)
    wanted = list(_own_arguments(node))
    constructor = _constructor(node)
    options = None if constructor is None else constructor.args.kwarg
    if options is not None and isinstance(options.annotation, ast.Subscript):
        for part in reversed(list(_lineage(classes[ast.unparse(options.annotation.slice)], classes))):
            wanted += [ast.unparse(line.target) for line in part.body if isinstance(line, ast.AnnAssign)]
    return ((name, nearest[name]) for name in wanted)


def _own_arguments(node: ast.ClassDef) -> dict[str, Argument]:
    constructor = _constructor(node)
    if constructor is None:
        return {}
    descriptions = _descriptions(ast.get_docstring(node) or "")
    parts = constructor.args
    placed = [*parts.posonlyargs, *parts.args][1:]
    defaults = [*[None] * (len(placed) - len(parts.defaults)), *parts.defaults, *parts.kw_defaults]
    return {
        part.arg: Argument(
            _evaluated(part.annotation),
            ... if default is None else _evaluated(default),
            descriptions.get(part.arg, ""),
        )
        for part, default in zip([*placed, *parts.kwonlyargs], defaults, strict=True)
    }


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    functions = [line for line in node.body if isinstance(line, ast.FunctionDef)]
    return next((function for function in functions if function.name == "__init__"), None)


def _evaluated(node: ast.expr | None) -> Any:
    """An annotation or a default; a function of one's own cannot be written into a file of settings."""
    mining = read_mining()
    names = {"Annotated": Annotated, "Literal": Literal, "Sequence": Sequence, "math": math}
    names |= {"Mining": mining, "Miner": mining, "Loss": Any}
    return eval(ast.unparse(node) if node is not None else "None", {**vars(dml.arguments), **names})


def _descriptions(docstring: str) -> dict[str, str]:
    """What the `Args` of a docstring say of each."""
    _, _, after = docstring.partition("\nArgs:\n")
    block = after.partition("\n\n")[0]
    found: list[tuple[str, str]] = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", block, re.MULTILINE)
    sentences = {name: re.split(r"\. (?=[A-Z])", " ".join(text.split()))[0] for name, text in found}
    return {name: sentence.rstrip(".") for name, sentence in sentences.items()}
