"""Would the tests notice? One expression is changed at a time, and the room's own tests are run.

`make mutate` changes one expression in each file of dml, `make mutate ONLY="dml/losses/*.py" PER_FILE=5` more
in fewer. What no test noticed is printed with its line: there a test is missing, or the change makes no
difference. Exit status 1 when fewer than nine in ten were noticed.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

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
_OPERATORS = dict(_PAIRS) | {second: first for first, second in _PAIRS}
_SECONDS = 300  # a change that makes a loop endless is noticed, too


def mutants(tree: ast.Module) -> Iterator[tuple[int, ast.Module]]:
    """(line, changed copy) of every change: an operator turned, a number one more, a bool or `not` turned."""
    for index, node in enumerate(_expressions(tree)):
        changed = copy.deepcopy(tree)
        if _change(list(_expressions(changed))[index]):
            yield node.lineno, changed


def _expressions(tree: ast.Module) -> Iterator[ast.expr]:
    """Expressions of functions and classes; neither annotations, nor messages, nor a module's constants."""
    for statement in tree.body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            yield from _below(statement)


def _below(node: ast.AST) -> Iterator[ast.expr]:
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


def tests_of(file: Path) -> list[str]:
    """The tests of a file's room, those first that name the module."""
    room = file.relative_to("dml").parts[0]
    tests = sorted((ROOT / "tests" / room).rglob("test_*.py")) or [ROOT / "tests" / f"test_{room}"]
    tests = [test for test in tests if test.exists()]
    tests.sort(key=lambda test: file.stem not in test.read_text())
    return [str(test.relative_to(ROOT)) for test in tests]


class Copy:
    """A copy of the repository in which files are changed and tests are run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
        for name in tracked.stdout.splitlines():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
        data = os.environ.get("DML_TEST_DATA", "../shared/data")
        self._green: dict[tuple[str, ...], bool] = {}
        self.environment = {**os.environ, "PYTHONPATH": str(folder), "DML_TEST_DATA": str(ROOT / data)}

    def is_green(self, tests: list[str]) -> bool:
        """Whether they pass on unchanged files: what fails anyway notices nothing."""
        key = tuple(sorted(tests))
        if key not in self._green:
            self._green[key] = self._passes(tests)
        return self._green[key]

    def notices(self, file: Path, changed: ast.Module) -> bool:
        """Whether a test fails on the changed file."""
        (self.folder / file).write_text(ast.unparse(changed))
        try:
            return not self._passes(tests_of(file))
        finally:
            shutil.copy(ROOT / file, self.folder / file)

    def _passes(self, tests: list[str]) -> bool:
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
        try:
            run = subprocess.run(
                command, cwd=self.folder, env=self.environment, capture_output=True, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            return False
        return run.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="dml/**/*.py", help="files, as a pattern")
    parser.add_argument("--per-file", type=int, default=1, help="changes in each")
    parser.add_argument("--seed", type=int, default=0, help="chooses them")
    wanted = parser.parse_args()
    draw, total, num_noticed = random.Random(wanted.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        copied = Copy(Path(folder))
        for path in sorted(ROOT.glob(wanted.only)):
            file = path.relative_to(ROOT)
            changes, tests = list(mutants(ast.parse(path.read_text()))), tests_of(file)
            if not changes:
                continue
            if not tests or not copied.is_green(tests):
                print(f"no green tests: {file}", flush=True)
                continue
            for line, changed in draw.sample(changes, min(wanted.per_file, len(changes))):
                seen = copied.notices(file, changed)
                total, num_noticed = total + 1, num_noticed + seen
                print(f"{'noticed ' if seen else 'SURVIVED'} {file}:{line}", flush=True)
    print(f"{num_noticed} of {total} noticed")
    return 0 if num_noticed >= 0.9 * total else 1


if __name__ == "__main__":
    sys.exit(main())
