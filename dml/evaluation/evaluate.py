"""Evaluate an embeddings table on a split of its dataset, and raw pixels as the floor to compare with."""

import numpy as np
import torch
from numpy.typing import NDArray

from dml.config import EvaluationConfig, GateConfig, PreprocessingConfig
from dml.data.dataset import open_mapped, read_rows
from dml.embedding.table import read_embeddings
from dml.errors import IncompatibleArtifact, InvalidData, InvalidSetting
from dml.evaluation.all_pairs import OnProgress, query_values
from dml.evaluation.protocol import measure
from dml.evaluation.query_gallery import Rows, attributes_of
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
    """Every number that `config.metrics` names, of one split, with intervals and slices.

    Args:
        embeddings: of the items to evaluate on.
        config: which numbers, and who searches whom.
        split: whose rows; None: all, as of items without splits.
        num_workers: Ray workers that share the pairs out; None: one per GPU, or on a cluster per core, where
            there are many rows; else this process alone.
        progress: called with (parts done, parts in all) of each pass over all pairs.

    Raises:
        InvalidData: no rows, none of a role, or rows without a label.
        InvalidSetting: an attribute that the items do not have.
        IncompatibleArtifact: a split of items without splits.
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
    """Whether one model's embeddings are better than another's by more than `gate.min_gain`, beyond noise.

    Both tables' queries are evaluated again, which costs one matrix product each and cannot be out of date.

    Args:
        embeddings: of the model that should be better.
        former: of the other, of the same items.
        config: who searches whom.
        gate: which metric, and the gain to exceed.
        split: whose rows; None: all, as of items without splits.

    Raises:
        IncompatibleArtifact: tables of different items.
        InvalidSetting: a metric that single queries don't have.
        InvalidData: the split has no rows, or queries with a positive of fewer than two classes.
    """
    require_one_dataset(embeddings, former)
    if gate.metric not in config.query_metrics:
        raise InvalidSetting(
            f"A paired test needs a number of every query, one of {config.query_metrics}; got "
            f"{gate.metric!r}."
        )
    _, rows = split_rows(embeddings.items, config, split)
    ours, theirs = (
        query_values(torch.from_numpy(read_embeddings(table, split=split).vectors), rows, config)
        for table in (embeddings, former)
    )
    require_two_classes(ours, split)
    return paired_test(ours, theirs, gate.metric, min_gain=gate.min_gain)


def require_one_dataset(embeddings: EmbeddingsRef, former: EmbeddingsRef) -> None:
    """Raise IncompatibleArtifact where two tables are of different items."""
    if embeddings.items.fingerprint != former.items.fingerprint:
        one, other = embeddings.items, former.items
        raise IncompatibleArtifact(
            f"Both models must be evaluated on one dataset; got {one} and {other}. Embed one of them again."
        )


def require_two_classes(queries: QueryMetrics, split: str | None) -> None:
    """Raise InvalidData for queries of fewer than two classes, which say nothing of other classes."""
    num_classes = len(torch.unique(queries.labels))
    if num_classes < 2:
        raise InvalidData(
            f"A comparison needs queries with a positive of at least 2 classes; {_where(split)} has "
            f"those of {num_classes}. Name another split, or a dataset whose classes have two images."
        )


def paired_test(
    ours: QueryMetrics, theirs: QueryMetrics, metric: str, *, min_gain: float = 0.0
) -> Comparison:
    """One model against another by a metric of the same queries, which are of two classes or more.

    Args:
        ours: of the model that should be better.
        theirs: the other's, of the same queries in the same order.
        metric: one that both have.
        min_gain: the gain to exceed.
    """
    tested = compare_paired(ours.values[metric], theirs.values[metric], ours.labels, margin=min_gain)
    return Comparison(
        metric=metric,
        gain=tested.gain,
        low=tested.interval.low,
        high=tested.interval.high,
        p_value=tested.p_value,
        num_queries=len(ours.rows),
        num_classes=len(torch.unique(ours.labels)),
    )


def raw_pixel_baseline(
    dataset: DatasetRef, preprocessing: PreprocessingConfig, config: EvaluationConfig, *, split: str = "test"
) -> Evaluation:
    """The same metrics on the images' own pixels, at most 32 x 32, centred and of unit length."""
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
    lengths = np.linalg.norm(pixels, axis=1, keepdims=True)
    # A blank image is like every blank one and, at a right angle to all centred rows, unlike the others.
    pixels = np.where(lengths > 1e-6, pixels / np.maximum(lengths, 1e-6), pixels.shape[1] ** -0.5)
    return pixels, rows


def split_rows(
    items: ItemsRef, config: EvaluationConfig, split: str | None
) -> tuple[NDArray[np.int64], Rows]:
    """Positions of the rows of a split, or of all, and what the configuration needs of them."""
    if split is not None:
        require_dataset(items, f"An evaluation of the split {split!r}")
    _require_labels(items)
    attributes = attributes_of(config)
    rows = read_rows(items, split=split, columns=["label", "class_id", *attributes])
    if not len(rows):
        splits = sorted(items.splits) if isinstance(items, DatasetRef) else []
        raise InvalidData(
            f"An evaluation needs rows in {_where(split)}; {items} has the "
            f"splits {splits}. Ingest it with another --split."
        )
    if rows["label"].null_count:
        raise InvalidData(
            f"An evaluation needs a label of every item; {rows['label'].null_count} of {len(rows)} of "
            f"{items} have none. Give them labels, or leave them out."
        )
    labels = rows["class_id"].to_numpy().astype(np.int64)
    # A blank text in a table of images is a missing value too.
    values = {
        name: [None if value == "" else value for value in rows[name].to_pylist()] for name in attributes
    }
    return rows["position"].to_numpy(), Rows(labels, values)


def _require_labels(items: ItemsRef) -> None:
    if not items.classes:
        raise InvalidData(
            f"An evaluation needs a label of every item; {items} has none. Import the vectors again with a "
            "column `label` among the attributes."
        )


def _where(split: str | None) -> str:
    return "the table" if split is None else f"the split {split!r}"
