"""What building an index takes: `python -m benchmarks.build_memory [--rows 1000000] [--factory auto ...]`.

Peak memory of `build_index`, in a process of its own, beside the size of the vectors and of the index file.
Private memory is what the process cannot give back. Resident memory counts pages of mapped files too, which
the system drops when it needs them. The target: private memory of at most half the vectors, plus the index.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.import_vectors import write_vectors
from dml.embedding.external import import_vectors

BUILD = """
import re, sys, threading, time

def resident(kind):
    return int(re.findall(kind + r":\\s+(\\d+)", open("/proc/self/status").read())[0])

from dml.config import IndexConfig
from dml.embedding.imported import find_vectors
from dml.retrieval.build import build_index
import faiss, pyarrow.parquet
before, peak, ended = resident("RssAnon"), [0], threading.Event()

def watch():
    while not ended.wait(0.01):
        peak[0] = max(peak[0], resident("RssAnon"))

threading.Thread(target=watch, daemon=True).start()
start, cpu = time.perf_counter(), time.process_time()
vectors = find_vectors(sys.argv[1], "vectors")
ref = build_index(sys.argv[1], "vectors", vectors, IndexConfig(factory=sys.argv[2]))
seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
ended.set()
print(peak[0] - before, resident("VmHWM"), seconds, cpu, f"{ref.recall:.3f}", ref.factory, ref.uri)
"""
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--factory", nargs="+", default=["auto"])
    options = parser.parse_args()
    size = options.rows * options.dim * 4 / MIB
    with tempfile.TemporaryDirectory() as folder:
        path, store = Path(folder) / "vectors.npy", str(Path(folder) / "store")
        write_vectors(path, options.rows, options.dim)
        import_vectors(store, "vectors", path)
        print(f"{options.rows} x {options.dim}: vectors {size:.0f} MiB", flush=True)
        for factory in options.factory:
            start = time.perf_counter()
            done = subprocess.run(
                [sys.executable, "-c", BUILD, store, factory], stdout=subprocess.PIPE, text=True, check=True
            )
            private, most, _, cpu, recall, factory_, uri = done.stdout.split()
            index = (Path(uri) / "index.faiss").stat().st_size / MIB
            if not (Path(uri) / "vectors.faiss").exists():
                index = 0.0  # the file of vectors is it, which is never in memory
            over = (int(private) / 1024 - index) / size
            print(
                f"  {factory_:24} index {index:6.0f} MiB  private peak {int(private) / 1024:6.0f} MiB "
                f"= index + {over:.2f} x vectors  resident {int(most) / 1024:6.0f} MiB  recall@10 {recall}  "
                f"{time.perf_counter() - start:.0f} s, CPU {float(cpu):.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
