"""Every benchmark of this folder, one after the other, but those that take an hour."""

import subprocess
import sys
from pathlib import Path

_LONG = ("equal_budget",)

for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
    if path.stem in _LONG:
        print(f"\n=== {path.stem}: an hour, so only when asked for by name ===", flush=True)
        continue
    print(f"\n=== {path.stem} ===", flush=True)
    subprocess.run([sys.executable, "-m", f"benchmarks.{path.stem}"], check=True)
