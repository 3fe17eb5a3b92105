"""That what a verb prints with `--json` is the type which docs/json.md says."""

import importlib.util
import json
from collections.abc import Sequence
from functools import cache, reduce
from operator import or_
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import TypeAdapter

DOCS = Path(__file__).parents[1] / "docs"


def load_hook(name: str) -> ModuleType:
    """A hook of MkDocs in docs/."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def declared_types() -> dict[str, Any]:
    """Verb to the types of its answer; most have one."""
    return load_hook("answers").verbs()


def require_declared_type(words: Sequence[str], answer: dict[str, Any]) -> None:
    """An answer is of its verb's type, and nothing is lost on the way; or an error or help alone.

    Args:
        words: as they are typed after `dml`.
        answer: the object that was printed.
    """
    if answer.keys() in ({"error"}, {"help"}):
        assert isinstance(next(iter(answer.values())), str)
        return
    verbs = declared_types()
    plain = [word for word in words if not word.startswith("-")]
    kinds = verbs.get(" ".join(plain[:2])) or verbs[plain[0]]
    read = TypeAdapter(reduce(or_, kinds)).validate_json(json.dumps(answer))
    assert json.loads(read.model_dump_json()) == answer
