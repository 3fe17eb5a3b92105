"""One Ray session: a local cluster, or the one that `RAY_ADDRESS` names, left as it was found."""

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

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
    # Workers keep the caller's folder, and one OpenMP thread each: more than cores is many times slower.
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if main_thread else None
    address = os.environ.get("RAY_ADDRESS")
    local = (
        {}
        if address
        else {
            "num_cpus": num_cpus or os.cpu_count(),
            "object_store_memory": _OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    )
    ray.init(
        address=address or "local",
        logging_level=logging.WARNING,
        runtime_env={"env_vars": {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}},
        **local,
    )
    try:
        if main_thread:
            signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        ray.shutdown()
        if main_thread:
            signal.signal(signal.SIGTERM, handler)
