"""Taking a registered model's alias back, and removing a version that no alias needs."""

from dml.errors import InvalidSetting, MissingArtifact
from dml.refs import ModelRef
from dml.registry.catalog import CHAMPION, PROMOTED_TAG, REASON_TAG, find_model, list_models, utc_now
from dml.registry.tracking import connect


def rollback_champion(tracking_uri: str, name: str) -> ModelRef:
    """Make a former champion the champion again.

    Args:
        tracking_uri: MLflow's.
        name: NAME, the champion before the present one; or NAME/VERSION, any version.

    Raises:
        MissingArtifact: there is no such version, or never was another champion.
    """
    base, _, _ = name.partition("/")
    client = connect(tracking_uri)
    versions = [model for model in list_models(tracking_uri) if model.name == base]
    present = next((model for model in versions if model.promoted), None)
    if "/" in name:
        wanted = find_model(tracking_uri, name)
    else:
        times = {
            model.version: client.get_model_version(base, str(model.version)).tags.get(PROMOTED_TAG, "")
            for model in versions
        }
        limit = times.get(present.version, "") if present else "9999"
        former = [m for m in versions if times[m.version] and times[m.version] < limit]
        if present is None or not former:
            raise MissingArtifact(
                f"Model {base!r} must have had a champion before the present one; it has "
                f"{[str(m) for m in versions] or 'no version'}. Name a version: {base}/1."
            )
        wanted = max(former, key=lambda model: times[model.version])
    if present is not None and present.version == wanted.version:
        raise InvalidSetting(f"{present} must not be the champion already; it is. Name another version.")
    if present is not None:
        reason = f"{present.reason}; taken back {utc_now()}, {wanted} is champion again"
        client.set_model_version_tag(base, str(present.version), REASON_TAG, reason)
    client.set_registered_model_alias(base, CHAMPION, str(wanted.version))
    return find_model(tracking_uri, f"{base}/{wanted.version}")


def remove_model(tracking_uri: str, name: str) -> list[str]:
    """Remove a version, or a model with all its versions; its package goes with the next `dml gc`.

    Args:
        tracking_uri: MLflow's.
        name: NAME or NAME/VERSION.

    Returns:
        What was removed, as NAME/VERSION.

    Raises:
        MissingArtifact: there is no such version.
        InvalidSetting: it is the champion.
    """
    client = connect(tracking_uri)
    base, slash, _ = name.partition("/")
    if slash:
        model = find_model(tracking_uri, name)
        if model.promoted:
            raise InvalidSetting(
                f"{model} must not be the champion; it is. Go back first (`dml rollback model {base}`), or "
                f"remove all of {base}: `dml rm model {base}`."
            )
        client.delete_model_version(base, str(model.version))
        return [str(model)]
    versions = [model for model in list_models(tracking_uri) if model.name == base]
    if not versions:
        find_model(tracking_uri, name)  # raises, with the models there are
    client.delete_registered_model(base)
    return [str(model) for model in versions]
