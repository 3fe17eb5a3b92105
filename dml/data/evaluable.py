"""Whether a split can be evaluated, checked before a model is trained."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dml.config import EvaluationConfig, FewShotConfig
from dml.data.dataset import read_rows
from dml.data.schema import GALLERY, QUERY, TEST, TRAIN
from dml.errors import InvalidData
from dml.refs import DatasetRef


def require_evaluable(dataset: DatasetRef, config: EvaluationConfig, *, split: str = TEST) -> None:
    """Refuse a split on which an evaluation's metrics are undefined or trivial.

    It needs two classes, and at least one query with a positive in the gallery (of another camera, where
    `same_camera_attribute` is set); intervals need two classes with one. Few-shot episodes need classes that
    are large enough.

    Args:
        dataset: to evaluate on.
        config: queries, gallery and metrics.
        split: the split to check.

    Raises:
        InvalidData: it cannot be evaluated; the message says how to ingest it, or where else to evaluate.
        InvalidSetting: an attribute that the dataset does not have.
    """
    role, camera = config.role_attribute, config.same_camera_attribute
    within = config.few_shot.within if config.few_shot else None
    attributes = [name for name in (role, camera, within, *config.slices) if name is not None]
    rows = read_rows(dataset, split=split, columns=["class_id", *attributes])
    classes = rows["class_id"].to_numpy()
    where = f"split {split!r} of {dataset}"
    if len(np.unique(classes)) < 2:
        raise InvalidData(
            f"An evaluation needs images of at least 2 classes; the {where} has {len(np.unique(classes))} "
            f"classes, and the dataset has the splits {_sizes(dataset)}. {_REMEDY}"
        )
    roles = None if role is None else rows[role].to_pylist()
    cameras = None if camera is None else [value or None for value in rows[camera].to_pylist()]
    num_classes = _num_classes_with_a_positive(classes, roles, cameras)
    if config.bootstrap is not None and config.bootstrap.by == "class" and num_classes == 1:
        raise InvalidData(
            f"Intervals of evaluation.bootstrap need queries with a positive of at least 2 classes; "
            f"the {where} has those of 1. Leave evaluation.bootstrap out. {_REMEDY}"
        )
    if not num_classes:
        needed = "" if role is None else f", by {role!r} in the gallery,"
        needed += "" if camera is None else f" with another {camera!r}"
        raise InvalidData(
            f"An evaluation needs at least one query with another image of its class to find{needed}; in the "
            f"{where} no query has one: {len(classes)} images of {len(np.unique(classes))} classes. {_REMEDY}"
        )
    if config.few_shot is not None:
        _require_episodes(
            classes, config.few_shot, None if within is None else rows[within].to_pylist(), where
        )


def shared_classes(train: DatasetRef, test: DatasetRef) -> list[str]:
    """Labels that are in the train split of one dataset and in the test split of the other, sorted."""
    trained, tested = (
        set(read_rows(dataset, split=split, columns=["label"])["label"].unique().to_pylist())
        for dataset, split in ((train, TRAIN), (test, TEST))
    )
    return sorted(trained & tested)


_REMEDY = "Ingest it with another --split or more images per class, or test on another: dml train A --test B."


def _sizes(dataset: DatasetRef) -> str:
    return ", ".join(f"{name} ({size.classes} classes)" for name, size in dataset.splits.items())


def _num_classes_with_a_positive(
    classes: NDArray[np.int64], roles: Sequence[Any] | None, cameras: Sequence[Any] | None
) -> int:
    """Classes of which a query has a positive: another image of it, in the gallery and by another camera."""
    if roles is None and cameras is None:
        return int((np.bincount(classes) >= 2).sum())
    of_queries: dict[int, set[Any]] = {}
    of_gallery: dict[int, set[Any]] = {}
    for row, label in enumerate(classes.tolist()):
        camera = row if cameras is None or cameras[row] is None else ("camera", cameras[row])
        if roles is None or roles[row] == QUERY:
            of_queries.setdefault(label, set()).add(camera)
        if roles is None or roles[row] == GALLERY:
            of_gallery.setdefault(label, set()).add(camera)
    return sum(len(of_queries[c] | of_gallery[c]) > 1 for c in of_queries.keys() & of_gallery.keys())


def _require_episodes(
    classes: NDArray[np.int64], config: FewShotConfig, within: Sequence[Any] | None, where: str
) -> None:
    size = max(config.shots) + config.queries_per_class
    labels, first, counts = np.unique(classes, return_index=True, return_counts=True)
    groups: dict[Any, int] = {}
    for row, count in zip(first.tolist(), counts.tolist(), strict=True):
        group = None if within is None else within[row]
        groups[group] = groups.get(group, 0) + (count >= size)
    most = max(groups.values(), default=0)
    if most < config.ways:
        raise InvalidData(
            f"An episode of evaluation.few_shot needs {config.ways} classes of {size} images or more"
            f"{'' if within is None else f' with one value of {config.within!r}'}; the {where} has {most} of "
            f"{len(labels)}. Lower few_shot.ways, shots or queries_per_class, or ingest with another --split."
        )
