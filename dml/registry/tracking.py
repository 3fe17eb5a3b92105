"""MLflow runs: one per run identity, continued after a crash, updated during training."""

import getpass
import json
import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from dml import storage
from dml.refs import DatasetRef
from dml.registry.connection import connect, require_answer
from dml.registry.database import REGISTRY_LOCK
from dml.registry.journal import MAX_METRICS_PER_BATCH, Journal, send_leftovers
from dml.reports import Evaluation, Measured
from dml.settings import artifact_root, local_folder, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import DatasetInput

logger = logging.getLogger(__name__)

RUN_TAG = "dml.run"
_MAX_PARAM_LENGTH = 500
_MAX_PARAMS_PER_BATCH = 100  # MLflow refuses more
_FLUSH_S = 10.0
_JOURNALS: dict[tuple[int, "Run"], Journal] = {}  # of this process


class HasMetrics(Protocol):
    """The metrics of one training step."""

    @property
    def step(self) -> int: ...

    def metrics(self) -> dict[str, float]: ...


@dataclass(frozen=True)
class Run:
    """A run in MLflow, as a picklable value."""

    tracking_uri: str
    id: str
    journal: str
    """The local file of the training metrics."""

    def __call__(self, progress: HasMetrics) -> None:
        """Log a training step's metrics without waiting for MLflow."""
        self._open_journal().append(progress.step, progress.metrics())

    def log_evaluation(self, evaluation: Evaluation) -> None:
        """Log every number as an MLflow metric: NAME, NAME.low, NAME.high, ATTRIBUTE/VALUE/NAME."""
        self.log_metrics(_flatten_evaluation(evaluation))

    def log_metrics(self, metrics: Mapping[str, float], step: int = 0) -> None:
        """Log synchronously; values that MLflow already has are not logged again."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        client, now = connect(self.tracking_uri), get_current_time_millis()
        known = client.get_run(self.id).data.metrics
        entries = [Metric(k, v, now, step) for k, v in metrics.items() if known.get(k) != v]
        for start in range(0, len(entries), MAX_METRICS_PER_BATCH):
            client.log_batch(self.id, metrics=entries[start : start + MAX_METRICS_PER_BATCH])

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Set the run's status in MLflow: finished after the body, failed if it raises.

        After an error MLflow is tried once, briefly: it can be the reason, and the user waits for the error.
        Metrics that it did not receive stay in their file and are sent when the next run starts.
        """
        try:
            yield
        except BaseException:
            try:
                self._close_journal(wait_s=0.0)
                require_answer(self.tracking_uri)
                self._set_status("FAILED")
            except Exception as error:  # the body's error is the one to raise
                logger.warning("The run cannot be marked as failed in MLflow: %s", error)
            raise
        self._close_journal(wait_s=_FLUSH_S)
        self._set_status("FINISHED")

    def _close_journal(self, wait_s: float) -> None:
        self._open_journal().close(wait_s)
        del _JOURNALS[os.getpid(), self]

    def _set_status(self, status: str) -> None:
        connect(self.tracking_uri).set_terminated(self.id, status=status)

    def _open_journal(self) -> Journal:
        key = (os.getpid(), self)
        if key not in _JOURNALS:
            _JOURNALS[key] = Journal(Path(self.journal), self.tracking_uri, self.id)
        return _JOURNALS[key]


def start_run(
    store: str,
    *,
    experiment: str,
    identity: str,
    params: Mapping[str, Any],
    name: str | None = None,
    dataset: DatasetRef | None = None,
) -> Run:
    """The MLflow run of a run identity: a new run, or that of an earlier, killed process.

    Args:
        store: the store's URI; runs go to its database, or to the configured MLflow.
        experiment: name of the MLflow experiment, created if missing, restored if deleted.
        identity: from `training.run_identity`; the same identity continues the same run.
        params: a nested configuration, logged with dotted names.
        name: the run's name in MLflow's pages; None uses the identity.
        dataset: the training dataset, logged as the run's input.

    Raises:
        Unreachable: MLflow does not answer.
    """
    uri, folder = tracking_uri(store), local_folder(store)
    client = connect(uri)
    journals = folder / "mlflow-metrics"
    journals.mkdir(parents=True, exist_ok=True)
    with storage.exclusive(folder / REGISTRY_LOCK):
        experiment_id = _experiment_id(client, uri, experiment, artifact_root(store))
        existing = client.search_runs([experiment_id], f"tags.`{RUN_TAG}` = '{identity}'", max_results=1)
        if existing:
            run = existing[0]
            client.update_run(run.info.run_id, status="RUNNING")
        else:
            tags = {RUN_TAG: identity, **_origin()}
            run = client.create_run(experiment_id, tags=tags, run_name=name or identity)
        _log_missing_params(client, run.info.run_id, params, known=run.data.params)
        if dataset is not None:
            client.log_inputs(run.info.run_id, [_input(dataset)])
    send_leftovers(journals, uri, wait_s=_FLUSH_S)
    return Run(uri, run.info.run_id, str(journals / f"{identity}.jsonl"))


def _origin() -> dict[str, str]:
    """The code's commit, if it runs from a repository, and the user, under MLflow's tag names."""
    from mlflow.utils.git_utils import get_git_commit

    commit = get_git_commit(str(Path(__file__).parent))
    return {"mlflow.user": user(), **({"mlflow.source.git.commit": commit} if commit else {})}


def _input(dataset: DatasetRef) -> "DatasetInput":
    from mlflow.entities import Dataset, DatasetInput, InputTag

    sizes = {name: size.model_dump() for name, size in dataset.splits.items()}
    profile = json.dumps({"rows": dataset.rows, "classes": dataset.classes, "splits": sizes})
    source = json.dumps({"dataset": str(dataset)})
    shown = Dataset(dataset.name, dataset.version, "dml", source, profile=profile)
    return DatasetInput(shown, [InputTag("mlflow.data.context", "training")])


def user() -> str:
    """The name of this process's user."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container's user without a name
        return "unknown"


def _log_missing_params(
    client: "MlflowClient", run_id: str, params: Mapping[str, Any], known: Mapping[str, str]
) -> None:
    """Log the parameters that an earlier, killed process did not log; logged ones cannot be changed."""
    from mlflow.entities import Param

    missing = [Param(k, str(v)[:_MAX_PARAM_LENGTH]) for k, v in _flatten(params) if k not in known]
    for start in range(0, len(missing), _MAX_PARAMS_PER_BATCH):
        client.log_batch(run_id, params=missing[start : start + _MAX_PARAMS_PER_BATCH])


def _experiment_id(client: "MlflowClient", tracking_uri: str, name: str, artifact_root: str) -> str:
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        location = None if tracking_uri.startswith("http") else artifact_root
        try:
            return str(client.create_experiment(name, artifact_location=location))
        except MlflowException:  # another machine was first
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage == "deleted":
        client.restore_experiment(experiment.experiment_id)
        logger.info("The experiment %s was deleted in MLflow; it is restored, with its runs.", name)
    return str(experiment.experiment_id)


def _flatten(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in tree.items():
        if isinstance(value, Mapping):
            pairs += _flatten(value, f"{prefix}{key}.")
        else:
            pairs.append((f"{prefix}{key}", value))
    return pairs


def _flatten_evaluation(evaluation: Evaluation) -> dict[str, float]:
    flat = _flatten_intervals(evaluation.metrics)
    folders: set[str] = set()
    for part in evaluation.slices:
        folder = (
            f"{_metric_name(part.attribute)}/{'missing' if part.value is None else _metric_name(part.value)}"
        )
        while folder in folders:  # two values can map to one name, and a value can be "missing"
            folder += "_"
        folders.add(folder)
        flat |= {f"{folder}/{name}": value for name, value in _flatten_intervals(part.metrics).items()}
        flat[f"{folder}/num_queries"] = part.num_queries
    return flat


def _flatten_intervals(metrics: Mapping[str, Measured]) -> dict[str, float]:
    flat = {}
    for name, measured in metrics.items():
        for end, value in (("", measured.value), (".low", measured.low), (".high", measured.high)):
            if value is not None:
                flat[f"{name}{end}"] = value
    return flat


def _metric_name(text: str) -> str:
    """A valid part of an MLflow metric name: letters, digits and a few other characters."""
    return re.sub(r"[^\w. :-]", "_", text).strip(".") or "_"
