"""One Ray session: a local cluster, or the one that `RAY_ADDRESS` names, left as it was found."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

P = TypeVar("P")
R = TypeVar("R")
S = TypeVar("S")

_OBJECT_STORE_BYTES = 1 << 30


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the body of a `with`; a session that is already open is used and stays open.

    A session of our own ends with the body however it ends, so nothing is left running on the machine. On the
    main thread Ray replaces the SIGTERM handler; the former one (Prefect's, which cancels) is put back.

    Args:
        num_cpus: logical CPUs of a local cluster; None: as many as there are. Ignored with `RAY_ADDRESS`.
    """
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths mean the same in every process
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    on_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    ray.init(**_cluster(num_cpus), logging_level=logging.WARNING)
    try:
        if on_main_thread:
            signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        ray.shutdown()
        if on_main_thread:
            signal.signal(signal.SIGTERM, handler)


def _cluster(num_cpus: int | None) -> dict[str, Any]:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return {"address": address}
    # "local" by name: after a hard kill Ray would else look for the cluster that is no more.
    return {
        "address": "local",
        "num_cpus": num_cpus or os.cpu_count(),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }


def is_remote() -> bool:
    """Whether work belongs on a cluster that is already there, not on this machine."""
    return bool(os.environ.get("RAY_ADDRESS"))


def num_gpus() -> int:
    """How many GPUs the open session's cluster has."""
    return _resource("GPU")


def num_cpus() -> int:
    """How many logical CPUs the open session's cluster has."""
    return _resource("CPU")


def _resource(name: str) -> int:
    import ray

    return int(ray.cluster_resources().get(name, 0))


def call_apart(function: Callable[..., R], *arguments: Any, num_cpus: int, num_gpus: int) -> R:
    """Call a function in a process of its own, where and when so much is free; needs an open session.

    Its errors are raised here as they were raised there.
    """
    import ray

    remote = ray.remote(function).options(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)
    try:
        result: R = ray.get(remote.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return result


def map_apart(function: Callable[[S, P], R], shared: S, parts: Sequence[P]) -> Iterator[R]:
    """`function(shared, part)` of each part, in processes of a CPU (and, where there are any, a GPU) each.

    Needs an open session, whose size says how many parts are under way. `shared` lies once on each machine:
    NumPy arrays in it are looked at where they lie, and cannot be written to. A part that a lost machine had
    is done again; its errors are raised here as they were raised there. Yields in the order of the parts.
    """
    import ray

    def of_part(shared: S, part: P) -> R:  # Ray takes functions alone, not what can be called like one
        return function(shared, part)

    remote = ray.remote(of_part).options(num_cpus=1, num_gpus=1 if num_gpus() else 0)
    kept = ray.put(shared)
    for result in [remote.remote(kept, part) for part in parts]:
        try:
            yield ray.get(result)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
