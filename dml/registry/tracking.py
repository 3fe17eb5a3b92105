"""Runs in MLflow: one per run identity, found again after a crash, fed live while training goes on."""

import logging
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from mlflow import MlflowClient

RUN_TAG = "dml.run"
_MAX_PARAM_LENGTH = 500
_MAX_METRICS_PER_BATCH = 1000  # MLflow refuses more
_STARTING = threading.Lock()  # the first to come makes the database's tables, and two at once collide


class HasMetrics(Protocol):
    """What a training step reports."""

    @property
    def step(self) -> int: ...

    def metrics(self) -> dict[str, float]: ...


def connect(tracking_uri: str) -> "MlflowClient":
    """An MLflow client; models that would need unpickling are refused from here on."""
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
    import mlflow

    return mlflow.MlflowClient(tracking_uri, registry_uri=tracking_uri)


@contextmanager
def as_default(tracking_uri: str) -> Iterator[None]:
    """For MLflow's functions that take no URI; afterwards the process and its environment are as before.

    MLflow writes the URI it is given into `MLFLOW_TRACKING_URI`, where another store would find it.
    """
    import mlflow

    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(before["MLFLOW_TRACKING_URI"])
        mlflow.set_registry_uri(before["MLFLOW_REGISTRY_URI"] or "")
        if before["MLFLOW_REGISTRY_URI"] is None:
            os.environ.pop("MLFLOW_REGISTRY_URI", None)


@dataclass(frozen=True)
class Run:
    """A run in MLflow, as a value that can travel to another process."""

    tracking_uri: str
    id: str

    def __call__(self, progress: HasMetrics) -> None:
        """Log a training step's metrics."""
        self.log_metrics(progress.metrics(), step=progress.step)

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        import mlflow.entities

        entries = [mlflow.entities.Metric(k, v, _now_ms(), step) for k, v in metrics.items()]
        for start in range(0, len(entries), _MAX_METRICS_PER_BATCH):
            own = entries[start : start + _MAX_METRICS_PER_BATCH]
            connect(self.tracking_uri).log_batch(self.id, metrics=own)

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The run's state in MLflow: finished if the body ends well, failed if it raises."""
        try:
            yield
        except BaseException:
            connect(self.tracking_uri).set_terminated(self.id, status="FAILED")
            raise
        connect(self.tracking_uri).set_terminated(self.id, status="FINISHED")


def start_run(
    tracking_uri: str,
    *,
    experiment: str,
    identity: str,
    params: Mapping[str, Any],
    artifact_root: str | None = None,
    name: str | None = None,
) -> Run:
    """The MLflow run of a run identity: a new one, or the one that a killed process left.

    Args:
        tracking_uri: a server, or `sqlite:///` file.
        experiment: MLflow's experiment, made when it is missing.
        identity: what `training.run_identity` gives; the same identity continues the same run.
        params: a nested configuration, logged with dotted names.
        artifact_root: where artefacts go when no server decides it.
        name: the run's name in MLflow's pages; None: the identity.
    """
    with _STARTING:
        client = connect(tracking_uri)
        experiment_id = _experiment_id(client, tracking_uri, experiment, artifact_root)
        earlier = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
        if earlier:
            client.update_run(earlier[0].info.run_id, status="RUNNING")
            return Run(tracking_uri, earlier[0].info.run_id)
        created = client.create_run(experiment_id, tags={RUN_TAG: identity}, run_name=name or identity)
    run = Run(tracking_uri, created.info.run_id)
    from mlflow.entities import Param

    flat = [Param(k, str(v)[:_MAX_PARAM_LENGTH]) for k, v in _flatten(params)]
    client.log_batch(run.id, params=flat)
    return run


def _experiment_id(client: "MlflowClient", tracking_uri: str, name: str, artifact_root: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        location = None if tracking_uri.startswith("http") else artifact_root
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another run of the experiment was first
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def _now_ms() -> int:
    from mlflow.utils.time import get_current_time_millis

    return int(get_current_time_millis())
