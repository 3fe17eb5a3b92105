"""What the service costs: `python -m benchmarks.service [--clients 1000] [--seconds 30] [--swaps 0]`.

A real `dml serve` process over drawn characters, and clients that each wait for their answer before they ask
again: searches by image, and an enrolment in fifty. Beside it the same encoder and searcher in one process,
image by image and in batches, so that what HTTP costs shows. With `--swaps` a new version is
published that many times meanwhile. It prints statuses, p50 and p99, images a second, and the memory of the
process over time; it fails where an answer is neither 200 nor a clean 429 or 503, or is of two models.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np

from dml.config import EncoderConfig, IndexConfig, IngestConfig, PreprocessingConfig, TorchvisionConfig
from dml.data.dataset import list_datasets, read_images
from dml.data.ingest import ingest
from dml.embedding.embed import embed
from dml.models.encoder import Encoder
from dml.models.package import save_package
from dml.refs import DatasetRef
from dml.retrieval.build import build_index
from dml.retrieval.index import publish_index
from dml.serving.searcher import Searcher

NAME, BATCH = "glyphs", 32
PREPROCESSING = PreprocessingConfig(resize=96, crop=96)


def publish(store: str, dataset: DatasetRef, seed: int) -> str:
    """A version by a model of its own; its fingerprint."""
    config = EncoderConfig(backbone=TorchvisionConfig(name="squeezenet1_1"), dim=128)
    package = save_package(store, Encoder(config, channels=3, seed=seed), PREPROCESSING)
    ref = build_index(store, NAME, embed(store, package, dataset), IndexConfig(factory="Flat"))
    publish_index(store, ref)
    return ref.embeddings.embedder.fingerprint


def rate_of_bare(store: str, images: list[bytes], seconds: float) -> tuple[float, float]:
    """Images a second of a searcher in this process: one by one, and in batches."""
    searcher = Searcher.open(store, NAME)
    searcher.search(images[:BATCH])
    rates = []
    for size in (1, BATCH):
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            at = done % (len(images) - size)
            searcher.search(images[at : at + size], k=10)
            done += size
        rates.append(done / (time.perf_counter() - start))
    return rates[0], rates[1]


@dataclass
class Load:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    search_s: list[float] = field(default_factory=list)
    enrol_s: list[float] = field(default_factory=list)
    embedders: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    failed: Counter[str] = field(default_factory=Counter)


async def client(http: httpx.AsyncClient, images: list[bytes], until: float, load: Load, seed: int) -> None:
    """One who asks, waits for the answer, and asks again."""
    draw = random.Random(seed)
    while time.perf_counter() < until:
        image = {"base64": base64.b64encode(draw.choice(images)).decode()}
        enrols = draw.random() < 0.02
        body = (
            {"identity": f"client {seed}", "images": [image], "ids": [f"{seed}/{draw.random()}"]}
            if enrols
            else {"queries": [{"image": image}], "k": 10}
        )
        start = time.perf_counter()
        try:
            answer = await http.post(f"/v1/indexes/{NAME}/{'enrol' if enrols else 'search'}", json=body)
        except httpx.HTTPError as error:
            load.failed[type(error).__name__] += 1
            continue
        load.statuses[answer.status_code] += 1
        if answer.status_code == 200:
            (load.enrol_s if enrols else load.search_s).append(time.perf_counter() - start)
            found = answer.json()
            load.embedders[found["embedder"]] += 1
            if not enrols:  # by its own model the image finds itself; by another it does not
                load.mixed += found["results"][0]["answers"][0]["similarity"] < 0.999
        elif answer.status_code in (429, 503):
            await asyncio.sleep(float(answer.headers.get("Retry-After", 1)) * draw.random())


def memory_mb(process: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def run(
    address: str, process: int, images: list[bytes], arguments: argparse.Namespace, swap: list[list[str]]
) -> tuple[Load, list[float]]:
    load, memory = Load(), []
    until = time.perf_counter() + arguments.seconds
    limits = httpx.Limits(max_connections=arguments.clients, max_keepalive_connections=arguments.clients)
    async with httpx.AsyncClient(base_url=address, limits=limits, timeout=120) as http:
        clients = [
            asyncio.create_task(client(http, images, until, load, seed)) for seed in range(arguments.clients)
        ]
        for step in range(20):
            await asyncio.sleep(max(until - time.perf_counter(), 0) / (20 - step))
            memory.append(memory_mb(process))
            if swap and step % max(20 // (len(swap) + 1), 1) == 0:
                await asyncio.create_subprocess_exec(*swap.pop(0))
        await asyncio.gather(*clients)
    return load, memory


def means(metrics: str) -> str:
    """Of the histograms of stages and batches that `/metrics` has."""
    values = dict(line.rsplit(" ", 1) for line in metrics.splitlines() if not line.startswith("#"))

    def mean(name: str, label: str = "") -> float:
        return float(values[f"{name}_sum{label}"]) / float(values[f"{name}_count{label}"])

    stages = {
        stage: mean("dml_stage_seconds", f'{{stage="{stage}"}}') for stage in ("decode", "encode", "search")
    }
    said = ", ".join(f"{stage} {1000 * seconds:.0f} ms" for stage, seconds in stages.items())
    return f"{said}, {mean('dml_encode_batch_images'):.1f} images a batch"


def shown(seconds: list[float]) -> str:
    if not seconds:
        return "none"
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return f"{len(seconds)} answered, p50 {p50:.0f} ms, p99 {p99:.0f} ms"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--swaps", type=int, default=0)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument(
        "--publish", nargs=2, metavar=("STORE", "SEED"), help="of a swap: only publish a version"
    )
    arguments = parser.parse_args()
    if arguments.publish is not None:
        store, seed = arguments.publish
        publish(store, list_datasets(store)[0], int(seed))
        return
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        source = f"glyphs:classes={arguments.rows // 10},per_class=10"
        dataset = ingest(IngestConfig(name=NAME, source=source), store)
        publish(store, dataset, 0)
        images = read_images(dataset, list(range(min(dataset.rows, 500))))
        alone, batched = rate_of_bare(store, images, min(arguments.seconds, 10))
        words = [sys.executable, "-m", "dml.cli", "serve", "--store", store, "--port", "0", "--json"]
        words += ["--set", "limits.rate=100000", "--set", "limits.burst=100000"]
        with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as service:
            assert service.stdout is not None
            address = json.loads(service.stdout.readline())["address"]
            before = memory_mb(service.pid)
            swap = [
                [sys.executable, "-m", "benchmarks.service", "--publish", store, str(seed)]
                for seed in range(1, arguments.swaps + 1)
            ]
            start = time.perf_counter()
            load, memory = asyncio.run(run(address, service.pid, images, arguments, swap))
            spent = time.perf_counter() - start
            measured = httpx.get(f"{address}/metrics", timeout=60).text
            service.send_signal(signal.SIGINT)
    rate = len(load.search_s) / spent
    print(
        f"{arguments.clients} clients for {spent:.0f} s; statuses {dict(load.statuses)}, {dict(load.failed)}"
    )
    print(f"searches: {shown(load.search_s)}; enrolments: {shown(load.enrol_s)}")
    print(
        f"{rate:.1f} images/s; in one process without HTTP {alone:.1f} one by one ({rate / alone:.2f} of it),"
        f" {batched:.1f} in batches of {BATCH} ({rate / batched:.2f} of it)"
    )
    print(f"means: {means(measured)}")
    print(f"models that answered: {len(load.embedders)}; answers of two models: {load.mixed}")
    print(f"memory, MB: {before:.0f} at the start, then {[round(each) for each in memory[::2]]}")
    if load.failed or load.mixed or set(load.statuses) - {200, 429, 503}:
        raise SystemExit("there were answers that should not be")


if __name__ == "__main__":
    main()
