"""Notes beside registered packages that record where they are registered; `dml gc` reads them.

The environment selects the MLflow. So `dml gc` in another shell, without the `MLFLOW_TRACKING_URI` that a
model was registered with, must not remove the model's package.
"""

import logging
from typing import TYPE_CHECKING, Any

from dml import storage
from dml.errors import without_password
from dml.refs import ModelRef
from dml.registry.connection import connect
from dml.settings import has_registry, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger(__name__)

_SUFFIX = ".registered.json"


def add_registration_note(client: "MlflowClient", address: str, model: ModelRef) -> None:
    """Write a note beside a version's package that records where it is registered.

    Args:
        client: client of the MLflow that holds the version.
        address: tracking URI of that MLflow.
        model: the version.
    """
    run = _run_id(client, model)
    note = {
        "mlflow": without_password(address),
        "model": model.name,
        "version": model.version,
        "run": run,  # identifies the MLflow, also if its address changes
    }

    def add(content: dict[str, Any] | None) -> dict[str, Any]:
        return {"registered": [*_other_notes(content, model, run), note]}

    storage.update_checked(model.package.uri + _SUFFIX, add)  # another process may register the same package


def remove_registration_note(client: "MlflowClient", model: ModelRef) -> None:
    """Remove the note of a version; call it before the version is removed."""
    run = _run_id(client, model)

    def drop(content: dict[str, Any] | None) -> dict[str, Any]:
        return {"registered": _other_notes(content, model, run)}

    storage.update_checked(model.package.uri + _SUFFIX, drop)


def _other_notes(content: dict[str, Any] | None, model: ModelRef, run: str) -> list[dict[str, Any]]:
    notes = content["registered"] if content else []
    return [note for note in notes if not _is_note_of(note, model, run)]


def registered_elsewhere(store: str) -> list[str]:
    """URIs of the packages whose version the configured MLflow does not know, or cannot read.

    A version that was removed in MLflow itself is not included: MLflow still has its run, but not the
    version.
    """
    root = storage.join(store, "packages")
    client = connect(tracking_uri(store)) if has_registry(store) else None
    packages = []
    for name in storage.list_names(root):
        uri = storage.join(root, name.removesuffix(_SUFFIX))
        if not name.endswith(_SUFFIX) or not storage.is_complete(uri):
            continue
        valid = [note for note in _notes(uri) if client is None or _may_be_valid(client, note)]
        if valid:
            packages.append(uri)
    return packages


def _may_be_valid(client: "MlflowClient", note: dict[str, Any]) -> bool:
    if _exists(lambda: client.get_model_version(note["model"], str(note["version"]))):
        return True
    if _exists(lambda: client.get_run(note["run"])):
        return False
    logger.warning(
        "A package is kept: it is registered as %s/%s in another MLflow, at %s. To remove it, set "
        "MLFLOW_TRACKING_URI to that address.",
        *(note["model"], note["version"], note["mlflow"]),
    )
    return True


def _exists(request: Any) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        request()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise
    return True


def _run_id(client: "MlflowClient", model: ModelRef) -> str:
    return str(client.get_model_version(model.name, str(model.version)).run_id)


def _is_note_of(note: dict[str, Any], model: ModelRef, run: str) -> bool:
    return (note["model"], note["version"], note["run"]) == (model.name, model.version, run)


def _notes(package: str) -> list[dict[str, Any]]:
    content = storage.read_checked(package + _SUFFIX)
    return list(content["registered"]) if content else []
