"""All metrics of an evaluation configuration, computed from the embeddings of a split."""

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
from dml.evaluation.query_gallery import Rows, encode_values, query_gallery_rows
from dml.metrics.clustering import (
    adjusted_mutual_information,
    normalized_mutual_information,
    pairwise_f1,
)
from dml.metrics.fewshot import few_shot
from dml.metrics.intervals import Interval, bootstrap_intervals
from dml.metrics.retrieval import QueryMetrics
from dml.metrics.verification import RocCurve
from dml.progress import Ticker, begin, count
from dml.reports import Evaluation, Measured, Slice

MAX_SLICES = 100


def measure(
    vectors: NDArray[np.float32],
    rows: Rows,
    config: EvaluationConfig,
    *,
    num_workers: int | None = None,
    progress: OnProgress | None = None,
) -> Evaluation:
    """All metrics in `config.metrics` with intervals, and the retrieval metrics of every slice.

    Clustering metrics have no intervals: `low` and `high` are the minimum and maximum over k-means seeds.

    Args:
        vectors: (N, D), unit length.
        rows: labels and attributes of the vectors, in the same order.
        config: metrics, query and gallery sets.
        num_workers: Ray workers; None: `workers_for`.
        progress: called with (blocks done, number of blocks) in each pass over all pairs.

    Raises:
        InvalidData: there is no query or no gallery item by `config.role_attribute`, or too many slices.
        InvalidSetting: these rows do not allow a metric, e.g. few-shot episodes with too many classes.
    """
    workers = num_workers or workers_for(len(vectors))
    embeddings = torch.from_numpy(np.ascontiguousarray(vectors)).to(device_for(vectors.nbytes))
    with Ticker("evaluate") as ticker:
        ticker.begin(f"comparing the pairs of {len(vectors)} rows")
        queries = query_values(embeddings, rows, config, num_workers=workers, progress=progress)
        ticker.begin("intervals")
        metrics = _retrieval(queries, config)
        if config.false_accept_rates:
            ticker.begin(f"verification by the pairs of {len(vectors)} rows")
            with _setting("false_accept_rates"):
                rates = config.false_accept_rates
                curve = roc_of_rows(
                    embeddings, rows, false_accept_rates=rates, num_workers=workers, progress=progress
                )
            metrics |= _verification(curve, rates)
        if config.few_shot is not None:
            ticker.begin("few-shot episodes")
            metrics |= _few_shot(embeddings, rows, config.few_shot)
        if config.nmi:
            metrics |= _clustering(vectors, rows.labels, config)
        ticker.begin("slices")
        return Evaluation(
            metrics=metrics,
            slices=_slices(rows, queries, config),
            num_queries=len(queries.rows),
            num_without_positives=queries.num_without_positives,
        )


def _measured(
    values: Mapping[str, float], intervals: Mapping[str, Interval] | None = None
) -> dict[str, Measured]:
    ends = {name: (interval.low, interval.high) for name, interval in (intervals or {}).items()}
    none = None, None
    return {
        name: Measured(value=value, low=ends.get(name, none)[0], high=ends.get(name, none)[1])
        for name, value in values.items()
    }


def _retrieval(queries: QueryMetrics, config: EvaluationConfig) -> dict[str, Measured]:
    intervals = {}
    if config.bootstrap is not None:
        with _setting("bootstrap"):
            intervals = _retrieval_intervals(queries, config.bootstrap)
    metrics = _measured(queries.means(), intervals)
    if config.macro:
        metrics |= _measured({f"{name}_macro": value for name, value in queries.class_means().items()})
    return metrics


def _retrieval_intervals(queries: QueryMetrics, config: BootstrapConfig) -> dict[str, Interval]:
    return bootstrap_intervals(
        queries.values,
        queries.labels if config.by == "class" else None,
        resamples=config.resamples,
        confidence=config.confidence,
    )


def _verification(curve: RocCurve, rates: Sequence[float]) -> dict[str, Measured]:
    points = {f"tar_at_far_{rate:g}": curve.at_false_accept_rate(rate) for rate in rates}
    values = {name: point.true_accept_rate for name, point in points.items()}
    intervals = {name: point.true_accept_interval for name, point in points.items()}
    equal_error_rate = curve.equal_error_rate()
    if equal_error_rate <= max(rates):
        intervals["eer"] = curve.equal_error_interval()
    return _measured({"eer": equal_error_rate, **values}, intervals)


def _few_shot(embeddings: Tensor, rows: Rows, config: FewShotConfig) -> dict[str, Measured]:
    labels = torch.from_numpy(rows.labels).to(embeddings.device)
    within = (
        None if config.within is None else encode_values(rows.attributes[config.within]).to(labels.device)
    )
    metrics: dict[str, Measured] = {}
    for shots in config.shots:
        with _setting("few_shot"):
            episodes = few_shot(
                embeddings,
                labels,
                ways=config.ways,
                shots=shots,
                queries_per_class=config.queries_per_class,
                episodes=config.episodes,
                within=within,
            )
        by_method = _measured(episodes.means(), episodes.intervals())
        name = f"{config.ways}_way_{shots}_shot"
        metrics |= {f"{name}_{method}": measured for method, measured in by_method.items()}
    return metrics


def _clustering(
    vectors: NDArray[np.float32], labels: NDArray[np.int64], config: EvaluationConfig
) -> dict[str, Measured]:
    """Means over k-means seeds, with the minimum and maximum as interval."""
    classes, num_classes = torch.from_numpy(labels), len(np.unique(labels))
    runs = []
    num_seeds = config.kmeans_seeds or seeds_for(len(labels))
    begin(f"k-means of {len(labels)} rows into {num_classes} clusters", "seeds", num_seeds)
    for seed in range(1, num_seeds + 1):
        clusters = torch.from_numpy(k_means(vectors, num_classes, seed=seed))
        run = {
            "nmi": normalized_mutual_information(classes, clusters, average=config.nmi_average),
            "pairwise_f1": pairwise_f1(classes, clusters),
        }
        if config.ami:
            with _setting("ami"):
                run["ami"] = adjusted_mutual_information(classes, clusters)
        runs.append(run)
        count()
    by_name = {name: [run[name] for run in runs] for name in runs[0]}
    ends = {name: Interval(min(values), max(values)) for name, values in by_name.items()}
    means = {name: sum(values) / len(values) for name, values in by_name.items()}
    return _measured(means, ends if len(runs) > 1 else None)


def seeds_for(num_rows: int) -> int:
    """The number of k-means runs: with few rows one seed varies by two points, with many it takes minutes."""
    return 20 if num_rows <= 2_000 else 5 if num_rows <= 20_000 else 1


@contextmanager
def _setting(setting: str) -> Iterator[None]:
    """Convert ValueError to an InvalidSetting that names the setting."""
    try:
        yield
    except ValueError as error:
        raise InvalidSetting(f"evaluation.{setting} is not possible with these rows. {error}") from error


def _slices(rows: Rows, queries: QueryMetrics, config: EvaluationConfig) -> list[Slice]:
    """One slice per attribute value with queries that have a positive; missing values last."""
    slices = []
    for attribute in config.slices:
        query_rows, _ = query_gallery_rows(rows, config)
        texts = [None if value is None else str(value) for value in rows.attributes[attribute]]
        values = np.asarray(texts, dtype=object)[query_rows]
        different = sorted({value for value in values if value is not None})
        if len(different) > MAX_SLICES:
            raise InvalidData(
                f"An attribute to slice by must have at most {MAX_SLICES} values; {attribute!r} has "
                f"{len(different)}. Slice by another attribute."
            )
        for value in [*different, None]:
            with_value = queries.select(torch.from_numpy(values == value).to(queries.rows.device))
            if len(with_value.rows):
                slices.append(
                    Slice(
                        attribute=attribute,
                        value=value,
                        num_queries=len(with_value.rows),
                        metrics=_measured(with_value.means()),
                    )
                )
    return slices
