"""Removing versions of registered models."""

from dml.errors import InvalidSetting
from dml.registry.catalog import find_model, list_models
from dml.registry.connection import connect
from dml.settings import tracking_uri


def remove_model(store: str, name: str) -> list[str]:
    """Remove a version, or a model with all its versions; its package goes with the next `dml gc`.

    Args:
        store: the store's URI.
        name: NAME or NAME/VERSION.

    Returns:
        What was removed, as NAME/VERSION.

    Raises:
        MissingArtifact: there is no such version.
        InvalidSetting: it is the champion.
    """
    base, slash, _ = name.partition("/")
    if slash:
        model = find_model(store, name)
        if model.promoted:
            raise InvalidSetting(
                f"{model} must not be the champion; it is. Go back first (`dml rollback model {base}`), or "
                f"remove all of {base}: `dml rm model {base}`."
            )
        connect(tracking_uri(store)).delete_model_version(base, str(model.version))
        return [str(model)]
    versions = [model for model in list_models(store) if model.name == base]
    if not versions:
        find_model(store, name)  # raises, with the models there are
    connect(tracking_uri(store)).delete_registered_model(base)
    return [str(model) for model in versions]
