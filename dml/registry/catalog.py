"""Model versions in MLflow's registry: registered, looked up and listed."""

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
from dml.models.package import requirements_of
from dml.names import check_name
from dml.refs import ModelRef, PackageRef
from dml.registry.connection import as_default, connect
from dml.registry.database import REGISTRY_LOCK
from dml.registry.notes import model_description, version_description
from dml.registry.registered import add_registration_note
from dml.registry.tracking import Run
from dml.settings import has_registry, local_folder, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

logger = logging.getLogger(__name__)

CHAMPION, CHALLENGER = "champion", "challenger"
REASON_TAG = "dml.reason"
RERUN = "run the same training again"
UNJUDGED = f"not judged by the gate, since its training ended before; {RERUN}"
"""The reason of a version between its registration and the gate's decision."""
_PACKAGE, _STORE, _METRICS = "dml.package", "dml.store", "dml.metrics"
_REQUIREMENTS = ["torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "pyarrow", "pydantic"]


@dataclass(frozen=True)
class Listing:
    """The content of a registry."""

    models: Sequence[ModelRef]
    """Versions that this project registered, newest first within a name."""
    foreign: Sequence[str]
    """Other entries: NAME of models with no version of this project, NAME/VERSION of other versions."""


def register(
    store: str,
    run: Run,
    name: str,
    package: PackageRef,
    metrics: Mapping[str, float],
    baselines: Mapping[str, Mapping[str, float]] | None = None,
) -> ModelRef:
    """Register a package as a version of a model; the same package is registered only once.

    Args:
        store: URI of the store that holds the package.
        run: the MLflow run that trained it.
        name: the registered model's name.
        package: the package that `mlflow.pyfunc.load_model` will load, image bytes in and embeddings out.
        metrics: metrics on a test split.
        baselines: the baselines' metrics by name, for the description.

    Raises:
        Unreachable: MLflow does not answer.
    """
    check_name(name, "model")
    client = connect(run.tracking_uri)
    with storage.exclusive(local_folder(store) / REGISTRY_LOCK):
        model = _existing_version(client, store, name, package) or _new_version(
            client, store, run, name, package
        )
        add_registration_note(client, run.tracking_uri, model)
        client.set_model_version_tag(name, str(model.version), _METRICS, json.dumps(dict(metrics)))
        description = version_description(f"models:/{model}", package, metrics, baselines or {})
        client.update_model_version(name, str(model.version), description)
        client.set_tag(run.id, "mlflow.note.content", description)
        if not client.get_registered_model(name).description:
            client.update_registered_model(name, model_description(name))
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
    existing = _existing_version(client, store, name, package)
    if existing is not None and existing.version != int(created.version):  # another machine was first
        client.delete_model_version(name, created.version)
        return existing
    return _model_ref(client.get_model_version(name, created.version), store)


def _existing_version(client: "MlflowClient", store: str, name: str, package: PackageRef) -> ModelRef | None:
    """The oldest version that holds the package."""
    return next(
        (m for m in reversed(model_versions(client, store, name)) if _is_same(m.package, package)), None
    )


def _is_same(package: PackageRef, other: PackageRef) -> bool:
    """Whether two packages have the same weights and were trained on the same images."""
    first, second = (p.dataset.fingerprint if p.dataset else None for p in (package, other))
    return package.fingerprint == other.fingerprint and first == second


def _log_model(run: Run, package: PackageRef) -> str:
    import mlflow.pyfunc
    import pandas as pd
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, package.dim), "embedding")]),
    )
    code, example = Path(__file__).parents[1], pd.DataFrame({"image": [_example_image()]})
    with mlflow.start_run(run_id=run.id):
        logged = mlflow.pyfunc.log_model(
            name="package",
            loader_module="dml.registry.pyfunc",
            data_path=str(storage.fetch(package.uri, package.fingerprint)),
            code_paths=[str(code)],
            signature=signature,
            input_example=example,
            pip_requirements=[*_REQUIREMENTS, *requirements_of(package)],
        )
    return str(logged.model_uri)


def _example_image() -> bytes:
    """A synthetic image for the model's signature, so that no user's photograph is published.

    Of the size of an aligned face, which a model that detects faces takes as one.
    """
    out = io.BytesIO()
    Image.fromarray(np.add.outer(np.arange(112), 7 * np.arange(112)).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def find_champion(store: str, name: str) -> ModelRef | None:
    """The version with the alias `champion`, or None."""
    check_name(name, "model")
    if not has_registry(store):
        return None
    versions = model_versions(connect(tracking_uri(store)), store, name)
    return next((model for model in versions if model.promoted), None)


def find_model(store: str, name: str) -> ModelRef:
    """A model version by `NAME` or `NAME@champion` (the alias) or `NAME/3` (the version).

    Args:
        store: the store's URI.
        name: as the user gave it.

    Raises:
        InvalidSetting: the name is invalid.
        MissingArtifact: there is no such version; the message lists the existing ones.
    """
    base, slash, version = name.partition("/")
    base, _, alias = base.partition("@")
    check_name(base, "model")
    if not has_registry(store):
        raise missing_model(store, name, [])
    client = connect(tracking_uri(store))
    versions = model_versions(client, store, base)
    aliased = None
    if versions and not slash:
        aliased = alias_version(client, base, alias or CHAMPION)
        version = aliased or ""
    for model in versions:
        if str(model.version) == version:
            return model
    raise missing_model(store, name, versions, foreign=aliased)


def alias_version(client: "MlflowClient", name: str, alias: str) -> str | None:
    """The version of a registered model that has an alias, or None; also a version not made by dml."""
    version = client.get_registered_model(name).aliases.get(alias)
    return None if version is None else str(version)


def missing_model(
    store: str, name: str, versions: Sequence[ModelRef], *, foreign: str | None = None
) -> MissingArtifact:
    """The error for a name, an alias or a version that does not exist.

    Args:
        store: the store's URI.
        name: as the user gave it.
        versions: the model's existing versions.
        foreign: the version that has the alias, if it is not one of `versions`.
    """
    if versions:
        existing = ", ".join(_shown(model) for model in versions)
        is_bare_name = not {"/", "@"} & set(name)
        problem = f"{name} has no champion" if is_bare_name else f"There is no {name}"
        if foreign is not None:
            problem += f": the alias is on version {foreign}, which dml did not make or cannot read"
        first = versions[0]
        remedy = ""
        if is_bare_name and not foreign and (first.alias, first.reason) == (None, UNJUDGED):
            remedy = f", or finish the training of {first}: {RERUN}"
        return MissingArtifact(
            f"{problem}; the versions are {existing}. Name one of them, such as {first}{remedy}."
        )
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
    """Every version that this project registered, newest first within a name."""
    return list(read_registry(store).models)


def read_registry(store: str) -> Listing:
    """Every version of every registered model; foreign and damaged entries raise no error."""
    if not has_registry(store):
        return Listing(models=[], foreign=[])
    client = connect(tracking_uri(store))
    names = sorted(registered.name for registered in _all_pages(client.search_registered_models))
    models: list[ModelRef] = []
    foreign: list[str] = []
    for name in names:
        known, others = _versions(client, store, name) if _is_name(name) else ([], [])
        models += known
        foreign += [f"{name}/{version}" for version in others] if known else [name]
    return Listing(models=models, foreign=foreign)


def model_page_url(store: str, model: ModelRef) -> str | None:
    """The URL of a version's page; None if MLflow has no server."""
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


def model_versions(client: "MlflowClient", store: str, name: str) -> list[ModelRef]:
    """Versions that this project registered, newest first. `name` must be valid: it goes into a filter."""
    return _versions(client, store, name)[0]


def _versions(client: "MlflowClient", store: str, name: str) -> tuple[list[ModelRef], list[int]]:
    """Versions that this project registered, newest first, and the numbers of the other versions."""
    every = _all_pages(client.search_model_versions, f"name = '{name}'")
    tagged = [version for version in every if _PACKAGE in version.tags]
    aliases = _aliases(client, name) if tagged else {}
    known = []
    for version in tagged:
        try:
            known.append(_model_ref(version, store, aliases.get(str(version.version))))
        except (ValueError, TypeError) as error:
            reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
            logger.warning(
                "Version %s of model %s has damaged tags and is left out: %s", version.version, name, reason
            )
    others = sorted(int(version.version) for version in every if _PACKAGE not in version.tags)
    return sorted(known, key=lambda model: -model.version), others


def _all_pages(search: Callable[..., Any], *arguments: Any) -> list[Any]:
    page = search(*arguments)
    results = list(page)
    while page.token:
        page = search(*arguments, page_token=page.token)
        results += page
    return results


def _aliases(client: "MlflowClient", name: str) -> dict[str, str]:
    """Alias by version; champion is preferred to challenger, and both to any other alias."""
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
    """The version's package in this store; in a shared MLflow, else in the store it was registered from."""
    tree = json.loads(version.tags[_PACKAGE])
    package = PackageRef.model_validate(storage.absolute_references(tree, store))
    registered_from = version.tags.get(_STORE, store)
    if registered_from != store and not storage.is_complete(package.uri):
        return PackageRef.model_validate(storage.absolute_references(tree, registered_from))
    return package
