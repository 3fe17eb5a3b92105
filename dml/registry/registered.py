"""Which packages of a store are registered, and where: a note beside each, which `dml gc` reads.

Which MLflow is asked depends on the environment. `dml gc` in another shell, without the `MLFLOW_TRACKING_URI`
that a model was registered with, must not take its package for one that nobody needs.
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


def note_registered(client: "MlflowClient", address: str, model: ModelRef) -> None:
    """Note beside a version's package that it is registered, and where.

    Args:
        client: of the MLflow it is registered in.
        address: of that.
        model: the version.
    """
    run = _run_of(client, model)
    note = {
        "mlflow": without_password(address),
        "model": model.name,
        "version": model.version,
        "run": run,  # tells one MLflow from another, whatever its address is now
    }

    def add(held: dict[str, Any] | None) -> dict[str, Any]:
        others = [each for each in held["registered"] if not _same(each, model, run)] if held else []
        return {"registered": [*others, note]}

    storage.update_checked(model.package.uri + _SUFFIX, add)  # others may register the same package now


def end_note(client: "MlflowClient", model: ModelRef) -> None:
    """Take the note back; to be called before the version is removed."""
    run = _run_of(client, model)

    def drop(held: dict[str, Any] | None) -> dict[str, Any]:
        return {
            "registered": [each for each in held["registered"] if not _same(each, model, run)] if held else []
        }

    storage.update_checked(model.package.uri + _SUFFIX, drop)


def registered_elsewhere(store: str) -> list[str]:
    """URIs of the packages whose version the MLflow that is set now does not know, or does not show.

    What was removed in that MLflow itself is not among them: it knows the version's run, and no version.
    """
    root = storage.join(store, "packages")
    client = connect(tracking_uri(store)) if has_registry(store) else None
    found = []
    for name in storage.list_names(root):
        uri = storage.join(root, name.removesuffix(_SUFFIX))
        if not name.endswith(_SUFFIX) or not storage.is_complete(uri):
            continue
        standing = [note for note in _notes(uri) if client is None or _may_stand(client, note)]
        if standing:
            found.append(uri)
    return found


def _may_stand(client: "MlflowClient", note: dict[str, Any]) -> bool:
    if _is_there(lambda: client.get_model_version(note["model"], str(note["version"]))):
        return True
    if _is_there(lambda: client.get_run(note["run"])):
        return False
    logger.warning(
        "A package stays: it is registered as %s/%s in another MLflow, at %s. Remove it with that as "
        "MLFLOW_TRACKING_URI.",
        *(note["model"], note["version"], note["mlflow"]),
    )
    return True


def _is_there(ask: Any) -> bool:
    from mlflow.exceptions import MlflowException

    try:
        ask()
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise
    return True


def _run_of(client: "MlflowClient", model: ModelRef) -> str:
    return str(client.get_model_version(model.name, str(model.version)).run_id)


def _same(note: dict[str, Any], model: ModelRef, run: str) -> bool:
    return (note["model"], note["version"], note["run"]) == (model.name, model.version, run)


def _notes(package: str) -> list[dict[str, Any]]:
    held = storage.read_checked(package + _SUFFIX)
    return list(held["registered"]) if held else []
