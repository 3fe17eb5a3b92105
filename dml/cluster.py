"""A Ray session on a local cluster or the one at `RAY_ADDRESS`: its resources, and remote calls.

An autoscaling cluster can have no GPU until one is requested. Its maximum comes from `DML_CLUSTER_GPUS` and
`DML_CLUSTER_CPUS`, else from the cluster's configuration, else from the autoscaler's response to a request.
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
from itertools import cycle
from typing import Any, Literal, TypeVar, cast

from dml.errors import InvalidSetting, Unreachable

logger = logging.getLogger(__name__)

P = TypeVar("P")
R = TypeVar("R")
S = TypeVar("S")

_OBJECT_STORE_BYTES = 1 << 30
_AUTOSCALER_REPORTS, _AUTOSCALER_TIMEOUT_S = 4, 20.0
"""The autoscaler needs two reports to see a request and report new nodes; they come every 5 s by default."""
_CONNECT_TIMEOUT_S = 10.0
_CALL_RETRIES = 3
_RESTART_POLL_S = 0.5
_SETTINGS = {"GPU": "DML_CLUSTER_GPUS", "CPU": "DML_CLUSTER_CPUS"}


@contextmanager
def ray_session(num_cpus: int | None = None) -> Iterator[None]:
    """Ray for the body of a `with`. A session that is already open is reused and stays open.

    A session that this call opens is shut down after the body, also after an error, so no process keeps
    running. On the main thread Ray replaces the SIGTERM handler; the former handler (Prefect's, which cancels
    the run) is restored.

    Args:
        num_cpus: logical CPUs of a local cluster; None for all of this machine. Ignored with `RAY_ADDRESS`.
    """
    os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # read at import: no thread starts a second Ray
    # Read at the first session. A session starts in 3 s instead of 6, and the end of one does not wait up to
    # 30 s for the metrics agents of earlier ones of this process, which are gone.
    os.environ.setdefault("RAY_enable_metrics_collection", "0")
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
        _shut_down()
        if on_main_thread:
            signal.signal(signal.SIGTERM, handler)


def _shut_down() -> None:
    """`ray.shutdown()`, beside threads that free object references.

    Ray Data's threads outlive its iterator for a moment, and any thread collects garbage. Ray keeps
    `core_worker` in its place until it is torn down; a reference that is freed meanwhile calls it, and Ray
    ends the process with status 1 and no message. Out of its place, it is not called.
    """
    import ray
    from ray._private import worker

    worker.disconnect()
    core_worker = vars(worker.global_worker).pop("core_worker", None)  # none with ray:// addresses
    if core_worker is not None:
        core_worker.shutdown_driver()
    ray.shutdown()


def quiet_ray_data() -> None:
    """Turn off Ray Data's progress bars and misleading warnings.

    When all CPUs of this machine are busy, Ray Data warns that the job may hang for lack of resources. On a
    cluster the warning can be right, so it is kept there.
    """
    import ray.data

    ray.data.DataContext.get_current().enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)
    if not on_cluster():
        logging.getLogger("ray.data._internal.execution.resource_manager").setLevel(logging.ERROR)


def _start_or_connect(num_cpus: int | None) -> None:
    """Open the session; send the user's token only to a cluster that requires one.

    A local session writes a token to the home directory. After that `ray start` requires the token, but
    `ray.init` does not send it. If it is sent to a cluster without authentication, this process would reject
    the cluster's workers.
    """
    import ray
    from ray._private.authentication import authentication_token_setup as tokens

    logging.getLogger(tokens.__name__).setLevel(logging.ERROR)  # nothing that the user can fix
    address = os.environ.get("RAY_ADDRESS", "")
    arguments = {**_init_arguments(num_cpus), "logging_level": logging.WARNING}
    try:
        _require_listener(address)
        if _requires_token(address):
            tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
        try:
            ray.init(**arguments)
        except ConnectionError:
            auth_mode = os.environ.get("RAY_AUTH_MODE")
            if auth_mode or not tokens.maybe_enable_token_auth_if_token_available(warn_if_disabled=False):
                raise
            ray.init(**arguments)
    except ConnectionError as error:
        raise Unreachable(
            f"RAY_ADDRESS must name a running Ray cluster; {address} does not answer, or rejects this user. "
            "Start it, or unset RAY_ADDRESS to work on this machine."
        ) from error


def _require_listener(address: str) -> None:
    """Raise ConnectionError if no process listens at HOST:PORT; Ray would retry for five minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S).close()
        except OSError as error:
            raise ConnectionError(str(error)) from error


def _requires_token(address: str) -> bool:
    """Whether the cluster at HOST:PORT refuses this process, which sends no token; `ray.init` tries for 20 s.

    Other errors are left to `ray.init`.
    """
    from ray._private.services import GcsClient
    from ray.exceptions import AuthenticationError

    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or "://" in address:
        return False
    try:
        GcsClient(address=address)
    except Exception as error:
        return isinstance(error, AuthenticationError)
    return False


def _init_arguments(num_cpus: int | None) -> dict[str, Any]:
    address = os.environ.get("RAY_ADDRESS")
    if address:
        return {"address": address}
    # "local" explicitly: otherwise, after a hard kill, Ray looks for the killed cluster.
    return {
        "address": "local",
        "num_cpus": num_cpus or os.cpu_count(),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "include_dashboard": False,
    }


def on_cluster() -> bool:
    """Whether `RAY_ADDRESS` names a cluster to work on instead of this machine."""
    return bool(os.environ.get("RAY_ADDRESS"))


@dataclass(frozen=True)
class Capacity:
    """How much of a resource the open session's cluster has, and how much it can grow to."""

    resource: Literal["CPU", "GPU"]
    now: int
    most: int
    reason: str
    """Where the numbers come from."""
    is_certain: bool = True
    """Whether `most` is a hard limit."""

    def __str__(self) -> str:
        more = f", at most {self.most}" if self.most > self.now else ""
        return f"{self.now} {self.resource}s{more} ({self.reason})"


def capacity(resource: Literal["CPU", "GPU"], *, wanted: int = 1) -> Capacity:
    """The number of GPUs or CPUs of the open session's cluster, now and at most.

    Args:
        resource: "CPU" or "GPU".
        wanted: number of GPUs to request from the autoscaler if no setting gives the cluster's maximum.

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
        if not (text.isascii() and text.isdecimal()):
            raise InvalidSetting(f"{setting} must be a whole number; got {text!r}.")
        return Capacity(resource, now, max(now, int(text)), f"by {setting}")
    reported = state.state.get_max_resources_from_cluster_config()
    if reported is not None:
        return Capacity(resource, now, max(now, int(reported.get(resource, 0))), "by its configuration")
    if resource == "GPU" and now < wanted and _is_autoscaled():
        context = ray.get_runtime_context()
        num_gpus = _request_gpus(context.gcs_address, context.get_job_id(), wanted)
        return Capacity(
            resource,
            now,
            max(now, num_gpus),
            f"by its autoscaler's response; set {setting} to state the maximum",
            False,
        )
    return Capacity(resource, now, now, f"by its nodes; set {setting} if the cluster can grow", False)


def use_gpu(what: str, num_workers: int = 1, *, setting: bool | None = None) -> bool:
    """Whether each worker gets a GPU; logs the decision. Needs an open session.

    Args:
        what: name of the stage, for the log.
        num_workers: number of workers.
        setting: the user's setting; None uses GPUs if the cluster has one per worker, or can grow to that.

    Raises:
        InvalidSetting: GPUs are requested, and the cluster cannot have that many.
    """
    if setting is False:
        return False
    gpus = capacity("GPU", wanted=num_workers)
    if setting is None:
        chosen = gpus.most >= num_workers
        logger.info("%s: %d workers on %ss; available: %s", what, num_workers, _name(chosen), gpus)
        return chosen
    if gpus.is_certain and gpus.most < num_workers:
        raise InvalidSetting(
            f"use_gpu needs a GPU for each of {num_workers} workers; got {gpus}. Set use_gpu=false, "
            f"use fewer workers, or set {_SETTINGS['GPU']} if the cluster of RAY_ADDRESS can grow further."
        )
    return True


def _name(is_gpu: bool) -> str:
    return "GPU" if is_gpu else "CPU"


def _is_autoscaled() -> bool:
    """Whether an autoscaler adds nodes. One that only monitors gives each node its own type, `node_...`."""
    types = (_autoscaler_status().get("autoscaler_report") or {}).get("active_nodes") or {}
    return any(not name.startswith("node_") for name in types)


def _autoscaler_status() -> dict[str, Any]:
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    status: dict[str, Any] = json.loads(_internal_kv_get(DEBUG_AUTOSCALING_STATUS) or "{}")
    return status


@cache
def _request_gpus(address: str, job: str, wanted: int) -> int:
    """Request GPUs and return how many exist or are being started; cached per session and number."""
    import ray

    group = ray.util.placement_group([{"GPU": 1}] * wanted)
    num_gpus = previous = num_reports = 0
    deadline, last_time = time.monotonic() + _AUTOSCALER_TIMEOUT_S, None
    try:
        # The first report is older than the request.
        while num_gpus < wanted and num_reports <= _AUTOSCALER_REPORTS and time.monotonic() < deadline:
            if group.wait(1):
                return wanted
            status = _autoscaler_status()
            # A new node can be counted twice in one report, but not in two reports in a row.
            if status.get("time") != last_time:
                last_time, total = status.get("time"), _count_gpus(status)
                num_reports += 1
                num_gpus, previous = max(num_gpus, min(previous, total)), total
    finally:
        ray.util.remove_placement_group(group)
    return num_gpus


def _count_gpus(status: dict[str, Any]) -> int:
    """The number of GPUs that exist and that are being started."""
    _, existing = ((status.get("load_metrics_report") or {}).get("usage") or {}).get("GPU", (0, 0))
    starting = ((status.get("autoscaler_report") or {}).get("pending_resources") or {}).get("GPU", 0)
    return int(existing + starting)


def call_remote(function: Callable[..., R], *arguments: Any, num_cpus: int, num_gpus: int) -> R:
    """Call a function in a separate process of the open session, once the resources are free.

    The function's exceptions are re-raised unchanged.
    """
    import ray

    remote = ray.remote(function).options(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)
    try:
        result: R = ray.get(remote.remote(*arguments))
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    return result


def map_remote(
    function: Callable[[S, P], R], shared: S, parts: Sequence[P], *, use_gpu: bool = True
) -> Iterator[R]:
    """Map `function(shared, part)` over the parts in parallel Ray tasks; yields results in order.

    Needs an open session, whose size limits how many tasks run at once. A task gets one CPU and, if the
    cluster has any and `use_gpu`, one GPU. `shared` is stored once per machine: NumPy arrays in it are read
    without a copy and are read-only. A task lost with its machine runs again. The function's exceptions are
    re-raised unchanged.
    """
    import ray

    def call_function(shared: S, part: P) -> R:  # Ray accepts only plain functions, no other callables
        return function(shared, part)

    remote = ray.remote(call_function).options(num_cpus=1, num_gpus=int(use_gpu and capacity("GPU").most > 0))
    shared_ref = ray.put(shared)
    for result in [remote.remote(shared_ref, part) for part in parts]:
        try:
            yield ray.get(result)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None


def _in_turn(num_gpus: int) -> Iterator[Any]:
    """The nodes that have so many GPUs in turn, without end, as preferences where to start a process."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [
        node["NodeID"]
        for node in ray.nodes()
        if node["Alive"] and node["Resources"].get("GPU", 0) >= num_gpus
    ]
    # Ray's own SPREAD is a wish.
    preferred = [NodeAffinitySchedulingStrategy(node, soft=True) for node in sorted(nodes)]
    return cycle(preferred or ["SPREAD"])


class RemoteObjects:
    """Objects that live in Ray processes of their own, spread over the machines of the open session.

    A process that is lost is started again, where there is room, and its object made anew; a call that was
    lost with it is repeated. Needs an open session for as long as it is used.

    Args:
        make: makes an object of a part, in its process.
        parts: one for each object.
        num_gpus: logical GPUs for each; 0 or 1.
        timeout_s: how long a call may take, with all that is repeated, seconds.
    """

    def __init__(
        self, make: Callable[[P], object], parts: Sequence[P], *, num_gpus: int = 0, timeout_s: float = 60.0
    ) -> None:
        import ray

        class Holder:
            def __init__(self, part: P) -> None:
                self.part, self.made = part, cast(Any, None)

            def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
                if self.made is None:  # here, so that its exceptions are those of the call
                    self.made = make(self.part)
                return getattr(self.made, method)(*arguments)

        # A process that asks for no resource at all is started on a random node, against any preference.
        resources = {"num_cpus": 0, "num_gpus": num_gpus, "memory": 1}
        remote = ray.remote(**resources, max_restarts=-1, max_task_retries=_CALL_RETRIES)(Holder)
        self._timeout_s = timeout_s
        self._actors = [
            remote.options(scheduling_strategy=strategy).remote(part)
            for part, strategy in zip(parts, _in_turn(num_gpus), strict=False)
        ]

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method of each object at once; their results in order, all of them.

        The method's exceptions are re-raised unchanged.

        Raises:
            Unreachable: some process is lost and cannot be started again in time; no result is returned.
        """
        import ray

        deadline = time.monotonic() + self._timeout_s
        results: dict[int, Any] = {}
        reason = ""
        while len(results) < len(self._actors):
            missing = [number for number in range(len(self._actors)) if number not in results]
            calls = {number: self._actors[number].call.remote(method, arguments) for number in missing}
            for number, call in calls.items():
                try:
                    results[number] = ray.get(call, timeout=max(deadline - time.monotonic(), 0.0))
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None
                except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError) as error:
                    reason = str(error).splitlines()[0]
            if len(results) < len(self._actors) and time.monotonic() >= deadline:
                raise Unreachable(
                    f"All {len(self._actors)} processes of the cluster must answer; {len(results)} have done "
                    f"so within {self._timeout_s:g} s, so there is no answer. Check its machines with "
                    f"`ray status`, and try again. ({reason})"
                )
            if len(results) < len(self._actors):  # as while a node is lost, and Ray has not noticed it yet
                time.sleep(_RESTART_POLL_S)
        return [results[number] for number in range(len(self._actors))]

    def close(self) -> None:
        """End the processes."""
        import ray

        for actor in self._actors:
            ray.kill(actor)
