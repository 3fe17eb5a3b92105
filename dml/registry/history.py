"""The MLflow run of a model version: its training curves, and files attached to it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dml import storage
from dml.refs import ModelRef, ReportRef
from dml.registry.connection import connect
from dml.registry.tracking import Run
from dml.settings import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CURVES = ("loss", "validation_")


def training_curves(store: str, model: ModelRef) -> Mapping[str, Sequence[tuple[int, float]]]:
    """Training curves of a version: `loss` and the validation metrics, each as (step, value) pairs.

    If a run was killed and repeated steps, the later value of a step counts. Empty if the version's run was
    deleted.
    """
    client = connect(tracking_uri(store))
    run_id = _run_id(client, model)
    return {} if run_id is None else _curves_of(client, run_id)


def curves_of_run(run: Run) -> Mapping[str, Sequence[tuple[int, float]]]:
    """As `training_curves`, of a run that may still go on."""
    return _curves_of(connect(run.tracking_uri), run.id)


def _curves_of(client: "MlflowClient", run_id: str) -> Mapping[str, Sequence[tuple[int, float]]]:
    names = sorted(name for name in client.get_run(run_id).data.metrics if name.startswith(_CURVES))
    curves = {}
    for name in names:
        history = sorted(client.get_metric_history(run_id, name), key=lambda entry: entry.timestamp)
        curves[name] = sorted({entry.step: entry.value for entry in history}.items())
    return curves


def attach_report(store: str, model: ModelRef, report: ReportRef) -> str | None:
    """Attach a report's page and pictures to its model's run in MLflow; returns their artifact folder.

    Attaching a report again overwrites the same files. None if the version's run was deleted.
    """
    client = connect(tracking_uri(store))
    run_id = _run_id(client, model)
    if run_id is None:
        return None
    files = storage.fetch(report.uri, report.fingerprint)
    folder = f"reports/{report.version}"
    for name in storage.read_manifest(report.uri)["files"]:
        client.log_artifact(run_id, str(Path(files) / name), folder)
    return folder


def attach_pictures(store: str, model: ModelRef, pictures: Mapping[str, bytes]) -> list[str]:
    """Attach pictures and tables to a version's run in MLflow, in the artifact folder `pictures`.

    Args:
        store: the store's URI.
        model: the version.
        pictures: content by file name.

    Returns:
        The attached names; empty if the version's run was deleted.
    """
    client = connect(tracking_uri(store))
    run_id = _run_id(client, model)
    if run_id is None:
        return []
    with TemporaryDirectory() as folder:
        for name, png in pictures.items():
            Path(folder, name).write_bytes(png)
        client.log_artifacts(run_id, folder, "pictures")
    return list(pictures)


def _run_id(client: "MlflowClient", model: ModelRef) -> str | None:
    from mlflow.exceptions import MlflowException

    run_id = client.get_model_version(model.name, str(model.version)).run_id
    try:
        return None if not run_id else str(client.get_run(run_id).info.run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
