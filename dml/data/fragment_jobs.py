"""The run of fragment jobs: jobs in, their results out, by threads of this process or by Ray.

The results have the same bytes, whoever makes them.
"""

import os
import pickle
import socket
import threading
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any

from dml.cluster import quiet_ray_data, ray_session
from dml.data.fragment import FragmentJob, FragmentResult, make_fragment
from dml.data.reach import find_readable_image, require_missing_locally, require_reach
from dml.errors import DmlError
from dml.progress import Ticker

# Ray takes about 12 s to start on 2 cores; two threads process this many small images in that time.
_SMALL_SOURCE_ROWS = 25_000
OnProgress = Callable[[int, int], None]
"""Called with (fragments done, total fragments)."""


def run_jobs(
    jobs: Sequence[FragmentJob],
    num_workers: int | None,
    ticker: Ticker,
    progress: OnProgress | None,
) -> list[FragmentResult]:
    """Make the fragments of all jobs.

    Args:
        jobs: of one source.
        num_workers: 1 for threads of this process, more for Ray; None to choose by the number of images.
        ticker: of the running stage.
        progress: called after each fragment.

    Returns:
        One result a job, by number.

    Raises:
        MissingArtifact: a worker's machine cannot read the source or write to the store.
        DmlError: the storage failed, or a fragment to copy from is damaged.
    """
    num_samples = sum(len(job.samples) for job in jobs)
    is_local = not jobs or num_workers == 1 or (num_workers is None and num_samples < _SMALL_SOURCE_ROWS)
    generator = _make_with_threads(jobs, ticker) if is_local else _make_with_ray(jobs, num_workers, ticker)
    results = []
    with closing(generator):
        for result in generator:
            results.append(result)
            if progress is not None:
                progress(len(results), len(jobs))
    return sorted(results)


class _Stopped(Exception):
    """Ends the threads of an ingest that was interrupted or has failed."""


def _make_with_threads(jobs: Sequence[FragmentJob], ticker: Ticker) -> Generator[FragmentResult]:
    stopping = threading.Event()

    def on_sample() -> None:
        if stopping.is_set():
            raise _Stopped
        ticker.count()

    ticker.begin("reading", "images", sum(len(job.samples) for job in jobs))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        futures = [pool.submit(make_fragment, job, on_sample) for job in jobs]
        try:
            for future in futures:
                yield future.result()
        finally:
            stopping.set()
            for future in futures:
                future.cancel()


def _make_with_ray(
    jobs: Sequence[FragmentJob], num_workers: int | None, ticker: Ticker
) -> Generator[FragmentResult]:
    ticker.begin("starting Ray")
    source = jobs[0].source
    image = find_readable_image(source, jobs[0].samples)
    with ray_session(num_workers):
        import ray.data

        quiet_ray_data()
        # Pickled, since Arrow would convert the objects to tables; one block per job, so that each is a task.
        items = [{"job": pickle.dumps((job, image))} for job in jobs]
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map(_make_pickled)
        ticker.begin("reading with Ray", "images", sum(len(job.samples) for job in jobs))
        with closing(iter(dataset.iter_rows())) as rows:  # else Ray Data's threads outlive the session
            for row in rows:
                result = pickle.loads(row["result"])
                if isinstance(result, DmlError):
                    raise result
                require_missing_locally(source, result.problems, uri=jobs[0].config.source, node=row["node"])
                ticker.count(len(jobs[result.number].samples))
                yield result


def _make_pickled(row: dict[str, bytes]) -> dict[str, Any]:
    """A job's result. Users' errors are returned, since Ray would wrap raised ones and retry the task."""
    job, image = pickle.loads(row["job"])
    node = _node()
    try:
        require_reach(job.source, image, job.staged, uri=job.config.source, node=node)
        result = pickle.dumps(make_fragment(job))
    except DmlError as error:
        result = pickle.dumps(error)
    return {"result": result, "node": node}


def _node() -> str:
    import ray

    return f"node {ray.util.get_node_ip_address()} ({socket.gethostname()})"
