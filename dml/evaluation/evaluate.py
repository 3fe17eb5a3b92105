"""Evaluation of an embeddings table on a split of its dataset, the raw-pixel baseline, and paired tests."""

import numpy as np
import torch
from numpy.typing import NDArray

from dml.config import EvaluationConfig, GateConfig, PreprocessingConfig
from dml.data.dataset import read_rows
from dml.data.evaluable import require_labels
from dml.data.mapped import open_mapped
from dml.embedding.table import read_embeddings
from dml.errors import IncompatibleArtifact, InvalidData, InvalidSetting
from dml.evaluation.all_pairs import OnProgress, query_values
from dml.evaluation.protocol import measure
from dml.evaluation.query_gallery import Rows, required_attributes
from dml.metrics.intervals import compare_paired
from dml.metrics.retrieval import QueryMetrics
from dml.preprocessing import decode, resize_and_crop
from dml.progress import Ticker, begin, count
from dml.refs import DatasetRef, EmbeddingsRef, ItemsRef, require_dataset
from dml.reports import Comparison, Evaluation

_RAW_SIDE = 32


def evaluate(
    embeddings: EmbeddingsRef,
    config: EvaluationConfig,
    *,
    split: str | None = "test",
    num_workers: int | None = None,
    progress: OnProgress | None = None,
) -> Evaluation:
    """All metrics in `config.metrics` on one split, with intervals and slices.

    Args:
        embeddings: embeddings of the items to evaluate on.
        config: metrics, query and gallery sets.
        split: name of the split; None: all rows, e.g. if the items have no splits.
        num_workers: Ray workers; None: for many rows one per GPU, or on a cluster one per core; else this
            process.
        progress: called with (blocks done, number of blocks) in each pass over all pairs.

    Raises:
        InvalidData: there are no rows, no queries or no gallery items, or rows without a label.
        InvalidSetting: the items do not have an attribute of `config`.
        IncompatibleArtifact: `split` is set and the items have no splits.
    """
    _, rows = split_rows(embeddings.items, config, split)
    vectors = read_embeddings(embeddings, split=split).vectors
    return measure(vectors, rows, config, num_workers=num_workers, progress=progress)


def compare(
    embeddings: EmbeddingsRef,
    former: EmbeddingsRef,
    config: EvaluationConfig,
    gate: GateConfig,
    *,
    split: str | None = "test",
) -> Comparison:
    """A paired test of whether one model is better than another by more than `gate.min_gain`.

    The queries of both tables are evaluated again. This costs one matrix product each and avoids stale
    values.

    Args:
        embeddings: embeddings of the new model.
        former: embeddings of the other model, of the same items.
        config: query and gallery sets.
        gate: metric and minimum gain.
        split: name of the split; None: all rows, e.g. if the items have no splits.

    Raises:
        IncompatibleArtifact: the tables have different items.
        InvalidSetting: the metric has no values for single queries.
        InvalidData: the split has no rows, or fewer than two classes with a positive.
    """
    require_one_dataset(embeddings, former)
    if gate.metric not in config.query_metrics:
        raise InvalidSetting(
            f"A paired test needs a metric with a value for every query, one of {config.query_metrics}; got "
            f"{gate.metric!r}."
        )
    _, rows = split_rows(embeddings.items, config, split)
    new, old = (
        query_values(torch.from_numpy(read_embeddings(table, split=split).vectors), rows, config)
        for table in (embeddings, former)
    )
    require_two_classes(new, split)
    return paired_test(new, old, gate.metric, min_gain=gate.min_gain)


def require_one_dataset(embeddings: EmbeddingsRef, former: EmbeddingsRef) -> None:
    """Raise IncompatibleArtifact if two tables have different items."""
    if embeddings.items.fingerprint != former.items.fingerprint:
        one, other = embeddings.items, former.items
        raise IncompatibleArtifact(
            f"Both models must be evaluated on the same dataset; got {one} and {other}. Embed one of them "
            "again."
        )


def require_two_classes(queries: QueryMetrics, split: str | None) -> None:
    """Raise InvalidData for queries of fewer than two classes: a test needs several classes."""
    num_classes = len(torch.unique(queries.labels))
    if num_classes < 2:
        raise InvalidData(
            f"A comparison needs at least 2 classes with a query and a positive; {_where(split)} has "
            f"{num_classes}. Use another split, or a dataset whose classes have two images."
        )


def paired_test(new: QueryMetrics, old: QueryMetrics, metric: str, *, min_gain: float = 0.0) -> Comparison:
    """A paired test of two models on the same queries, which have at least two classes.

    Args:
        new: metrics of the model that should be better.
        old: metrics of the other model for the same queries in the same order.
        metric: name of the metric to compare.
        min_gain: minimum gain.
    """
    tested = compare_paired(new.values[metric], old.values[metric], new.labels, margin=min_gain)
    return Comparison(
        metric=metric,
        gain=tested.gain,
        low=tested.interval.low,
        high=tested.interval.high,
        p_value=tested.p_value,
        num_queries=len(new.rows),
        num_classes=len(torch.unique(new.labels)),
    )


def raw_pixel_baseline(
    dataset: DatasetRef, preprocessing: PreprocessingConfig, config: EvaluationConfig, *, split: str = "test"
) -> Evaluation:
    """The same metrics on raw pixels: images of at most 32 x 32, centred and normalized to unit length."""
    with Ticker("evaluate"):
        vectors, rows = _raw_pixels(dataset, preprocessing, config, split)
    return measure(vectors, rows, config)


def _raw_pixels(
    dataset: DatasetRef, preprocessing: PreprocessingConfig, config: EvaluationConfig, split: str
) -> tuple[NDArray[np.float32], Rows]:
    positions, rows = split_rows(dataset, config, split)
    mapped = open_mapped(dataset)
    side = min(preprocessing.crop, _RAW_SIDE)
    pixels = np.empty((len(positions), side * side * preprocessing.channels), dtype=np.float32)
    begin("raw pixels", "images", len(positions))
    for row, position in enumerate(positions):
        count()
        image = resize_and_crop(decode(mapped.image(int(position)), preprocessing.color), preprocessing)
        pixels[row] = np.asarray(image.resize((side, side)), dtype=np.float32).ravel()
    pixels -= pixels.mean(1, keepdims=True)
    # Blank images get a constant vector: equal to each other and orthogonal to all centred rows.
    pixels[np.ptp(pixels, axis=1) == 0] = 1
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    return pixels, rows


def split_rows(
    items: ItemsRef, config: EvaluationConfig, split: str | None
) -> tuple[NDArray[np.int64], Rows]:
    """Positions of the rows of a split, or of all rows, with labels and the attributes in `config`."""
    if split is not None:
        require_dataset(items, f"An evaluation of the split {split!r}")
    require_labels(items)
    attributes = required_attributes(config)
    rows = read_rows(items, split=split, columns=["class_id", *attributes])
    if not len(rows):
        splits = sorted(items.splits) if isinstance(items, DatasetRef) else []
        raise InvalidData(
            f"An evaluation needs rows in {_where(split)}; {items} has the "
            f"splits {splits}. Ingest it with another --split."
        )
    labels = rows["class_id"].to_numpy().astype(np.int64)
    # An empty text is a missing value too.
    values = {
        name: [None if value == "" else value for value in rows[name].to_pylist()] for name in attributes
    }
    return rows["position"].to_numpy(), Rows(labels, values)


def _where(split: str | None) -> str:
    return "the table" if split is None else f"the split {split!r}"
