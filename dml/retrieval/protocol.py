"""Who searches whom, and every number an evaluation's configuration asks of one embedding."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dml.config import EvaluationConfig, FewShotConfig
from dml.errors import InvalidData, InvalidSetting
from dml.metrics.clustering import (
    adjusted_mutual_information,
    normalised_mutual_information,
    pairwise_f1,
)
from dml.metrics.fewshot import few_shot
from dml.metrics.intervals import Interval, bootstrap_intervals
from dml.metrics.ranking import Items
from dml.metrics.retrieval import QueryMetrics, query_metrics
from dml.metrics.verification import roc_of_all_pairs
from dml.retrieval.clusters import k_means

MOST_SLICES = 100
QUERY, GALLERY = "query", "gallery"


@dataclass(frozen=True)
class Rows:
    """What is known of the items to judge, beside their vectors."""

    labels: NDArray[np.int64]
    """(N,) class ids."""
    attributes: Mapping[str, Sequence[Any]]
    """Name to N values, None where one is missing; those that `attributes_of` the configuration names."""


def attributes_of(config: EvaluationConfig) -> list[str]:
    """The attributes that an evaluation needs."""
    single = [config.role_attribute, config.same_camera_attribute]
    single.append(config.few_shot.within if config.few_shot else None)
    return list(dict.fromkeys([*config.slices, *(name for name in single if name is not None)]))


def measure(vectors: NDArray[np.float32], rows: Rows, config: EvaluationConfig) -> dict[str, float]:
    """All the numbers of `config.metrics`; NAME.low and NAME.high of intervals; A/VALUE/NAME of slices.

    Args:
        vectors: (N, D), unit length.
        rows: theirs, in the same order.
        config: what to measure.

    Raises:
        InvalidData: no query or no gallery item where roles are asked for, or too many slices.
        InvalidSetting: what cannot be measured on these rows, as episodes of more classes than there are.
    """
    embeddings = torch.from_numpy(np.ascontiguousarray(vectors)).to(device_for(vectors.nbytes))
    labels = torch.from_numpy(rows.labels).to(embeddings.device)
    found = query_values(embeddings, rows, config)
    numbers = found.means()
    if config.macro:
        numbers |= {f"{name}_macro": value for name, value in found.class_means().items()}
    numbers |= _retrieval_intervals(found, config)
    numbers |= _verification(embeddings, labels, config)
    if config.few_shot is not None:
        numbers |= _few_shot(embeddings, labels, rows, config.few_shot)
    if config.nmi:
        numbers |= _clustering(vectors, rows.labels, config)
    for name, chosen in _slices(rows, found, config):
        part = found.of(chosen)
        numbers |= {f"{name}/{metric}": value for metric, value in part.means().items()}
        numbers[f"{name}/num_queries"] = len(part.rows)
    return numbers


def query_values(embeddings: Tensor, rows: Rows, config: EvaluationConfig) -> QueryMetrics:
    """Every retrieval metric of every query; its `rows` count the queries alone where there are roles."""
    return query_metrics(
        *sides(embeddings, rows, config),
        recall_at=config.recall_at,
        precision_at=config.precision_at,
        map_at=config.map_at,
        map_denominators=config.map_denominators,
        full_map=config.full_map,
    )


def sides(embeddings: Tensor, rows: Rows, config: EvaluationConfig) -> list[Items]:
    """Who asks and who answers, or one side where everybody is both; an item's id is its row.

    Raises:
        InvalidData: no query or no gallery item where roles are asked for.
    """
    labels = torch.from_numpy(rows.labels).to(embeddings.device)
    ids, groups = torch.arange(len(labels), device=labels.device), None
    if config.same_camera_attribute is not None:
        groups = _codes(rows.attributes[config.same_camera_attribute]).to(labels.device)
    return [
        Items(embeddings[own], labels[own], ids[own], None if groups is None else groups[own])
        for own in _roles(rows, config)
    ]


def _roles(rows: Rows, config: EvaluationConfig) -> list[slice | NDArray[np.int64]]:
    """The rows of the queries and of the gallery; all of them once, where everybody is both."""
    if config.role_attribute is None:
        return [slice(None)]
    roles = np.asarray(rows.attributes[config.role_attribute], dtype=object)
    chosen = {role: np.flatnonzero(roles == role) for role in (QUERY, GALLERY)}
    if not all(map(len, chosen.values())):
        counts = {role: len(own) for role, own in chosen.items()}
        raise InvalidData(
            f"Attribute {config.role_attribute!r} must say {QUERY!r} of some rows and {GALLERY!r} of others; "
            f"it does of {counts}. Leave evaluation.role_attribute out, or correct the attribute."
        )
    return list(chosen.values())


def _codes(values: Sequence[Any]) -> Tensor:
    """Equal numbers for equal values; a missing value equals no other."""
    codes: dict[Any, int] = {}
    return torch.tensor(
        [-1 - row if v is None else codes.setdefault(v, len(codes)) for row, v in enumerate(values)]
    )


def _retrieval_intervals(found: QueryMetrics, config: EvaluationConfig) -> dict[str, float]:
    if config.bootstrap is None or not len(found.rows):
        return {}
    intervals = bootstrap_intervals(
        found.values,
        found.labels if config.bootstrap.by == "class" else None,
        resamples=config.bootstrap.resamples,
        confidence=config.bootstrap.confidence,
    )
    return _ends(intervals)


def _ends(intervals: Mapping[str, Interval]) -> dict[str, float]:
    return {
        f"{name}.{end}": getattr(interval, end)
        for name, interval in intervals.items()
        for end in ("low", "high")
    }


def _verification(embeddings: Tensor, labels: Tensor, config: EvaluationConfig) -> dict[str, float]:
    if not config.false_accept_rates:
        return {}
    with _named("false_accept_rates"):
        curve = roc_of_all_pairs(embeddings, labels)
    points = {f"tar_at_far_{r:g}": curve.at_false_accept_rate(r) for r in config.false_accept_rates}
    rates = {name: point.true_accept_rate for name, point in points.items()}
    intervals = _ends({name: point.true_accept_interval for name, point in points.items()})
    return {"eer": curve.equal_error_rate(), **rates, **intervals}


def _few_shot(embeddings: Tensor, labels: Tensor, rows: Rows, config: FewShotConfig) -> dict[str, float]:
    within = None if config.within is None else _codes(rows.attributes[config.within])
    numbers: dict[str, float] = {}
    for shots in config.shots:
        with _named("few_shot"):
            found = few_shot(
                embeddings,
                labels,
                ways=config.ways,
                shots=shots,
                queries_per_class=config.queries_per_class,
                episodes=config.episodes,
                within=within,
            )
        name = f"{config.ways}_way_{shots}_shot"
        numbers |= {f"{name}_{by}": value for by, value in found.means().items()}
        numbers |= _ends({f"{name}_{by}": interval for by, interval in found.intervals().items()})
    return numbers


def _clustering(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], config: EvaluationConfig
) -> dict[str, float]:
    """Means over k-means' seeds."""
    classes, num_classes = torch.from_numpy(labels), len(np.unique(labels))
    runs = []
    for seed in range(1, config.kmeans_seeds + 1):
        clusters = torch.from_numpy(k_means(vectors, num_classes, seed=seed))
        run = {
            "nmi": normalised_mutual_information(classes, clusters, average=config.nmi_average),
            "pairwise_f1": pairwise_f1(classes, clusters),
        }
        if config.ami:
            with _named("ami"):
                run["ami"] = adjusted_mutual_information(classes, clusters)
        runs.append(run)
    return {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}


@contextmanager
def _named(setting: str) -> Iterator[None]:
    """What the rows do not allow, said with the setting that asked for it."""
    try:
        yield
    except ValueError as error:
        raise InvalidSetting(
            f"evaluation.{setting} asks for what these rows do not allow. {error}"
        ) from error


def _slices(rows: Rows, found: QueryMetrics, config: EvaluationConfig) -> Iterator[tuple[str, Tensor]]:
    """`attribute/value` and the queries that have it, those where some query has somebody to find."""
    queries = _roles(rows, config)[0]
    for attribute in config.slices:
        values = [None if value is None else str(value) for value in rows.attributes[attribute]]
        names = np.asarray(values, dtype=object)[queries]
        different = sorted({name for name in names if name is not None})
        if len(different) > MOST_SLICES:
            raise InvalidData(
                f"An attribute to slice by must have at most {MOST_SLICES} values; {attribute!r} has "
                f"{len(different)}. Slice by another."
            )
        taken: set[str] = set()
        for value in [*different, None]:
            name = _as_name(value)
            while name in taken:  # values may differ in what a name cannot hold, and one may say "missing"
                name += "_"
            taken.add(name)
            chosen = torch.from_numpy(names == value).to(found.rows.device)
            if chosen[found.rows].any():
                yield f"{attribute}/{name}", chosen


def _as_name(value: str | None) -> str:
    """An attribute's value as part of a metric's name that MLflow takes."""
    return "missing" if value is None else re.sub(r"[^\w. :-]", "_", value).strip(".") or "_"


def device_for(size_bytes: int) -> torch.device:
    """A GPU that holds the vectors and a block of similarities, else the CPU."""
    if torch.cuda.is_available():
        free, _ = torch.cuda.mem_get_info()
        if 2 * size_bytes + (4 << 30) < free:
            return torch.device("cuda")
    return torch.device("cpu")
