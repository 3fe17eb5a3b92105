"""What ready vectors cost: `python -m benchmarks.import_vectors [--rows 1000000] [--dim 512]`.

Seconds and peak memory (on Linux) of importing a .npy file of float32 vectors and of indexing it, each in a
process of its own, so that neither counts the other's memory; beside them autofaiss on the same file, where
it is installed.
"""

import argparse
import importlib.util
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROWS_AT_A_TIME = 1 << 15
IMPORT = """
from pathlib import Path
from dml.embedding.external import import_vectors
import_vectors(sys.argv[1], "vectors", Path(sys.argv[2]))
"""
INDEX = """
from dml.config import IndexConfig
from dml.embedding.imported import find_vectors
from dml.retrieval.build import build_index
vectors, config = find_vectors(sys.argv[1], "vectors"), IndexConfig(factory=sys.argv[3])
ref = build_index(sys.argv[1], "vectors", vectors, config)
print(f"{ref.factory}, recall@10 {ref.recall:.3f}", file=sys.stderr)
"""
AUTOFAISS = """
from pathlib import Path
from autofaiss import build_index
Path(sys.argv[1]).mkdir()
build_index(
    embeddings=str(Path(sys.argv[2]).parent), index_path=sys.argv[1] + "/knn.index",
    index_infos_path=sys.argv[1] + "/infos.json", metric_type="ip", file_format="npy",
)
"""
MEASURED = """
import re, resource, sys
{program}
used = resource.getrusage(resource.RUSAGE_SELF)
(peak,) = re.findall(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())
print(used.ru_utime + used.ru_stime, peak)
"""


def write_vectors(path: Path, rows: int, dim: int) -> None:
    """Around as many centers as Faiss' lists have use for, so that an inverted file has something to find."""
    generator = np.random.default_rng(0)
    centers = generator.standard_normal((1000, dim), dtype=np.float32)
    array = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(rows, dim))
    for start in range(0, rows, ROWS_AT_A_TIME):
        block = array[start : start + ROWS_AT_A_TIME]
        chosen = centers[generator.integers(0, len(centers), len(block))]
        block[:] = chosen + generator.standard_normal(block.shape, dtype=np.float32)


def measure(name: str, program: str, *arguments: str) -> None:
    """Run a program in a process of its own; print its seconds, on the clock and of the CPU, and peak memory.

    Not `ru_maxrss`, in which a new process begins with its parent's.
    """
    command = [sys.executable, "-c", MEASURED.format(program=program), *arguments]
    start = time.perf_counter()
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - start
    cpu, peak = map(float, done.stdout.splitlines()[-1].split())
    print(f"  {name:10} {seconds:8.1f} s  CPU {cpu:8.1f} s  peak {peak / 2**20:6.2f} GiB", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--factory", default="auto", help="of the index")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "vectors").mkdir()
        path = Path(folder) / "vectors" / "vectors.npy"
        write_vectors(path, options.rows, options.dim)
        size = path.stat().st_size / 2**30
        print(f"{options.rows} x {options.dim}, {size:.2f} GiB of float32, {platform.machine()}", flush=True)
        store = str(Path(folder) / "store")
        measure("import", IMPORT, store, str(path))
        measure("index", INDEX, store, str(path), options.factory)
        if importlib.util.find_spec("autofaiss") is None:
            print("  autofaiss is not installed, and is not measured")
        else:
            measure("autofaiss", AUTOFAISS, str(Path(folder) / "autofaiss"), str(path))


if __name__ == "__main__":
    main()
