"""What it costs to open a gallery on S3 without a copy of its log: `python -m benchmarks.gallery_on_s3`.

Each transaction enrols one item with a vector. The server is moto's, in a process of its own, whose time is
not counted. A request to a server that is far away also waits for its answer, eight at once.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import boto3
import numpy as np
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.httpsession import URLLib3Session

from dml.retrieval.gallery.log import Entry, timestamp
from dml.retrieval.gallery.merging import TRANSACTIONS, merge_segments
from dml.retrieval.gallery.segment import Logged, Segment
from dml.retrieval.gallery.segments import Segments
from dml.retrieval.gallery.shipped import open_shipped_log

BUCKET, EMBEDDER = "dml-benchmark", "given"
_NOW = -2.0  # the server's clock has whole seconds
_SERVER = """
import logging, sys
from moto.server import ThreadedMotoServer
logging.disable()
server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
sys.stdin.read()
"""


@contextmanager
def serving() -> Iterator[None]:
    """An S3 server with a bucket."""
    with subprocess.Popen(
        [sys.executable, "-c", _SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        for name, value in {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.stdout.readline().strip()}",
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            os.environ[name] = value
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        yield
        server.terminate()


def write_segments(segments: Segments, number: int, dim: int) -> None:
    """As many transactions, each of one enrolment."""
    vectors = np.random.default_rng(0).standard_normal((number, dim)).astype(np.float32)

    def write(row: int) -> None:
        entry = Entry(
            "enrol",
            f"item {row}",
            f"person {row}",
            {"floor": row % 5},
            "0" * 64,
            "me",
            timestamp(),
            vectors[row],
            row + 1,
        )
        change = Logged("entry", entry, EMBEDDER)
        segments.write_new(Segment("0" * 32, row + 1, row + 1, row + 1, (f"{row}",), "", (change,)))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(number)))


def open_log(path: Path, gallery: str, requests: Counter[str]) -> str:
    """What it costs."""
    requests.clear()
    start, cpu = time.perf_counter(), time.process_time()
    log = open_shipped_log(path, gallery, create=False, busy_timeout_s=60)
    assert log is not None
    log.close()
    cpu_s, wall_s = time.process_time() - cpu, time.perf_counter() - start
    return f"{requests.total()} requests, {cpu_s:.1f} s of CPU time, {wall_s:.1f} s"


def count_requests(requests: Counter[str]) -> None:
    """Count what every client of this process sends from now on, by method."""
    send = URLLib3Session.send

    def counted(session: URLLib3Session, request: AWSPreparedRequest) -> AWSResponse:
        requests.update([request.method])
        return send(session, request)

    URLLib3Session.send = counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--transactions", type=int, nargs="+", default=[1000, 10000])
    parser.add_argument("--dim", type=int, default=128)
    arguments = parser.parse_args()
    requests: Counter[str] = Counter()
    with serving(), tempfile.TemporaryDirectory() as folder:
        count_requests(requests)
        for number in arguments.transactions:
            gallery = f"s3://{BUCKET}/store/galleries/of-{number}"
            write_segments(Segments(gallery), number, arguments.dim)
            path = Path(folder, f"of-{number}")
            print(f"{number} transactions: {open_log(path / 'before' / 'log.sqlite', gallery, requests)}")
            requests.clear()
            start = time.perf_counter()
            merged = merge_segments(Segments(gallery), older_than_s=_NOW)
            merge_segments(Segments(gallery), older_than_s=_NOW)  # which empties those
            print(
                f"merging {len(merged) * TRANSACTIONS}: {requests.total()} requests, "
                f"{time.perf_counter() - start:.1f} s"
            )
            print(f"merged: {open_log(path / 'after' / 'log.sqlite', gallery, requests)}")


if __name__ == "__main__":
    main()
