"""Every number that an evaluation's configuration asks of one embedding."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dml.config import BootstrapConfig, EvaluationConfig, FewShotConfig
from dml.errors import InvalidData, InvalidSetting
from dml.evaluation.all_pairs import OnProgress, device_for, query_values, roc_of_rows, workers_for
from dml.evaluation.kmeans import k_means
from dml.evaluation.query_gallery import Rows, codes_of, query_gallery_rows
from dml.metrics.clustering import (
    adjusted_mutual_information,
    normalised_mutual_information,
    pairwise_f1,
)
from dml.metrics.fewshot import few_shot
from dml.metrics.intervals import Interval, bootstrap_intervals
from dml.metrics.retrieval import QueryMetrics
from dml.metrics.verification import RocCurve
from dml.progress import Ticker, begin, count

MOST_SLICES = 100


def measure(
    vectors: NDArray[np.float32],
    rows: Rows,
    config: EvaluationConfig,
    *,
    num_workers: int | None = None,
    progress: OnProgress | None = None,
) -> dict[str, float]:
    """All the numbers of `config.metrics`; NAME.low and NAME.high of intervals; A/VALUE/NAME of slices.

    Those of clustering are no intervals: they are the lowest and the highest of k-means' seeds.

    Args:
        vectors: (N, D), unit length.
        rows: theirs, in the same order.
        config: what to measure.
        num_workers: Ray workers that share the pairs out; None: as `workers_for`.
        progress: called with (parts done, parts in all) of each pass over all pairs.

    Raises:
        InvalidData: `config.role_attribute` makes no row a query, or none a gallery item; or too many slices.
        InvalidSetting: what cannot be measured on these rows, as episodes of more classes than there are.
    """
    with Ticker("evaluate") as ticker:
        return _measure(vectors, rows, config, num_workers or workers_for(len(vectors)), progress, ticker)


def _measure(
    vectors: NDArray[np.float32],
    rows: Rows,
    config: EvaluationConfig,
    workers: int,
    progress: OnProgress | None,
    ticker: Ticker,
) -> dict[str, float]:
    ticker.begin(f"comparing the pairs of {len(vectors)} rows")
    embeddings = torch.from_numpy(np.ascontiguousarray(vectors)).to(device_for(vectors.nbytes))
    labels = torch.from_numpy(rows.labels).to(embeddings.device)
    found = query_values(embeddings, rows, config, num_workers=workers, progress=progress)
    numbers = found.means()
    if config.macro:
        numbers |= {f"{name}_macro": value for name, value in found.class_means().items()}
    ticker.begin("intervals")
    if config.bootstrap is not None:
        with _named("bootstrap"):
            numbers |= _ends(_retrieval_intervals(found, config.bootstrap))
    if config.false_accept_rates:
        ticker.begin(f"verification by the pairs of {len(vectors)} rows")
        with _named("false_accept_rates"):
            curve = roc_of_rows(
                embeddings,
                rows,
                false_accept_rates=config.false_accept_rates,
                num_workers=workers,
                progress=progress,
            )
        numbers |= _verification(curve, config.false_accept_rates)
    if config.few_shot is not None:
        ticker.begin("few-shot episodes")
        numbers |= _few_shot(embeddings, labels, rows, config.few_shot)
    if config.nmi:
        numbers |= _clustering(vectors, rows.labels, config)
    ticker.begin("slices")
    for name, chosen in _slices(rows, found, config):
        part = found.of(chosen)
        numbers |= {f"{name}/{metric}": value for metric, value in part.means().items()}
        numbers[f"{name}/num_queries"] = len(part.rows)
    return numbers


def _retrieval_intervals(found: QueryMetrics, config: BootstrapConfig) -> dict[str, Interval]:
    return bootstrap_intervals(
        found.values,
        found.labels if config.by == "class" else None,
        resamples=config.resamples,
        confidence=config.confidence,
    )


def _ends(intervals: Mapping[str, Interval]) -> dict[str, float]:
    return {
        f"{name}.{end}": getattr(interval, end)
        for name, interval in intervals.items()
        for end in ("low", "high")
    }


def _verification(curve: RocCurve, rates: Sequence[float]) -> dict[str, float]:
    points = {f"tar_at_far_{rate:g}": curve.at_false_accept_rate(rate) for rate in rates}
    accepted = {name: point.true_accept_rate for name, point in points.items()}
    intervals = {name: point.true_accept_interval for name, point in points.items()}
    equal_error_rate = curve.equal_error_rate()
    if equal_error_rate <= max(rates):
        intervals["eer"] = curve.equal_error_interval()
    return {"eer": equal_error_rate, **accepted, **_ends(intervals)}


def _few_shot(embeddings: Tensor, labels: Tensor, rows: Rows, config: FewShotConfig) -> dict[str, float]:
    within = None if config.within is None else codes_of(rows.attributes[config.within])
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
    """Means over k-means' seeds; beside them as NAME.low and NAME.high the lowest and the highest seed's."""
    classes, num_classes = torch.from_numpy(labels), len(np.unique(labels))
    runs = []
    num_seeds = config.kmeans_seeds or seeds_for(len(labels))
    begin(f"k-means of {len(labels)} rows into {num_classes} clusters", "seeds", num_seeds)
    for seed in range(1, num_seeds + 1):
        clusters = torch.from_numpy(k_means(vectors, num_classes, seed=seed))
        run = {
            "nmi": normalised_mutual_information(classes, clusters, average=config.nmi_average),
            "pairwise_f1": pairwise_f1(classes, clusters),
        }
        if config.ami:
            with _named("ami"):
                run["ami"] = adjusted_mutual_information(classes, clusters)
        runs.append(run)
        count()
    numbers = {name: sum(run[name] for run in runs) / len(runs) for name in runs[0]}
    if len(runs) > 1:
        by_name = {name: [run[name] for run in runs] for name in runs[0]}
        numbers |= _ends({name: Interval(min(values), max(values)) for name, values in by_name.items()})
    return numbers


def seeds_for(num_rows: int) -> int:
    """How many runs of k-means: of few rows one seed is off by two points, of many each takes minutes."""
    return 20 if num_rows <= 2_000 else 5 if num_rows <= 20_000 else 1


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
    """`attribute/value` and the queries that have it, those where some query has a positive."""
    queries, _ = query_gallery_rows(rows, config)
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
