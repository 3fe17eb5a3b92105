"""Removing versions of registered models."""

from dml import storage
from dml.errors import InvalidSetting
from dml.refs import ModelRef
from dml.registry.catalog import find_model, list_models
from dml.registry.connection import connect
from dml.registry.database import REGISTRY_LOCK
from dml.registry.registered import remove_registration_note
from dml.settings import local_folder, tracking_uri


def remove_model(store: str, name: str) -> list[str]:
    """Remove one version, or all versions of a model; the next `dml gc` removes their packages.

    In a shared MLflow, versions that were not registered from this store are kept. A registered model is
    removed with its last version.

    Args:
        store: the store's URI.
        name: NAME or NAME/VERSION.

    Returns:
        The removed versions, as NAME/VERSION.

    Raises:
        MissingArtifact: there is no such version.
        InvalidSetting: it is the champion, or belongs to another store.
    """
    base, slash, _ = name.partition("/")
    requested = find_model(store, name) if slash else None
    if requested is not None and requested.promoted:
        raise InvalidSetting(
            f"{requested} must not be the champion; it is. Roll back first (`dml rollback model {base}`), or "
            f"remove all of {base}: `dml rm model {base}`."
        )
    versions = [requested] if requested else [model for model in list_models(store) if model.name == base]
    if not versions:
        find_model(store, name)  # raises, with the existing models
    removable = [model for model in versions if _is_in_store(model, store)]
    if not removable:
        other = versions[0].package.uri.rpartition("/packages/")[0]
        raise InvalidSetting(
            f"{versions[0]} must be of this store, {store}; its package is in {other}. Remove it with "
            f"dml rm model {name} --store {other}."
        )
    client = connect(tracking_uri(store))
    with storage.exclusive(local_folder(store) / REGISTRY_LOCK):
        for model in removable:
            remove_registration_note(client, model)
            client.delete_model_version(base, str(model.version))
        if not slash and not client.search_model_versions(f"name = '{base}'", max_results=1):
            client.delete_registered_model(base)
    return [str(model) for model in removable]


def _is_in_store(model: ModelRef, store: str) -> bool:
    return model.package.uri.startswith(f"{store.rstrip('/')}/")
