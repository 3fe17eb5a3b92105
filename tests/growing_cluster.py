"""A Ray cluster on this machine whose autoscaler starts nodes on request."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tests.ports import free_port


@contextmanager
def growing_cluster(
    node_types: Mapping[str, Mapping[str, Any]],
    *,
    head_cpus: int = 1,
    environment: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """The address of a head node without a GPU, with an autoscaler for these node types.

    Args:
        node_types: `resources` and `max_workers` by name of the node type.
        head_cpus: logical CPUs of the head node.
        environment: the cluster's environment variables; None: this process's, without authentication.
    """
    folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # short, since socket paths are limited
    address = f"127.0.0.1:{free_port()}"
    config = {
        "cluster_name": "growing",
        "max_workers": 8,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": 5,
        "provider": {
            "type": "fake_multinode",
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
            "use_node_id_as_ip": True,
            "gcs_address": address,
            "head_node_id": "f" * 51 + "0" * 5,
        },
        "auth": {},
        "head_node_type": "ray.head.default",
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": head_cpus}, "node_config": {}, "max_workers": 0},
            **{name: {"min_workers": 0, "node_config": {}, **kind} for name, kind in node_types.items()},
        },
        **{name: {} for name in ("docker", "file_mounts")},
        **{
            name: []
            for name in (
                "initialization_commands",
                "setup_commands",
                "head_setup_commands",
                "worker_setup_commands",
                "head_start_ray_commands",
                "worker_start_ray_commands",
                "cluster_synced_files",
                "rsync_exclude",
                "rsync_filter",
            )
        },
        "file_mounts_sync_continuously": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    command = [
        str(Path(sys.executable).with_name("ray")),
        *("start", "--head", "--node-ip-address=127.0.0.1", f"--port={address.split(':')[1]}"),
        *(f"--num-cpus={head_cpus}", "--num-gpus=0", "--include-dashboard=false", "--disable-usage-stats"),
        *(f"--autoscaling-config={folder / 'config.json'}", f"--temp-dir={folder}"),
        "--object-store-memory=200000000",
    ]
    base = {"RAY_AUTH_MODE": "disabled", **os.environ} if environment is None else environment
    variables = {**base, "RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
    try:
        subprocess.run(command, check=True, env=variables, capture_output=True, timeout=240)
        _wait_for_autoscaler(folder)
        yield address
    finally:
        for stop in (signal.SIGTERM, signal.SIGKILL):
            for process in _cluster_pids(folder):
                with suppress(ProcessLookupError):  # it went with the one before
                    os.kill(process, stop)
            deadline = time.monotonic() + (2 if stop == signal.SIGTERM else 20)
            while _cluster_pids(folder) and time.monotonic() < deadline:
                time.sleep(0.1)
        shutil.rmtree(folder, ignore_errors=True)


def _wait_for_autoscaler(folder: Path) -> None:
    """Until it has looked at the cluster once, which is later; `dml.cluster` asks it for 20 s at the most."""
    log = folder / "session_latest" / "logs" / "monitor.log"
    deadline = time.monotonic() + 200
    while not (log.exists() and "to complete the update iteration" in log.read_text()):
        assert time.monotonic() < deadline, "the autoscaler never looked at the cluster"
        time.sleep(0.1)


def _cluster_pids(folder: Path) -> list[int]:
    """The processes of this cluster, recognized by its folder in their command lines."""
    pids = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (entry / "cmdline").read_bytes():
                pids.append(int(entry.name))
        except OSError:
            continue  # ended meanwhile
    return pids
