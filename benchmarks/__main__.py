"""Every benchmark of this folder, one after the other, but those that take an hour.

`--gpu`: what there is for a GPU, alone; `python -m benchmarks --gpu --help` says more.
"""

import subprocess
import sys
from pathlib import Path

_LONG = ("equal_budget",)
_ELSEWHERE = ("gpu",)


def main() -> None:
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        if path.stem in _ELSEWHERE:
            continue
        if path.stem in _LONG:
            print(f"\n=== {path.stem}: an hour, so only when asked for by name ===", flush=True)
            continue
        print(f"\n=== {path.stem} ===", flush=True)
        subprocess.run([sys.executable, "-m", f"benchmarks.{path.stem}"], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--gpu"]:
        from benchmarks import gpu

        del sys.argv[1]
        gpu.main()
    else:
        main()
