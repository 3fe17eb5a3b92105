"""Removing versions of registered models."""

from dml import storage
from dml.errors import InvalidSetting
from dml.refs import ModelRef
from dml.registry.catalog import find_model, list_models
from dml.registry.connection import connect
from dml.registry.database import REGISTRY_LOCK
from dml.registry.registered import end_note
from dml.settings import local_folder, tracking_uri


def remove_model(store: str, name: str) -> list[str]:
    """Remove a version, or all versions of a model; their packages go with the next `dml gc`.

    In an MLflow that others use too, what this store did not register stays: versions of other stores, and
    those that are not ours. The registered model goes with its last version.

    Args:
        store: the store's URI.
        name: NAME or NAME/VERSION.

    Returns:
        What was removed, as NAME/VERSION.

    Raises:
        MissingArtifact: there is no such version.
        InvalidSetting: it is the champion, or of another store.
    """
    base, slash, _ = name.partition("/")
    found = find_model(store, name) if slash else None
    if found is not None and found.promoted:
        raise InvalidSetting(
            f"{found} must not be the champion; it is. Go back first (`dml rollback model {base}`), or "
            f"remove all of {base}: `dml rm model {base}`."
        )
    versions = [found] if found else [model for model in list_models(store) if model.name == base]
    if not versions:
        find_model(store, name)  # raises, with the models there are
    own = [model for model in versions if _lies_in(model, store)]
    if not own:
        other = versions[0].package.uri.rpartition("/packages/")[0]
        raise InvalidSetting(
            f"{versions[0]} must be of this store, {store}; its package is of {other}. Remove it there: "
            f"dml rm model {name} --store {other}."
        )
    client = connect(tracking_uri(store))
    with storage.exclusive(local_folder(store) / REGISTRY_LOCK):
        for model in own:
            end_note(client, model)
            client.delete_model_version(base, str(model.version))
        if not slash and not client.search_model_versions(f"name = '{base}'", max_results=1):
            client.delete_registered_model(base)
    return [str(model) for model in own]


def _lies_in(model: ModelRef, store: str) -> bool:
    return model.package.uri.startswith(f"{store.rstrip('/')}/")
