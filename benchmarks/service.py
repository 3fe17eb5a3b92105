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
from dml.retrieval.gallery import collect_changes, publish_index
from dml.serving.searcher import Searcher

NAME, BATCH = "glyphs", 32
PATIENCE_S = 60
"""After the last swap, for an answer of its model."""
PREPROCESSING = PreprocessingConfig(resize=96, crop=96)


def publish(store: str, dataset: DatasetRef, seed: int) -> str:
    """A version by a model of its own; its fingerprint."""
    config = EncoderConfig(backbone=TorchvisionConfig(name="squeezenet1_1"), dim=128)
    package = save_package(store, Encoder(config, channels=3, seed=seed), PREPROCESSING)
    embeddings = embed(store, package, dataset)
    changes = collect_changes(store, NAME, embeddings)  # what was enrolled is embedded by the new model, too
    ref = build_index(store, NAME, embeddings, IndexConfig(factory="Flat"), changes=changes)
    publish_index(store, ref)
    return ref.embeddings.embedder.fingerprint


def bare(store: str, images: list[bytes], size: int, seconds: float) -> tuple[float, float]:
    """Images a second of a searcher in this process, so many at once; and the CPU time of an image, in ms."""
    searcher = Searcher.open(store, NAME)
    searcher.search(images[:size])
    start, spent, done = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < seconds:
        at = done % (len(images) - size)
        searcher.search(images[at : at + size], k=10)
        done += size
    return done / (time.perf_counter() - start), 1000 * (time.process_time() - spent) / done


@dataclass
class Load:
    """What the clients saw."""

    statuses: Counter[int] = field(default_factory=Counter)
    search_s: list[float] = field(default_factory=list)
    enrol_s: list[float] = field(default_factory=list)
    embedders: Counter[str] = field(default_factory=Counter)
    mixed: int = 0
    failed: Counter[str] = field(default_factory=Counter)


class Connection:
    """HTTP/1.1 over one connection: httpx takes as much CPU time of a request as the service."""

    def __init__(self, address: str) -> None:
        self._host, self._port = address.removeprefix("http://").split(":")
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def post(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection(self._host, int(self._port))
        reader, writer = self._streams
        head = f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        status, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().splitlines()
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        content = await reader.readexactly(int(headers["content-length"]))
        if headers.get("connection") == "close":
            self.close()
        return int(status.split()[1]), headers, content

    def close(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None


async def client(address: str, images: list[str], ended: asyncio.Event, load: Load, seed: int) -> None:
    """A client that sends one request after another."""
    draw, connection = random.Random(seed), Connection(address)
    while not ended.is_set():
        image = {"base64": draw.choice(images)}
        enrols = draw.random() < 0.02
        body = (
            {"identity": f"client {seed}", "images": [image], "ids": [f"{seed}/{draw.random()}"]}
            if enrols
            else {"queries": [{"image": image}], "k": 10}
        )
        path = f"/v1/indexes/{NAME}/{'enrol' if enrols else 'search'}"
        start = time.perf_counter()
        try:
            status, headers, content = await connection.post(path, json.dumps(body).encode())
        except (OSError, EOFError) as error:
            load.failed[type(error).__name__] += 1
            connection.close()
            continue
        load.statuses[status] += 1
        if status == 200:
            (load.enrol_s if enrols else load.search_s).append(time.perf_counter() - start)
            found = json.loads(content)
            load.embedders[found["embedder"]] += 1
            if not enrols:  # by its own model the image finds itself; by another it does not
                load.mixed += found["results"][0]["answers"][0]["similarity"] < 0.999
        elif status in (429, 503):
            await asyncio.sleep(float(headers.get("retry-after", 1)) * draw.random())
    connection.close()


def cpu_s(process: int) -> float:
    """CPU time of a process so far: on a machine with other work it says more than the clock."""
    user, system = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def memory_mb(process: int) -> float:
    """Resident memory of a process."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def run_all(commands: list[list[str]]) -> None:
    """One after another; the load goes on until the last has ended."""
    for words in commands:
        process = await asyncio.create_subprocess_exec(*words)
        if await process.wait():
            raise SystemExit(f"a version could not be published: {' '.join(words)}")


async def run(
    address: str, process: int, images: list[bytes], arguments: argparse.Namespace, swap: list[list[str]]
) -> tuple[Load, list[float]]:
    load, memory, ended = Load(), [], asyncio.Event()
    until = time.perf_counter() + arguments.seconds
    encoded = [base64.b64encode(image).decode() for image in images]
    clients = [
        asyncio.create_task(client(address, encoded, ended, load, seed)) for seed in range(arguments.clients)
    ]
    swaps = asyncio.create_task(run_all(swap))
    for step in range(20):
        await asyncio.sleep(max(until - time.perf_counter(), 0) / (20 - step))
        memory.append(memory_mb(process))
    await swaps
    while len(load.embedders) <= len(swap) and time.perf_counter() < until + PATIENCE_S:
        await asyncio.sleep(0.1)
    memory.append(memory_mb(process))
    ended.set()
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
    parser.add_argument("--encoder", choices=["torch", "onnx"], default="torch", help="of the service")
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
        alone, alone_ms = bare(store, images, 1, min(arguments.seconds, 10))
        batched, batched_ms = bare(store, images, BATCH, min(arguments.seconds, 10))
        words = [sys.executable, "-m", "dml.cli", "serve", "--store", store, "--port", "0", "--json"]
        words += ["--set", f"encoder={arguments.encoder}"]
        words += ["--set", "limits.rate=100000", "--set", "limits.burst=100000"]
        log = Path(folder) / "log"
        with (
            log.open("w") as errors,
            subprocess.Popen(words, stdout=subprocess.PIPE, stderr=errors, text=True) as service,
        ):
            assert service.stdout is not None
            address = json.loads(service.stdout.readline())["address"]
            before = memory_mb(service.pid)
            swap = [
                [sys.executable, "-m", "benchmarks.service", "--publish", store, str(seed)]
                for seed in range(1, arguments.swaps + 1)
            ]
            start, spent_s = time.perf_counter(), cpu_s(service.pid)
            load, memory = asyncio.run(run(address, service.pid, images, arguments, swap))
            spent = time.perf_counter() - start
            spent_s = cpu_s(service.pid) - spent_s
            measured = httpx.get(f"{address}/metrics", timeout=60).text
            service.send_signal(signal.SIGINT)
        failures = "\n".join(line for line in log.read_text().splitlines() if not line.startswith("{"))
    rate = len(load.search_s) / spent
    print(
        f"{arguments.clients} clients for {spent:.0f} s; statuses {dict(load.statuses)}, {dict(load.failed)}"
    )
    print(f"searches: {shown(load.search_s)}; enrolments: {shown(load.enrol_s)}")
    print(
        f"{rate:.1f} images/s; in one process without HTTP {alone:.1f} one by one ({rate / alone:.2f} of it),"
        f" {batched:.1f} in batches of {BATCH} ({rate / batched:.2f} of it)"
    )
    print(
        f"CPU time of an image: {1000 * spent_s / max(sum(load.statuses.values()), 1):.1f} ms in the service,"
        f" {alone_ms:.1f} one by one, {batched_ms:.1f} in batches"
    )
    print(f"means: {means(measured)}")
    print(f"models that answered: {len(load.embedders)}; answers of two models: {load.mixed}")
    print(f"memory, MB: {before:.0f} at the start, then {[round(each) for each in memory[::2]]}")
    if len(load.embedders) != arguments.swaps + 1:
        raise SystemExit(f"{arguments.swaps + 1} models should have answered")
    if load.failed or load.mixed or set(load.statuses) - {200, 429, 503}:
        print(failures[-3000:])
        raise SystemExit("there were answers that should not be")


if __name__ == "__main__":
    main()
