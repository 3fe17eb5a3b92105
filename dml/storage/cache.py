"""The local cache folder, for copies that can be made again."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Local disk for copies that can be made again: `DML_CACHE`, else `~/.cache/dml`."""
    return Path(os.environ.get("DML_CACHE") or Path.home() / ".cache" / "dml")
