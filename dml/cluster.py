"""One Ray session: a local cluster, or the one that `RAY_ADDRESS` names, left as it was found.

A cluster may grow: it has no GPU while nobody asks for one. How many it can have is said by
`DML_CLUSTER_GPUS` and `DML_CLUSTER_CPUS`, else by the cluster, else by its autoscaler's answer to a request.
"""

import json
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, TypeVar

from dml.errors import InvalidSetting, Unreachable

logger = logging.getLogger(__name__)

P = TypeVar("P")
R = TypeVar("R")
S = TypeVar("S")

_OBJECT_STORE_BYTES = 1 << 30
_AUTOSCALER_ANSWERS_S = 20.0
"""Its default interval is 5 s, and it takes two to see a request and to say what it starts."""
_CONNECTS_WITHIN_S = 10.0
_SETTINGS = {"GPU": "DML_CLUSTER_GPUS", "CPU": "DML_CLUSTER_CPUS"}


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the body of a `with`; a session that is already open is used and stays open.

    A session of our own ends with the body however it ends, so nothing is left running on the machine. On the
    main thread Ray replaces the SIGTERM handler; the former one (Prefect's, which cancels) is put back.

    Args:
        num_cpus: logical CPUs of a local cluster; None: as many as there are. Ignored with `RAY_ADDRESS`.
    """
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # read at import: no stray thread starts another
    import ray

    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # relative paths mean the same in every process
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    on_main_thread = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    _start_or_connect(num_cpus)
    try:
        if on_main_thread:
            signal.signal(signal.SIGTERM, handler)
        yield
    finally:
        ray.shutdown()
        if on_main_thread:
            signal.signal(signal.SIGTERM, handler)


def quiet_ray_data() -> None:
    """Ray Data without its bars, and without warnings about work that goes well.

    While every CPU of this machine is at work, it says that resources are not enough and the job may hang for
    ever. On a cluster that may be true, so there it is heard.
    """
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    if not on_cluster():
        logging.getLogger("ray.data._internal.execution.resource_manager").setLevel(logging.ERROR)


def _start_or_connect(num_cpus: int | None) -> None:
    """Show a cluster the user's token if it does not let us in without.

    A local session leaves a token at home, from then on `ray start` asks for it, and `ray.init` forgets it.
    Shown to a cluster that asks for none, it would make us refuse that cluster's workers.
    """
    import ray
    from ray._private.authentication import authentication_token_setup as tokens

    logging.getLogger(tokens.__name__).setLevel(logging.ERROR)  # nothing there that our user can put right
    address = os.environ.get("RAY_ADDRESS", "")
    arguments = {**_cluster(num_cpus), "logging_level": logging.WARNING}
    try:
        _require_listener(address)
        try:
            ray.init(**arguments)
        except ConnectionError:
            given = os.environ.get("RAY_AUTH_MODE")
            if given or not tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
                raise
            ray.init(**arguments)
    except ConnectionError as error:
        raise Unreachable(
            f"RAY_ADDRESS must name a running Ray cluster; {address} does not answer, or does not let this "
            "user in. Start it, or unset RAY_ADDRESS to work on this machine."
        ) from error


def _require_listener(address: str) -> None:
    """Raise ConnectionError where nobody listens at HOST:PORT: Ray itself would try for five minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECTS_WITHIN_S).close()
        except OSError as error:
            raise ConnectionError(str(error)) from error


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


def on_cluster() -> bool:
    """Whether work belongs on a cluster that is already there, not on this machine."""
    return bool(os.environ.get("RAY_ADDRESS"))


@dataclass(frozen=True)
class Capacity:
    """How much of a resource the open session's cluster has, or can grow to."""

    resource: Literal["CPU", "GPU"]
    now: int
    most: int
    reason: str
    """What says so."""
    is_certain: bool = True
    """Whether it cannot be more."""

    def __str__(self) -> str:
        more = f", at most {self.most}" if self.most > self.now else ""
        return f"{self.now} {self.resource}s{more} ({self.reason})"


def capacity(resource: Literal["CPU", "GPU"], *, wanted: int = 1) -> Capacity:
    """How many GPUs or CPUs the open session's cluster can have.

    Args:
        resource: which.
        wanted: where nothing says how far the cluster grows, it is asked for so many GPUs.

    Raises:
        InvalidSetting: `DML_CLUSTER_GPUS` or `DML_CLUSTER_CPUS` is not a whole number.
    """
    import ray
    from ray._private import state

    now = int(ray.cluster_resources().get(resource, 0))
    if not on_cluster():
        return Capacity(resource, now, now, "on this machine")
    setting = _SETTINGS[resource]
    text = os.environ.get(setting)
    if text:
        if not text.isdecimal():
            raise InvalidSetting(f"{setting} must be a whole number; got {text!r}.")
        return Capacity(resource, now, max(now, int(text)), f"by {setting}")
    reported = state.state.get_max_resources_from_cluster_config()
    if reported is not None:
        return Capacity(resource, now, max(now, int(reported.get(resource, 0))), "by its configuration")
    if resource == "GPU" and now < wanted and _is_autoscaled():
        context = ray.get_runtime_context()
        found = _ask_for_gpus(context.gcs_address, context.get_job_id(), wanted)
        return Capacity(
            resource, now, max(now, found), f"by its autoscaler's answer; {setting} would say", False
        )
    return Capacity(resource, now, now, f"by its nodes; {setting} says how far it grows", False)


def use_gpu(what: str, num_workers: int = 1, *, setting: bool | None = None) -> bool:
    """Whether each worker gets a GPU; says so in one log line. Needs an open session.

    Args:
        what: is done, for the log.
        num_workers: how many workers there are to be.
        setting: the user's; None: where the cluster has so many GPUs, or can grow to them.

    Raises:
        InvalidSetting: GPUs are asked for, and the cluster cannot have so many.
    """
    if setting is False:
        return False
    gpus = capacity("GPU", wanted=num_workers)
    if setting is None:
        chosen = gpus.most >= num_workers
        logger.info("%s: %d workers on %ss; of GPUs there are %s", what, num_workers, _name(chosen), gpus)
        return chosen
    if gpus.is_certain and gpus.most < num_workers:
        raise InvalidSetting(
            f"use_gpu needs a GPU for each of {num_workers} workers; got {gpus}. Set use_gpu=false, fewer "
            f"workers, or {_SETTINGS['GPU']} where the cluster of RAY_ADDRESS grows further."
        )
    return True


def _name(is_gpu: bool) -> str:
    return "GPU" if is_gpu else "CPU"


def _is_autoscaled() -> bool:
    """Whether nodes come and go by an autoscaler; one that only watches gives each node a type of its own."""
    types = (_autoscaler_status().get("autoscaler_report") or {}).get("active_nodes") or {}
    return any(not name.startswith("node_") for name in types)


def _autoscaler_status() -> dict[str, Any]:
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    status: dict[str, Any] = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    return status


@cache
def _ask_for_gpus(address: str, job: str, wanted: int) -> int:
    """How many GPUs are there or being started once so many were asked for; once per session and number."""
    import ray

    group = ray.util.placement_group([{"GPU": 1}] * wanted)
    found = before = 0
    until, seen = time.monotonic() + _AUTOSCALER_ANSWERS_S, None
    try:
        while found < wanted and time.monotonic() < until:
            if group.wait(1):
                return wanted
            status = _autoscaler_status()
            # A node that has just come may be counted twice in one report, not in two.
            if status.get("time") != seen:
                seen, total = status.get("time"), _gpus_of(status)
                found, before = max(found, min(before, total)), total
    finally:
        ray.util.remove_placement_group(group)
    return found


def _gpus_of(status: dict[str, Any]) -> int:
    """Those that are there and those that are being started."""
    _, there = ((status.get("load_metrics_report") or {}).get("usage") or {}).get("GPU", (0, 0))
    starting = ((status.get("autoscaler_report") or {}).get("pending_resources") or {}).get("GPU", 0)
    return int(there + starting)


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

    remote = ray.remote(of_part).options(num_cpus=1, num_gpus=1 if capacity("GPU").most else 0)
    kept = ray.put(shared)
    for result in [remote.remote(kept, part) for part in parts]:
        try:
            yield ray.get(result)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
