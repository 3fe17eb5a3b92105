"""N processes on this machine as the workers of a torch.distributed group."""

import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def run_ranks(
    world_size: int, function: Callable[..., Any], *arguments: Any, timeout_s: float = 120
) -> list[Any]:
    """What `function(*arguments)` returns on each rank of a gloo group of fresh processes, in rank order.

    Args:
        world_size: number of processes, one thread each.
        function: importable by name, called on every rank inside the group.
        timeout_s: for all ranks together; the processes are ended when it is over.

    Raises:
        RuntimeError: with the traceback of every rank that failed, or naming the ranks that did not end.
    """
    # Forked from a server that has imported torch and computed nothing: 0.1 s a process instead of 2.5 s.
    context = mp.get_context("forkserver")
    context.set_forkserver_preload(["dml.training.loop"])
    with tempfile.TemporaryDirectory() as folder:
        work = (world_size, folder, dict(os.environ), function, arguments, timeout_s)
        ranks = [context.Process(target=_run_rank, args=(rank, *work)) for rank in range(world_size)]
        with _environment("OMP_NUM_THREADS", "1"):  # the server reads it once, when it starts
            for process in ranks:
                process.start()
        try:
            return _results(ranks, Path(folder), timeout_s)
        finally:
            for process in ranks:
                process.kill()
                process.join()


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    """An environment variable for processes that are started within the context."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        os.environ.pop(name)
        if before is not None:
            os.environ[name] = before


def _results(ranks: list[Any], folder: Path, timeout_s: float) -> list[Any]:
    end = time.monotonic() + timeout_s
    while (alive := [process for process in ranks if process.is_alive()]) and time.monotonic() < end:
        if any(process.exitcode for process in ranks):
            break  # the others would wait for it until the group's timeout
        wait([process.sentinel for process in alive], timeout=max(end - time.monotonic(), 0))
    errors = [path.read_text() for path in sorted(folder.glob("error-*"))]
    missing = [rank for rank in range(len(ranks)) if not (folder / f"result-{rank}").exists()]
    if missing:
        raise RuntimeError(f"Ranks {missing} of {len(ranks)} returned nothing.\n" + "\n".join(errors))
    return [pickle.loads((folder / f"result-{rank}").read_bytes()) for rank in range(len(ranks))]


def _run_rank(
    rank: int,
    world_size: int,
    folder: str,
    environment: dict[str, str],
    function: Callable[..., Any],
    arguments: Any,
    timeout_s: float,
) -> None:
    os.environ.update(environment | {"OMP_NUM_THREADS": "1"})  # the server has that of its start
    torch.set_num_threads(1)
    try:
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/rendezvous",
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=timeout_s),
        )
        result = function(*arguments)
        Path(folder, f"result-{rank}").write_bytes(pickle.dumps(result))
        dist.barrier()
        status = 0
    except Exception:
        Path(folder, f"error-{rank}").write_text(f"rank {rank}: {traceback.format_exc()}")
        status = 1
    # Not through the interpreter's end, where DistributedDataParallel was seen to wait for ever.
    os._exit(status)
