"""What a query costs: `python -m benchmarks.search [--rows 2000] [--queries 200] [--processes 5]`.

Drawn characters, embedded by untrained encoders, in a store of its own. In an open `Searcher`, one image at a
time: milliseconds from a file's bytes to answers, of the encoder alone, and with a filter; images a second in
batches. On the command line: CPU seconds of a whole `dml search` process, so that neighbours do not count,
beside those of importing the libraries that such a package needs.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from dml.config import (
    BackboneConfig,
    Conv4Config,
    EncoderConfig,
    IndexConfig,
    IngestConfig,
    PreprocessingConfig,
    TimmConfig,
    TorchvisionConfig,
)
from dml.data.dataset import read_images
from dml.data.ingest import ingest
from dml.embedding.embed import embed
from dml.models.encoder import Encoder
from dml.models.package import save_package
from dml.retrieval.build import build_index
from dml.retrieval.index import publish_index
from dml.serving.searcher import Searcher

BACKBONES: dict[str, tuple[BackboneConfig, str]] = {
    "conv4": (Conv4Config(), "import torch, faiss, pyarrow"),
    "squeezenet1_1": (TorchvisionConfig(name="squeezenet1_1"), "import torch, faiss, pyarrow, torchvision"),
    "resnet18 of timm": (TimmConfig(name="resnet18"), "import torch, faiss, pyarrow, timm"),
}
BATCH = 64


def seconds(function: Callable[[], object], times: int) -> list[float]:
    """Of each of several calls."""
    measured = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        measured.append(time.perf_counter() - start)
    return measured


def percentiles(values: list[float]) -> str:
    p50, p95 = np.percentile(np.array(values), [50, 95])
    return f"p50 {p50:8.2f}  p95 {p95:8.2f}"


def measure(folder: Path, name: str, rows: int, queries: int, processes: int) -> None:
    backbone, imports = BACKBONES[name]
    store = str(folder / "store")
    config = IngestConfig(name="glyphs", source=f"glyphs:classes={max(rows // 10, 2)},per_class=10")
    dataset = ingest(config, store)
    grey = PreprocessingConfig(color="L", resize=28, crop=28, mean=(0.5,), std=(0.5,))
    small = name == "conv4"
    preprocessing = grey if small else PreprocessingConfig(resize=96, crop=96)
    encoder = Encoder(EncoderConfig(backbone=backbone, dim=64), channels=preprocessing.channels)
    table = embed(store, save_package(store, encoder, preprocessing), dataset)
    publish_index(store, build_index(store, "glyphs", table, IndexConfig()))
    images = read_images(dataset, np.random.default_rng(0).integers(0, dataset.rows, queries).tolist())

    opening = seconds(lambda: Searcher.open(store), 3)
    searcher = Searcher.open(store)
    searcher.search(images[:1])
    package = searcher.package
    each = iter(images * 3)
    print(f"\n{name}, {dataset.rows} items; opened again in {min(opening) * 1e3:.0f} ms")
    alone = [value * 1e3 for value in seconds(lambda: package.embed([next(each)]), queries)]
    whole = [value * 1e3 for value in seconds(lambda: searcher.search([next(each)]), queries)]
    where = "script = 'Latin'"
    narrow = [value * 1e3 for value in seconds(lambda: searcher.search([next(each)], where=where), queries)]
    print(f"  ms, encoder alone       {percentiles(alone)}")
    print(f"  ms, open searcher       {percentiles(whole)}")
    print(f"  ms, with a filter       {percentiles(narrow)}")
    (batch,) = seconds(lambda: searcher.search(images[:BATCH]), 1)
    print(f"  images/s, batches of {BATCH} {len(images[:BATCH]) / batch:6.0f}")

    query = folder / "query.png"
    query.write_bytes(images[0])
    command = [sys.executable, "-m", "dml.cli", "search", str(query), "--store", store, "--json"]
    print(f"  CPU s, `dml search`     {percentiles(cpu_seconds(command, processes))}")
    floor = cpu_seconds([sys.executable, "-c", imports], processes)
    print(f"  CPU s, the imports      {percentiles(floor)}    {imports}", flush=True)


def cpu_seconds(command: list[str], times: int) -> list[float]:
    """Of each of several processes, user and system."""
    measured = []
    for _ in range(times):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        measured.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=200)
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--backbones", nargs="+", default=list(BACKBONES), choices=list(BACKBONES))
    arguments = parser.parse_args()
    load = f"load {os.getloadavg()[0]:.1f}"
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, {load}")
    for name in arguments.backbones:
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), name, arguments.rows, arguments.queries, arguments.processes)


if __name__ == "__main__":
    main()
