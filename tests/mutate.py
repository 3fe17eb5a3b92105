"""Would the tests notice? One expression is changed at a time, and the room's own tests are run.

`make mutate` changes one expression in each file of dml, `make mutate ONLY="dml/losses/*.py" PER_FILE=5` more
in fewer, each time the same with the same `SEED`. What no test noticed is printed with its line: there a test
is missing, the code is not needed, or the change makes no difference. A table of the rooms ends it, with exit
status 1 when fewer than nine in ten were noticed. Files are changed in a copy, never in this checkout.
"""

import argparse
import ast
import contextlib
import copy
import importlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
_PAIRS: list[tuple[type, type]] = [
    (ast.Lt, ast.LtE),
    (ast.Gt, ast.GtE),
    (ast.Eq, ast.NotEq),
    (ast.Is, ast.IsNot),
    (ast.In, ast.NotIn),
    (ast.Add, ast.Sub),
    (ast.Mult, ast.Div),
    (ast.And, ast.Or),
]
_IMPORTED = ("PIL.Image", "pyarrow.dataset", "pyarrow.parquet", "pydantic", "torch")
_UNNOTICEABLE = {"strict", "alpha", "fontsize", "labelsize", "length", "linewidth", "linewidths", "zorder"}
"""Keywords: zip's check, which no correct program notices, and the looks of a chart's lines and words."""
_MOST_S = 1800  # a changed loop may be endless; pytest's own limit ends most
_OPERATORS = dict(_PAIRS) | {second: first for first, second in _PAIRS}


def mutants(tree: ast.Module) -> list[int]:
    """Which expressions can be changed: an operator turned, a number one more, a bool or `not` turned."""
    return [index for index, node in enumerate(list(_expressions(copy.deepcopy(tree)))) if _change(node)]


def mutant(tree: ast.Module, index: int) -> tuple[str, ast.Module]:
    """("line: before -> after", the changed copy) of one of them."""
    changed = copy.deepcopy(tree)
    node = list(_expressions(changed))[index]
    before = ast.unparse(node)
    _change(node)
    return f"{node.lineno}: {before} -> {ast.unparse(node)}", changed


def _expressions(tree: ast.Module) -> Iterator[ast.expr]:
    """Expressions of functions and classes; not annotations, messages and a module's constants."""
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield from _below(statement)


def _below(node: ast.AST) -> Iterator[ast.expr]:
    if isinstance(node, ast.keyword) and node.arg in _UNNOTICEABLE:
        return
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "exc", "msg") or isinstance(
            node, ast.JoinedStr
        ):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.expr):
                yield child
            if isinstance(child, ast.AST):
                yield from _below(child)


def _change(node: ast.expr) -> bool:
    """Change an expression in place; False where there is nothing to change."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _OPERATORS:
        node.ops[0] = _OPERATORS[type(node.ops[0])]()
    elif isinstance(node, ast.BinOp | ast.BoolOp) and type(node.op) in _OPERATORS:
        node.op = _OPERATORS[type(node.op)]()
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        node.value = not node.value
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        node.value += 1
    else:
        return False
    return True


def room_of(file: Path) -> str:
    """The folder below dml; of a file that is in none, its own name."""
    return Path(file.relative_to("dml").parts[0]).stem


class Copy:
    """A copy of the repository in which files are changed and tests are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in tracked.stdout.splitlines():
            if (ROOT / name).exists():  # not removed a moment ago
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / name, folder / name)
        self._tests = sorted((folder / "tests").rglob("test_*.py"))
        self._passing, self._failing = set[str](), set[str]()  # on unchanged files
        data = ROOT / os.environ.get("DML_TEST_DATA", "../shared/data")
        os.environ |= {"PYTHONPATH": str(folder), "DML_TEST_DATA": str(data)}

    def tests_of(self, file: Path) -> tuple[list[str], list[str]]:
        """The tests of a file's room, or else those that import the module: that name it, and the others."""
        room, module = room_of(file), ".".join(file.with_suffix("").parts)
        all_tests = [test.relative_to(self.folder) for test in self._tests]
        tests = [
            test
            for test in all_tests
            if test.parts[1] == room  # its folder, or files beside the folders, or one of its name elsewhere
            or (len(test.parts) == 2 and test.stem.startswith(f"test_{room}"))
            or test.stem == f"test_{room}"
        ]
        imports = re.compile(rf"from {module} import|from dml import .*\b{file.stem}\b")
        tests = tests or [test for test in all_tests if imports.search(self._text(test))]
        named = [str(test) for test in tests if file.stem in self._text(test)]
        return named, [str(test) for test in tests if str(test) not in named]

    def _text(self, file: Path) -> str:
        return (self.folder / file).read_text(encoding="utf-8")

    def notices(self, file: Path, changed: ast.Module) -> bool:
        """Whether a test fails on the changed file, or no longer ends, that passes on the unchanged one."""
        text = self._text(file)
        for tests in filter(None, self.tests_of(file)):
            while True:
                (self.folder / file).write_text(ast.unparse(changed))
                try:
                    failed = self._first_failed(tests)
                finally:
                    (self.folder / file).write_text(text)
                if failed is None:
                    break
                if failed in self._passing or self._first_failed([failed]) is None:
                    self._passing.add(failed)
                    return True
                if failed in self._failing:
                    sys.exit(f"{failed} must be importable; it is not. Mend it first.")
                print(f"fails on unchanged files, too: {failed}", flush=True)
                self._failing.add(failed)
        return False

    def _first_failed(self, tests: list[str]) -> str | None:
        """The first test that fails; run in a fork of this process, which has imported what takes long."""
        started = self.folder / ".started"
        started.write_text(tests[0])
        run = get_context("fork").Process(target=_run, args=(self.folder, tests, self._failing))
        run.start()
        try:
            run.join(_MOST_S)
        finally:  # also where this process is asked to end
            with contextlib.suppress(ProcessLookupError):  # it, and what its tests started
                os.killpg(run.pid or 0, signal.SIGKILL)
            run.join()
        return None if run.exitcode == 0 else started.read_text()


class _Started:
    """For pytest: keeps which test is running."""

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        Path(".started").write_text(nodeid)


def _run(folder: Path, tests: list[str], failing: set[str]) -> None:
    os.setsid()
    os.chdir(folder)
    with open(os.devnull, "r+b") as nowhere:
        for stream in range(3):
            os.dup2(nowhere.fileno(), stream)
    sys.path.insert(0, str(folder))
    for name in [name for name in sys.modules if name.partition(".")[0] in ("dml", "flows", "tests")]:
        del sys.modules[name]  # of this checkout
    options = ["-x", "-q", "-p", "no:cacheprovider", *(f"--deselect={test}" for test in failing)]
    code = pytest.main([*options, *tests], plugins=[_Started()])
    sys.exit(0 if code == pytest.ExitCode.NO_TESTS_COLLECTED else code)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", default=["dml/**/*.py"], help="files, as patterns")
    parser.add_argument("--per-file", type=int, default=1, help="changes in each")
    parser.add_argument("--seed", type=int, default=0, help="chooses them")
    wanted = parser.parse_args()
    for module in _IMPORTED:
        importlib.import_module(module)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the copy and the tests that run go, too
    totals, noticed = Counter[str](), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        copied = Copy(Path(folder))
        paths = {path for only in wanted.only for path in copied.folder.glob(only)}
        for file in sorted(path.relative_to(copied.folder) for path in paths):
            tree = ast.parse((copied.folder / file).read_text())
            changes = mutants(tree)
            if changes and not any(copied.tests_of(file)):
                print(f"no tests: {file}", flush=True)
            draw = random.Random(f"{wanted.seed} {file.as_posix()}")  # whichever other files are asked for
            for index in draw.sample(changes, min(wanted.per_file, len(changes))):
                line, changed = mutant(tree, index)
                seen = copied.notices(file, changed)
                totals[room_of(file)] += 1
                noticed[room_of(file)] += seen
                print(f"{'noticed ' if seen else 'SURVIVED'} {file}:{line}", flush=True)
    for room in totals:
        print(f"{room:16} {noticed[room]:4} of {totals[room]:4}")
    print(f"{noticed.total()} of {totals.total()} noticed")
    return 0 if noticed.total() >= 0.9 * totals.total() else 1


if __name__ == "__main__":
    sys.exit(main())
