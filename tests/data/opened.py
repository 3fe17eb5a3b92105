"""Which files of a source a test has opened."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_opened: list[str] | None = None


def _note(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str):
        _opened.append(arguments[0])


sys.addaudithook(_note)


@contextmanager
def files_opened(below: Path) -> Iterator[list[str]]:
    """The paths of the files below a folder that this process opens meanwhile."""
    global _opened
    _opened, found = [], []
    try:
        yield found
        found += [path for path in _opened if path.startswith(f"{below}/")]
    finally:
        _opened = None
