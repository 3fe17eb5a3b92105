"""Model versions in MLflow's registry: made, found and listed."""

import io
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pydantic import ValidationError

from dml import storage
from dml.errors import InvalidSetting, MissingArtifact, did_you_mean, without_password
from dml.names import check_name
from dml.refs import ModelRef, PackageRef
from dml.registry.connection import as_default, connect
from dml.registry.database import REGISTRY_LOCK
from dml.registry.notes import note_of, note_of_model
from dml.registry.registered import note_registered
from dml.registry.tracking import Run
from dml.settings import has_registry, local_folder, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
REASON_TAG = "dml.reason"
AGAIN = "give the same training again"
UNJUDGED = f"not judged by the gate, its training was ended before; {AGAIN}"
"""The reason of a version from its making until the gate has decided."""
_PACKAGE, _STORE, _METRICS = "dml.package", "dml.store", "dml.metrics"
_REQUIREMENTS = ["torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "pyarrow", "pydantic"]


@dataclass(frozen=True)
class Listing:
    """What a registry holds."""

    models: Sequence[ModelRef]
    """Ours, newest first within a name."""
    foreign: Sequence[str]
    """Registered models that hold no version of ours, NAME, and what stands beside ours, NAME/VERSION."""


def register(
    store: str,
    run: Run,
    name: str,
    package: PackageRef,
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]] | None = None,
) -> ModelRef:
    """Make a package a version of a registered model; the same package is registered once.

    Args:
        store: the store's URI, where the package lies.
        run: the MLflow run that made it.
        name: the registered model's name.
        package: what `mlflow.pyfunc.load_model` will load, image bytes in and embeddings out.
        metrics: how it does on a test split.
        baselines: name to metrics of what it is set against, for its description.

    Raises:
        Unreachable: MLflow does not answer.
    """
    check_name(name, "model")
    client = connect(run.tracking_uri)
    with storage.exclusive(local_folder(store) / REGISTRY_LOCK):
        model = _oldest(client, store, name, package) or _new_version(client, store, run, name, package)
        note_registered(client, run.tracking_uri, model)
        client.set_model_version_tag(name, str(model.version), _METRICS, json.dumps(dict(metrics)))
        note = note_of(f"models:/{model}", package, metrics, baselines or {})
        client.update_model_version(name, str(model.version), note)
        client.set_tag(run.id, "mlflow.note.content", note)
        if not client.get_registered_model(name).description:
            client.update_registered_model(name, note_of_model(name))
    return model.model_copy(update={"metrics": dict(metrics)})


def _new_version(client: "MlflowClient", store: str, run: Run, name: str, package: PackageRef) -> ModelRef:
    tags = {
        _PACKAGE: json.dumps(storage.relative_references(package.model_dump(mode="json"), store)),
        _STORE: store,
        REASON_TAG: UNJUDGED,
    }
    with as_default(run.tracking_uri):
        import mlflow

        created = mlflow.register_model(_log_model(run, package), name, tags=tags)
    oldest = _oldest(client, store, name, package)
    if oldest is not None and oldest.version != int(created.version):  # another machine was first
        client.delete_model_version(name, created.version)
        return oldest
    return _model_ref(client.get_model_version(name, created.version), store)


def _oldest(client: "MlflowClient", store: str, name: str, package: PackageRef) -> ModelRef | None:
    """The version that holds a package already."""
    return next((m for m in reversed(versions_of(client, store, name)) if _is_same(m.package, package)), None)


def _is_same(package: PackageRef, other: PackageRef) -> bool:
    """The same weights, trained on the same images."""
    datasets = [each.dataset.fingerprint if each.dataset else None for each in (package, other)]
    return package.fingerprint == other.fingerprint and datasets[0] == datasets[1]


def _log_model(run: Run, package: PackageRef) -> str:
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, package.dim), "embedding")]),
    )
    code, example = Path(__file__).parents[1], pd.DataFrame({"image": [_example()]})
    with mlflow.start_run(run_id=run.id):
        logged = mlflow.pyfunc.log_model(
            name="package",
            loader_module="dml.registry.pyfunc",
            data_path=str(storage.fetch(package.uri, package.fingerprint)),
            code_paths=[str(code)],
            signature=signature,
            input_example=example,
            pip_requirements=_REQUIREMENTS,
        )
    return str(logged.model_uri)


def _example() -> bytes:
    """A drawn picture: nobody's photograph stands in a model's description."""
    out = io.BytesIO()
    Image.fromarray(np.add.outer(np.arange(32), 7 * np.arange(32)).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def find_champion(store: str, name: str) -> ModelRef | None:
    """The version the alias `champion` names, or None before the first."""
    check_name(name, "model")
    if not has_registry(store):
        return None
    versions = versions_of(connect(tracking_uri(store)), store, name)
    return next((model for model in versions if model.promoted), None)


def find_model(store: str, name: str) -> ModelRef:
    """A model version by `NAME` or `NAME@champion` (the alias) or `NAME/3` (the version).

    Args:
        store: the store's URI.
        name: as the user gave it.

    Raises:
        InvalidSetting: no name can be so.
        MissingArtifact: there is none, with those there are.
    """
    base, slash, version = name.partition("/")
    base, _, alias = base.partition("@")
    check_name(base, "model")
    if not has_registry(store):
        raise no_such_model(store, name, [])
    client = connect(tracking_uri(store))
    versions = versions_of(client, store, base)
    named = None
    if versions and not slash:
        named = version_of_alias(client, base, alias or CHAMPION)
        version = named or ""
    for model in versions:
        if str(model.version) == version:
            return model
    raise no_such_model(store, name, versions, foreign=named)


def version_of_alias(client: "MlflowClient", name: str, alias: str) -> str | None:
    """The version of a registered model that an alias names, whoever made it; None: no such alias."""
    version = client.get_registered_model(name).aliases.get(alias)
    return None if version is None else str(version)


def no_such_model(
    store: str, name: str, versions: Sequence[ModelRef], *, foreign: str | None = None
) -> MissingArtifact:
    """What to raise where a name, an alias or a version is not there.

    Args:
        store: the store's URI.
        name: as the user gave it.
        versions: of the model that there are.
        foreign: the version that the alias names, which is none of them.
    """
    if versions:
        have = ", ".join(_shown(model) for model in versions)
        bare = not {"/", "@"} & set(name)
        what = f"{name} has no champion" if bare else f"There is no {name}"
        if foreign is not None:
            what += f": the alias is on version {foreign}, which dml did not make or cannot read"
        first = versions[0]
        judge = ""
        if bare and not foreign and (first.alias, first.reason) == (None, UNJUDGED):
            judge = f", or finish the training of {first}: {AGAIN}"
        return MissingArtifact(f"{what}; there are {have}. Name one of them, as {first}{judge}.")
    names = sorted({model.name for model in list_models(store)})
    return MissingArtifact(
        f"Model {name!r} must be in the registry; it has {names or 'none'}. Train one: dml train DATASET."
        f"{did_you_mean(name.partition('/')[0].partition('@')[0], names)}"
    )


def _shown(model: ModelRef) -> str:
    if model.alias:
        return f"{model} (@{model.alias})"
    return f"{model} (not judged)" if model.reason == UNJUDGED else str(model)


def list_models(store: str) -> list[ModelRef]:
    """Every version of every registered model of ours, newest first within a name."""
    return list(read_registry(store).models)


def read_registry(store: str) -> Listing:
    """Every version of every registered model; what is not ours, or damaged, ends nothing."""
    if not has_registry(store):
        return Listing(models=[], foreign=[])
    client = connect(tracking_uri(store))
    names = sorted(registered.name for registered in _every_page(client.search_registered_models))
    models: list[ModelRef] = []
    foreign: list[str] = []
    for name in names:
        ours, others = _versions(client, store, name) if _is_name(name) else ([], [])
        models += ours
        foreign += [f"{name}/{version}" for version in others] if ours else [name]
    return Listing(models=models, foreign=foreign)


def page_of(store: str, model: ModelRef) -> str | None:
    """The address of a version's page, where MLflow has a server."""
    uri = without_password(tracking_uri(store))
    return (
        f"{uri.rstrip('/')}/#/models/{model.name}/versions/{model.version}"
        if uri.startswith("http")
        else None
    )


def _is_name(name: str) -> bool:
    try:
        check_name(name)
    except InvalidSetting:
        return False
    return True


def versions_of(client: "MlflowClient", store: str, name: str) -> list[ModelRef]:
    """Ours, newest first; `name` was checked, so it can stand in a filter."""
    return _versions(client, store, name)[0]


def _versions(client: "MlflowClient", store: str, name: str) -> tuple[list[ModelRef], list[int]]:
    """Ours, newest first, and the numbers of those that are not ours."""
    every = _every_page(client.search_model_versions, f"name = '{name}'")
    found = [version for version in every if _PACKAGE in version.tags]
    aliases = _aliases(client, name) if found else {}
    ours = []
    for version in found:
        try:
            ours.append(_model_ref(version, store, aliases.get(str(version.version))))
        except (ValueError, TypeError) as error:
            why = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            logger.warning(
                "Version %s of model %s has damaged tags and is left out: %s", version.version, name, why
            )
    others = sorted(int(version.version) for version in every if _PACKAGE not in version.tags)
    return sorted(ours, key=lambda model: -model.version), others


def _every_page(search: Callable[..., Any], *arguments: Any) -> list[Any]:
    page = search(*arguments)
    found = list(page)
    while page.token:
        page = search(*arguments, page_token=page.token)
        found += page
    return found


def _aliases(client: "MlflowClient", name: str) -> dict[str, str]:
    """Version to alias; of several, champion comes before challenger, and both before a user's own."""
    by_alias: dict[str, Any] = client.get_registered_model(name).aliases
    rank = {CHAMPION: 2, CHALLENGER: 1}
    ordered = sorted(by_alias.items(), key=lambda pair: (rank.get(pair[0], 0), pair[0]))
    return {str(version): alias for alias, version in ordered}


def _model_ref(version: "ModelVersion", store: str, alias: str | None = None) -> ModelRef:
    return ModelRef(
        name=version.name,
        version=int(version.version),
        alias=alias,
        package=_package_of(version, store),
        metrics=json.loads(version.tags.get(_METRICS, "{}")),
        reason=version.tags.get(REASON_TAG, ""),
        created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
    )


def _package_of(version: "ModelVersion", store: str) -> PackageRef:
    """In this store, wherever it lies; else in that it was registered from, where several share an MLflow."""
    tree = json.loads(version.tags[_PACKAGE])
    package = PackageRef.model_validate(storage.absolute_references(tree, store))
    registered_from = version.tags.get(_STORE, store)
    if registered_from != store and not storage.is_complete(package.uri):
        return PackageRef.model_validate(storage.absolute_references(tree, registered_from))
    return package
