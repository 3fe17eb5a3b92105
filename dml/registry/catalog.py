"""Model versions in MLflow's registry, and the gate a new one must pass to become the champion."""

import json
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dml import storage
from dml.config import GateConfig
from dml.errors import InvalidSetting, MissingArtifact, did_you_mean
from dml.refs import Comparison, ModelRef, PackageRef
from dml.registry.tracking import Run, as_default, connect

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

_MOST_MODELS = 1000
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
CHAMPION, CHALLENGER = "champion", "challenger"
_PACKAGE_TAG, _METRICS_TAG, REASON_TAG = "dml.package", "dml.metrics", "dml.reason"
PROMOTED_TAG = "dml.promoted_at"
"""When a version became champion: what a rollback goes back to."""
_REQUIREMENTS = ["torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "pyarrow", "pydantic"]


def model_name(name: str) -> str:
    """The name, if it can be one of a registered model; raises InvalidSetting."""
    if not _NAME.fullmatch(name):
        raise InvalidSetting(
            f"A model's name must be of a-z, 0-9, '.', '_' and '-', and begin with a letter or digit; got "
            f"{name!r}. Give another with --name."
        )
    return name


def register(run: Run, name: str, package: PackageRef, metrics: Mapping[str, float]) -> ModelRef:
    """Make a package a version of a registered model; the same package of the same run is registered once.

    Args:
        run: the MLflow run that made it.
        name: the registered model's name.
        package: what `mlflow.pyfunc.load_model` will load, image bytes in and embeddings out.
        metrics: how it does on the test split of the dataset it was trained on.
    """
    client = connect(run.tracking_uri)
    for model in _versions(client, name):
        if model.package.fingerprint == package.fingerprint and model.package.dataset == package.dataset:
            client.set_model_version_tag(name, str(model.version), _METRICS_TAG, json.dumps(dict(metrics)))
            return model.model_copy(update={"metrics": dict(metrics)})
    tags = {_PACKAGE_TAG: package.model_dump_json(), _METRICS_TAG: json.dumps(dict(metrics))}
    with as_default(run.tracking_uri):
        import mlflow

        created = mlflow.register_model(_log_model(run, package), name, tags=tags)
    return _model_ref(client.get_model_version(name, created.version))


def _log_model(run: Run, package: PackageRef) -> str:
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    signature = ModelSignature(
        inputs=Schema([ColSpec(DataType.binary, "image")]),
        outputs=Schema([TensorSpec(np.dtype("float32"), (-1, package.dim), "embedding")]),
    )
    code = Path(__file__).parents[1]
    with mlflow.start_run(run_id=run.id):
        logged = mlflow.pyfunc.log_model(
            name="package",
            loader_module="dml.registry.pyfunc",
            data_path=str(storage.fetch(package.uri, package.fingerprint)),
            code_paths=[str(code)],
            signature=signature,
            pip_requirements=_REQUIREMENTS,
        )
    return str(logged.model_uri)


def judge(
    tracking_uri: str,
    model: ModelRef,
    gate: GateConfig,
    champion_metrics: Mapping[str, float] | None,
    comparison: Comparison | None = None,
) -> ModelRef:
    """Move the alias `champion` to a version if it passes the gate, else `challenger`, and say why.

    Args:
        model: the new version.
        gate: which metric must be better, and by how much.
        champion_metrics: the present champion's on the same test split; None where there is no champion.
        comparison: of the two, query by query, where the gate asks for confidence.

    Raises:
        InvalidSetting: the gate's metric is not among the metrics that were measured.
        ValueError: a gate that asks for confidence, a champion, and no comparison.
    """
    if gate.confidence is not None and champion_metrics is not None and comparison is None:
        raise ValueError(
            f"gate.confidence {gate.confidence:g} needs a comparison with the champion; got none. Make one "
            "with retrieval.evaluate.compare."
        )
    if gate.metric not in model.metrics:
        raise InvalidSetting(
            f"gate.metric must be one of the measured metrics {sorted(model.metrics)}; got {gate.metric!r}."
        )
    if model.promoted:
        return model
    client = connect(tracking_uri)
    value = model.metrics[gate.metric]
    if champion_metrics is None:
        passed, reason = True, f"first champion: {gate.metric} {value:.4f}"
    else:
        former = champion_metrics[gate.metric]
        passed = value > former + gate.min_gain
        reason = f"{gate.metric} {value:.4f} against the champion's {former:.4f}"
        reason += f" (must gain more than {gate.min_gain:g})"
        if gate.confidence is not None and comparison is not None:
            passed = passed and comparison.p_value <= 1 - gate.confidence
            reason += (
                f"; gain {comparison.gain:+.4f} [{comparison.low:+.4f}, {comparison.high:+.4f}] on "
                f"{comparison.num_queries} queries of {comparison.num_classes} classes, p "
                f"{comparison.p_value:.4f} (must be at most {1 - gate.confidence:.4g})"
            )
    alias = CHAMPION if passed else CHALLENGER
    client.set_model_version_tag(model.name, str(model.version), REASON_TAG, reason)
    if passed:
        client.set_model_version_tag(model.name, str(model.version), PROMOTED_TAG, utc_now())
    client.set_registered_model_alias(model.name, alias, str(model.version))
    return model.model_copy(update={"alias": alias, "reason": reason})


def utc_now() -> str:
    """Now, to the microsecond, in a form that sorts as text."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


def find_champion(tracking_uri: str, name: str) -> ModelRef | None:
    """The version the alias `champion` names, or None before the first."""
    return next((m for m in _versions(connect(tracking_uri), name) if m.promoted), None)


def find_model(tracking_uri: str, name: str) -> ModelRef:
    """A model version by `NAME` or `NAME@champion` (the alias) or `NAME/3` (the version).

    Raises:
        MissingArtifact: there is none, with those there are.
    """
    base, slash, version = name.partition("/")
    base, _, alias = base.partition("@")
    client = connect(tracking_uri)
    versions = _versions(client, base)
    if versions and not slash:
        version = str(client.get_registered_model(base).aliases.get(alias or CHAMPION, ""))
    for model in versions:
        if str(model.version) == version:
            return model
    have = [f"{m.name}/{m.version}" + (f" (@{m.alias})" if m.alias else "") for m in versions]
    names = sorted({m.name for m in list_models(tracking_uri)})
    raise MissingArtifact(
        f"Model {name!r} must be in the registry; it has {have or names}. Train one: dml train."
        f"{'' if have else did_you_mean(base, names)}"
    )


def list_models(tracking_uri: str) -> list[ModelRef]:
    """Every version of every registered model of ours, newest first within a name."""
    client = connect(tracking_uri)
    names = sorted(
        registered.name for registered in client.search_registered_models(max_results=_MOST_MODELS)
    )
    return [model for name in names for model in _versions(client, name)]


def _versions(client: "MlflowClient", name: str) -> list[ModelRef]:
    found = client.search_model_versions(f"name = '{name}'")
    aliases = _aliases(client, name) if found else {}
    ours = [_model_ref(v, aliases.get(str(v.version))) for v in found if _PACKAGE_TAG in v.tags]
    return sorted(ours, key=lambda model: -model.version)


def _aliases(client: "MlflowClient", name: str) -> dict[str, str]:
    """Version to alias; of several, champion comes before challenger, and both before a user's own."""
    by_alias: dict[str, Any] = client.get_registered_model(name).aliases
    rank = {CHAMPION: 2, CHALLENGER: 1}
    ordered = sorted(by_alias.items(), key=lambda pair: (rank.get(pair[0], 0), pair[0]))
    return {str(version): alias for alias, version in ordered}


def _model_ref(version: "ModelVersion", alias: str | None = None) -> ModelRef:
    return ModelRef(
        name=version.name,
        version=int(version.version),
        alias=alias,
        package=PackageRef.model_validate_json(version.tags[_PACKAGE_TAG]),
        metrics=json.loads(version.tags.get(_METRICS_TAG, "{}")),
        reason=version.tags.get(REASON_TAG, ""),
    )
