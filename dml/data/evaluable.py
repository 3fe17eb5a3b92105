"""Check, before training, that a split can be evaluated."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dml import storage
from dml.config import EvaluationConfig, FewShotConfig
from dml.data.dataset import read_rows
from dml.data.schema import GALLERY, QUERY, TEST, TRAIN
from dml.errors import InvalidData
from dml.refs import DatasetRef, ItemsRef, PackageRef


def require_evaluable(items: ItemsRef, config: EvaluationConfig, *, split: str | None = TEST) -> None:
    """Refuse a split on which an evaluation's metrics are undefined or trivial.

    The split needs two classes, and at least one query with a positive in the gallery (from another camera if
    `same_camera_attribute` is set). Intervals need such queries in two classes. Few-shot episodes need
    classes that are large enough.

    Args:
        items: the dataset, or items without images, to evaluate on.
        config: queries, gallery and metrics.
        split: the split to check; None: all items.

    Raises:
        InvalidData: the split cannot be evaluated; the message says what to do instead.
        InvalidSetting: the dataset does not have an attribute of the configuration.
    """
    role, camera = config.role_attribute, config.same_camera_attribute
    within = config.few_shot.within if config.few_shot else None
    attributes = [name for name in (role, camera, within, *config.slices) if name is not None]
    require_labels(items)
    rows = read_rows(items, split=split, columns=["class_id", *attributes])
    classes = rows["class_id"].to_numpy()
    where = str(items) if split is None else f"split {split!r} of {items}"
    remedy = _remedy(items)
    if len(np.unique(classes)) < 2:
        raise InvalidData(
            f"An evaluation needs items of at least 2 classes; the {where} has {len(np.unique(classes))} "
            f"classes{_sizes(items)}. {remedy}"
        )
    roles = None if role is None else rows[role].to_pylist()
    cameras = None if camera is None else [value or None for value in rows[camera].to_pylist()]
    num_classes = _num_classes_with_a_positive(classes, roles, cameras)
    if config.bootstrap is not None and config.bootstrap.by == "class" and num_classes == 1:
        raise InvalidData(
            f"Intervals of evaluation.bootstrap need queries with a positive in at least 2 classes; "
            f"the {where} has them in 1. Leave evaluation.bootstrap out. {remedy}"
        )
    if not num_classes:
        condition = "" if role is None else f", by {role!r} in the gallery,"
        condition += "" if camera is None else f" with another {camera!r}"
        raise InvalidData(
            f"An evaluation needs at least one query with another item of its class{condition}; in the "
            f"{where} no query has one: {len(classes)} items of {len(np.unique(classes))} classes. {remedy}"
        )
    if config.few_shot is not None:
        _require_episodes(
            classes, config.few_shot, None if within is None else rows[within].to_pylist(), where
        )


def require_labels(items: ItemsRef) -> None:
    """Raise InvalidData where some items have no label; those of a dataset always have one."""
    if not items.classes:
        raise InvalidData(
            f"An evaluation needs a label of every item; {items} has none. Import the vectors again with a "
            "column `label` among the attributes."
        )
    if isinstance(items, DatasetRef):
        return
    missing = read_rows(items, columns=["label"])["label"].null_count
    if missing:
        raise InvalidData(
            f"An evaluation needs a label of every item; {missing} of the {items.rows} of {items} have none. "
            "Give each a label, or import those that have one under another name."
        )


def shared_classes(train: DatasetRef, test: DatasetRef) -> list[str]:
    """The sorted labels that are both in `train`'s train split and in `test`'s test split."""
    train_labels, test_labels = (
        set(read_rows(dataset, split=split, columns=["label"])["label"].unique().to_pylist())
        for dataset, split in ((train, TRAIN), (test, TEST))
    )
    return sorted(train_labels & test_labels)


def classes_trained_on(package: PackageRef, test: DatasetRef) -> list[str]:
    """The sorted labels of `test`'s test split that a package, or what it started from, was trained on.

    Datasets that were removed meanwhile cannot be asked and are left out.
    """
    labels: set[str] = set()
    start: PackageRef | None = package
    while start is not None:
        if start.dataset is not None and storage.is_complete(start.dataset.uri):
            labels.update(shared_classes(start.dataset, test))
        start = start.initial
    return sorted(labels)


_REMEDY_WITHOUT_IMAGES = "Import the vectors again with labels that two items or more share."


def _remedy(items: ItemsRef) -> str:
    if not isinstance(items, DatasetRef):
        return _REMEDY_WITHOUT_IMAGES
    return (
        f"Ingest {items.name} again with another --split or more images per class, or evaluate on another "
        f"dataset: dml train {items.name} --test OTHER, dml evaluate MODEL OTHER."
    )


def _sizes(items: ItemsRef) -> str:
    """The end of a sentence: the splits that there are."""
    if not isinstance(items, DatasetRef):
        return ""
    sizes = ", ".join(f"{name} ({size.classes} classes)" for name, size in items.splits.items())
    return f", and the dataset has the splits {sizes}"


def _num_classes_with_a_positive(
    classes: NDArray[np.int64], roles: Sequence[Any] | None, cameras: Sequence[Any] | None
) -> int:
    """The number of classes with a query that has a positive in the gallery, from another camera if set."""
    if roles is None and cameras is None:
        return int((np.bincount(classes) >= 2).sum())
    query_cameras: dict[int, set[Any]] = {}
    gallery_cameras: dict[int, set[Any]] = {}
    for row, label in enumerate(classes.tolist()):
        camera = row if cameras is None or cameras[row] is None else ("camera", cameras[row])
        if roles is None or roles[row] == QUERY:
            query_cameras.setdefault(label, set()).add(camera)
        if roles is None or roles[row] == GALLERY:
            gallery_cameras.setdefault(label, set()).add(camera)
    return sum(
        len(query_cameras[c] | gallery_cameras[c]) > 1 for c in query_cameras.keys() & gallery_cameras.keys()
    )


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
