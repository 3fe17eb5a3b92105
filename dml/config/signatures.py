"""Constructor arguments of the losses, parsed from their source, since importing them takes 1.8 s (torch)."""

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
    """`...` if the argument is required."""
    description: str
    """The first sentence of its entry in the docstring."""


@dataclass(frozen=True)
class Signature:
    """A class and the arguments of its constructor."""

    name: str
    summary: str
    """The docstring's first line."""
    bases: frozenset[str]
    """Names of all its base classes."""
    arguments: Mapping[str, Argument]
    constants: Mapping[str, Any]
    """The class attributes listed in `_CONSTANTS`."""


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
    """`Mining`, the names of all miners, from `dml.losses.core.miners`."""
    tree = ast.parse((_FOLDER / "core" / "miners.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "Mining":
            return eval(ast.unparse(node.value), {"Literal": Literal})
    raise AssertionError("Mining must be assigned in miners.py")


def _signature(node: ast.ClassDef, classes: Mapping[str, ast.ClassDef]) -> Signature:
    lineage = list(_lineage(node, classes))
    docstring = ast.get_docstring(node) or ""
    constants = [constant for base in reversed(lineage) for constant in _constants(base)]
    return Signature(
        node.name,
        docstring.partition("\n")[0],
        frozenset(base.name for base in lineage[1:]),
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
    """The constructor's arguments; those passed as `**options` are looked up in the base classes."""
    nearest: dict[str, Argument] = {}
    for base in reversed(lineage):
        for name, argument in _constructor_arguments(base).items():
            description = argument.description or (nearest[name].description if name in nearest else "")
            nearest[name] = replace(argument, description=description)
    names = list(_constructor_arguments(node))
    constructor = _constructor(node)
    options = None if constructor is None else constructor.args.kwarg
    if options is not None and isinstance(options.annotation, ast.Subscript):
        for part in reversed(list(_lineage(classes[ast.unparse(options.annotation.slice)], classes))):
            names += [ast.unparse(line.target) for line in part.body if isinstance(line, ast.AnnAssign)]
    return ((name, nearest[name]) for name in names)


def _constructor_arguments(node: ast.ClassDef) -> dict[str, Argument]:
    constructor = _constructor(node)
    if constructor is None:
        return {}
    descriptions = _descriptions(ast.get_docstring(node) or "")
    parts = constructor.args
    positional = [*parts.posonlyargs, *parts.args][1:]
    defaults = [*[None] * (len(positional) - len(parts.defaults)), *parts.defaults, *parts.kw_defaults]
    return {
        part.arg: Argument(
            _evaluate(part.annotation),
            ... if default is None else _evaluate(default),
            descriptions.get(part.arg, ""),
        )
        for part, default in zip([*positional, *parts.kwonlyargs], defaults, strict=True)
    }


def _constructor(node: ast.ClassDef) -> ast.FunctionDef | None:
    functions = [line for line in node.body if isinstance(line, ast.FunctionDef)]
    return next((function for function in functions if function.name == "__init__"), None)


def _evaluate(node: ast.expr | None) -> Any:
    """Evaluate an annotation or a default. `Miner` excludes user functions, which a file cannot hold."""
    mining = read_mining()
    names = {"Annotated": Annotated, "Literal": Literal, "Sequence": Sequence, "math": math}
    names |= {"Mining": mining, "Miner": mining, "Loss": Any}
    return eval(ast.unparse(node) if node is not None else "None", {**vars(dml.arguments), **names})


def _descriptions(docstring: str) -> dict[str, str]:
    """The first sentence of each entry under `Args` in a docstring."""
    _, _, after = docstring.partition("\nArgs:\n")
    block = after.partition("\n\n")[0]
    entries: list[tuple[str, str]] = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", block, re.MULTILINE)
    sentences = {name: re.split(r"\. (?=[A-Z])", " ".join(text.split()))[0] for name, text in entries}
    return {name: sentence.rstrip(".") for name, sentence in sentences.items()}
