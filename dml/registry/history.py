"""What a model version's run remembers, and what is laid beside it for people."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from dml import storage
from dml.refs import ModelRef, ReportRef
from dml.registry.connection import connect
from dml.settings import tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CURVES = ("loss", "validation_")


def training_curves(store: str, model: ModelRef) -> Mapping[str, Sequence[tuple[int, float]]]:
    """How a version's training went: `loss` and what validation measured, by name, as (step, value).

    Where a killed run has done steps again, the later of two values counts. Empty where the version's run is
    no longer there.
    """
    client = connect(tracking_uri(store))
    run_id = _run_id(client, model)
    if run_id is None:
        return {}
    names = sorted(name for name in client.get_run(run_id).data.metrics if name.startswith(_CURVES))
    curves = {}
    for name in names:
        history = sorted(client.get_metric_history(run_id, name), key=lambda entry: entry.timestamp)
        curves[name] = sorted({entry.step: entry.value for entry in history}.items())
    return curves


def attach_report(store: str, model: ModelRef, report: ReportRef) -> str | None:
    """Lay a report's page and pictures beside its model's run in MLflow; returns the folder there.

    Written again, the same files replace themselves. None where the version's run is no longer there.
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
    """Lay pictures beside a version's run in MLflow, in the folder `pictures`.

    Args:
        store: the store's URI.
        model: the version.
        pictures: file name to PNG.

    Returns:
        Their names; none where the version's run is no longer there.
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
