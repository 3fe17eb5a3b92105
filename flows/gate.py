"""A new version and the champion are evaluated alike, and the gate decides."""

from dml.config import EvaluationConfig, GateConfig
from dml.errors import CorruptArtifact, MissingArtifact
from dml.refs import ModelRef
from dml.registry.catalog import find_champion
from dml.registry.champion import ChampionMoved, apply_gate
from dml.reports import EvaluationReport
from flows.evaluate import compare_packages, evaluate_package
from flows.policy import announce, say, stage


def promote_if_better(
    store: str, new: ModelRef, report: EvaluationReport, evaluation: EvaluationConfig, gate: GateConfig
) -> ModelRef:
    """Evaluate the champion as the new version was evaluated, and let the gate decide.

    The champion's recorded metrics may be of another split or of other settings, so it is evaluated again;
    its embeddings of a split are made once.
    """
    while True:
        try:
            model = _judge(store, new, report, evaluation, gate)
        except ChampionMoved as moved:  # by another version that was judged at the same time
            say(f"{moved}; it is compared with that")
        else:
            break
    if model.promoted and new != model:
        announce("dml.model.promoted", f"mlflow.model.{model.name}", model.model_dump(mode="json"))
    return model


def _judge(
    store: str, new: ModelRef, report: EvaluationReport, evaluation: EvaluationConfig, gate: GateConfig
) -> ModelRef:
    dataset = report.dataset
    champion = stage(find_champion)(store, new.name)
    metrics = None if champion is None else champion.metrics
    comparison = None
    try:
        if champion is not None and champion.version != new.version:
            alone = EvaluationConfig(**{**evaluation.model_dump(), "baselines": False})
            metrics = evaluate_package(store, champion.package, dataset, alone).metrics
        if champion is not None and gate.confidence is not None:
            packages = new.package, champion.package
            comparison = compare_packages(store, *packages, dataset, evaluation, gate)
    except (MissingArtifact, CorruptArtifact) as error:
        raise type(error)(
            f"{new} must be compared with the champion {champion}, which cannot be evaluated. {error} Bring "
            f"it back from a copy and give the same again, or do without it: dml rollback model {new}."
        ) from error
    against = None if champion is None else champion.version
    return stage(apply_gate)(store, new, gate, metrics, comparison, report.baseline_metrics, against=against)
