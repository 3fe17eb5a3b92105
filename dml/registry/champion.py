"""The champion version of a model: promotion through the gate, and rollback to a former champion."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, NamedTuple

from dml import storage
from dml.config import GateConfig
from dml.errors import InvalidSetting, MissingArtifact
from dml.names import check_name
from dml.refs import ModelRef
from dml.registry.catalog import (
    CHALLENGER,
    CHAMPION,
    REASON_TAG,
    alias_version,
    missing_model,
    model_versions,
)
from dml.registry.connection import connect
from dml.registry.database import REGISTRY_LOCK
from dml.registry.tracking import user
from dml.reports import Comparison, against_pixels
from dml.settings import has_registry, local_folder, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

_CHAMPIONS, _ROLLED_BACK = "dml.champions", "dml.rolled_back"
_MAX_CHAMPIONS = 100


class ChampionMoved(Exception):
    """The champion changed after a version was compared with it; the comparison must be repeated."""


def apply_gate(
    store: str,
    model: ModelRef,
    gate: GateConfig,
    champion_metrics: Mapping[str, float] | None,
    comparison: Comparison | None = None,
    baselines: Mapping[str, Mapping[str, float]] | None = None,
    *,
    against: int | None = None,
) -> ModelRef:
    """Give a version the alias `champion` if it passes the gate, else `challenger`, and record the reason.

    An alias on a version that dml did not make stays there, since the two versions cannot be compared.

    Args:
        store: the store's URI.
        model: the new version.
        gate: which metric must be better, and by how much.
        champion_metrics: the champion's metrics on the same test split; None if there is no champion.
        comparison: paired comparison with the champion; required if the gate sets a confidence.
        baselines: metrics by name, as `EvaluationReport.baseline_metrics`.
        against: the version that `champion_metrics` belong to; None for the present champion.

    Raises:
        ChampionMoved: another version became champion meanwhile.
        InvalidSetting: the gate's metric was not measured.
        ValueError: the gate sets a confidence, there is a champion, and `comparison` is None.
    """
    _require_measured(model, gate, champion_metrics, comparison)
    if model.promoted:
        return model
    client = connect(tracking_uri(store))
    verdicts = [
        _was_rolled_back(client, model),
        _passes_floor(model, gate, baselines or {}),
        _passes_champion(model, gate, champion_metrics, comparison),
    ]
    with storage.exclusive(local_folder(store) / REGISTRY_LOCK):
        champion = next((m for m in model_versions(client, store, model.name) if m.promoted), None)
        if champion is not None and champion.version == model.version:  # the same training ran twice at once
            return model.model_copy(update={"alias": CHAMPION, "reason": champion.reason})
        if champion is not None and (champion_metrics is None or against not in (None, champion.version)):
            raise ChampionMoved(
                f"{model.name}/{champion.version} became champion while {model} was evaluated"
            )
        if champion is None and (foreign := alias_version(client, model.name, CHAMPION)) is not None:
            verdicts[-1] = _Verdict(False, _foreign_champion(model, foreign))
        alias = CHAMPION if all(verdict.passes for verdict in verdicts) else CHALLENGER
        if alias == CHALLENGER and champion_metrics is None and verdicts[-1].passes:
            del verdicts[-1]  # drop "first champion" from the reason
        reason = "; ".join(verdict.reason for verdict in verdicts if verdict.reason)
        _move_alias(client, model.name, str(model.version), alias, reason)
    return model.model_copy(update={"alias": alias, "reason": reason})


class _Verdict(NamedTuple):
    passes: bool
    reason: str
    """Empty if there is nothing to report."""


def _require_measured(
    model: ModelRef,
    gate: GateConfig,
    champion_metrics: Mapping[str, float] | None,
    comparison: Comparison | None,
) -> None:
    """Refuse a gate that asks for what was not measured."""
    if gate.confidence is not None and champion_metrics is not None and comparison is None:
        raise ValueError(
            f"gate.confidence {gate.confidence:g} needs a comparison with the champion; got none. Make one "
            "with dml.evaluation.evaluate.compare."
        )
    if gate.metric not in model.metrics:
        raise InvalidSetting(
            f"gate.metric must be one of the measured metrics {sorted(model.metrics)}; got {gate.metric!r}."
        )


def leave_unjudged(store: str, model: ModelRef, reason: str) -> ModelRef:
    """Write down why a version was not given to the gate; a version that was judged before stays as it is.

    Args:
        store: the store's URI.
        model: the version.
        reason: for people.
    """
    if model.alias is not None:
        return model
    client = connect(tracking_uri(store))
    with storage.exclusive(local_folder(store) / REGISTRY_LOCK):
        client.set_model_version_tag(model.name, str(model.version), REASON_TAG, reason)
    return model.model_copy(update={"reason": reason})


def _foreign_champion(model: ModelRef, foreign: str) -> str:
    return (
        f"the alias champion is on version {foreign}, which dml did not make or cannot read, and is kept; "
        f"`dml rollback model {model}` moves it"
    )


def _passes_champion(
    model: ModelRef,
    gate: GateConfig,
    champion_metrics: Mapping[str, float] | None,
    comparison: Comparison | None,
) -> _Verdict:
    value = model.metrics[gate.metric]
    if math.isnan(value):
        return _Verdict(False, f"{gate.metric} must be a number; it is {value}")
    if champion_metrics is None:
        return _Verdict(True, f"first champion: {gate.metric} {value:.4f}")
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
    return _Verdict(passed, reason)


def _passes_floor(
    model: ModelRef, gate: GateConfig, baselines: Mapping[str, Mapping[str, float]]
) -> _Verdict:
    """Check `gate.at_least`; the reason also notes a version that is worse than raw pixels."""
    value = model.metrics[gate.metric]
    warning = against_pixels(gate.metric, model.metrics, baselines, only_worse=True)
    if gate.at_least is None:
        return _Verdict(True, warning)
    if isinstance(gate.at_least, str):
        name = gate.at_least.replace("_", " ")
        if gate.metric not in baselines.get(name, {}):
            raise InvalidSetting(
                f"gate.at_least must be a number or a baseline that was evaluated, {sorted(baselines)}; got "
                f"{gate.at_least!r}. Set evaluation.baselines."
            )
        floor, source = baselines[name][gate.metric], f", from {name}"
    else:
        floor, source = gate.at_least, ""
    ok = value >= floor
    return _Verdict(
        ok, warning if ok else f"{gate.metric} {value:.4f} is below gate.at_least, {floor:.4f}{source}"
    )


def _was_rolled_back(client: "MlflowClient", model: ModelRef) -> _Verdict:
    """A version that a user rolled back does not become champion again when the same training is repeated."""
    text = client.get_model_version(model.name, str(model.version)).tags.get(_ROLLED_BACK)
    return _Verdict(text is None, text or "")


def rollback_champion(store: str, name: str, *, reason: str = "", by: str | None = None) -> ModelRef:
    """Make a former champion the champion again, and record the time, the user and the reason.

    Args:
        store: the store's URI.
        name: NAME for the previous champion; or NAME/VERSION for any version.
        reason: free text to record.
        by: the user to record; None for this process's user.

    Returns:
        The new champion.

    Raises:
        MissingArtifact: no such model or version, or no former champion.
        InvalidSetting: the version is already the champion.
    """
    base, slash, wanted = name.partition("/")
    check_name(base, "model")
    if not has_registry(store):
        raise missing_model(store, name, [])
    client = connect(tracking_uri(store))
    with storage.exclusive(local_folder(store) / REGISTRY_LOCK):
        versions = model_versions(client, store, base)
        by_version = {str(model.version): model for model in versions}
        present = next((model.version for model in versions if model.promoted), None)
        if not slash and versions:
            former = [v for v in map(str, _champion_history(client, base, present)[:-1]) if v in by_version]
            if not former:
                raise MissingArtifact(
                    f"Model {base!r} must have had a champion before the present one; it has "
                    f"{[str(model) for model in versions]}. Name a version: {versions[-1]}."
                )
            wanted = former[-1]
        if wanted not in by_version:
            raise missing_model(store, name, versions)
        model = by_version[wanted]
        if model.version == present:
            raise InvalidSetting(f"{model} must not already be the champion; it is. Name another version.")
        when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC by {by or user()}" + (f": {reason}" if reason else "")
        if present is not None:
            rolled_back = f"rolled back to {model} {when}"
            client.set_model_version_tag(base, str(present), _ROLLED_BACK, rolled_back)
            present_reason = f"{by_version[str(present)].reason}; {rolled_back}"
            client.set_model_version_tag(base, str(present), REASON_TAG, present_reason)
        if _ROLLED_BACK in client.get_model_version(base, wanted).tags:
            client.delete_model_version_tag(base, wanted, _ROLLED_BACK)
        new_reason = "champion again" if present is None else f"champion again, {present} rolled back"
        new_reason += f" {when}"
        _move_alias(client, base, wanted, CHAMPION, new_reason)
    return model.model_copy(update={"alias": CHAMPION, "reason": new_reason})


def _move_alias(client: "MlflowClient", name: str, version: str, alias: str, reason: str) -> None:
    """Move the alias, then record the champion; after a kill between, `_champion_history` adds it."""
    before = client.get_registered_model(name)
    client.set_model_version_tag(name, version, REASON_TAG, reason)
    client.set_registered_model_alias(name, alias, version)
    if alias == CHAMPION:
        present = before.aliases.get(CHAMPION)
        log = _champion_log(before.tags.get(_CHAMPIONS))
        if present is not None and (not log or log[-1] != int(present)):
            log.append(int(present))  # it was moved in MLflow's pages
        log.append(int(version))
        client.set_registered_model_tag(name, _CHAMPIONS, json.dumps(log[-_MAX_CHAMPIONS:]))


def _champion_history(client: "MlflowClient", name: str, present: int | None) -> list[int]:
    """Champions in order, the present one last; a rollback to one drops those after it."""
    log = _champion_log(client.get_registered_model(name).tags.get(_CHAMPIONS))
    order: list[int] = []
    for version in [*log, *([] if present is None else [present])]:
        order = [*order[: order.index(version)], version] if version in order else [*order, version]
    return order


def _champion_log(text: str | None) -> list[int]:
    try:
        return [int(version) for version in json.loads(text or "[]")]
    except (ValueError, TypeError):
        return []
