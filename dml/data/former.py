"""The former version of a dataset: what the next ingest must know of it.

A version stores the split of every class that it or an earlier version had. After a rollback, the current
version does not know the classes of later versions, so their tables are read too. The configuration of the
latest ingest is stored with the pointer. So a current version whose manifest is damaged still says how its
classes are split, and the version before it which rows there are.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import pyarrow as pa

from dml import storage
from dml.config import IngestConfig, SplitConfig
from dml.data.class_splits import CLASSES, read_class_splits
from dml.data.dataset import read_ref, read_rows
from dml.data.last_ingest import LastIngest, remembered_ingest
from dml.errors import CorruptArtifact, DmlError, StorageUnavailable
from dml.names import versioned
from dml.refs import DatasetRef

logger = logging.getLogger(__name__)

_READING_THREADS = 8


@dataclass(frozen=True)
class FormerVersion:
    """The facts about a dataset's current version that the next ingest needs; empty before the first."""

    version: str | None = None
    requested_split: SplitConfig | None = None
    """The split that a user chose; None if the source's layout chose it."""
    split: SplitConfig | None = None
    rows: int = 0
    classes: int = 0
    split_of_class: Mapping[str, str] = field(default_factory=dict)
    """Split by label, for the classes of this version, earlier ones, and later ones with the same split."""
    ref: DatasetRef | None = None
    config: IngestConfig | None = None
    """Of the latest ingest."""
    notes: tuple[str, ...] = ()
    """What could not be read of versions that are damaged."""


def find_former(store: str, name: str) -> FormerVersion:
    """The current version of a dataset, or the latest former one that still exists; empty if there is none.

    A version whose manifest is damaged is passed over, with a note. If it is the current one, the split of
    its classes is read from its table of classes, since a class keeps its split.

    Raises:
        CorruptArtifact: a damaged manifest is all that says how the dataset was split, or the splits of the
            version cannot be read.
        IncompatibleArtifact: it was written by another version of this project.
    """
    parent = storage.named_folder(store, "datasets", name)
    versions = _latest_first(parent)
    damaged: list[str] = []
    for uri in versions:
        try:
            manifest = storage.read_manifest(uri)
        except CorruptArtifact:
            damaged.append(uri)
        else:
            former = _former_of(parent, uri, manifest)
            return former if not damaged else _after_damaged(parent, former, damaged)
    return _after_damaged(parent, FormerVersion(), damaged) if damaged else FormerVersion()


def _latest_first(parent: str) -> list[str]:
    """The URIs of the current version and of the former ones; of all if the pointer is gone."""
    current = storage.current(parent)
    if current is not None:
        named = [current, *storage.former_versions(parent)]
        return [uri for version in named if storage.is_complete(uri := storage.join(parent, version))]
    uris = [storage.join(parent, version) for version in storage.list_versions(parent)]
    return sorted(uris, key=_created, reverse=True)


def _created(uri: str) -> str:
    return str((_manifest_or_none(uri) or {}).get("created", ""))


def _former_of(parent: str, uri: str, manifest: Mapping[str, Any]) -> FormerVersion:
    ref, made = read_ref(uri, manifest), LastIngest.from_json(manifest, uri)
    last = made if ref.version != storage.current(parent) else remembered_ingest(parent) or made
    # If a reassignment gave the same version, its table has absent classes with their former split.
    splits = _splits_of(ref) if last.split == made.split else _splits_of_rows(ref)
    later = _splits_of_later_versions(parent, str(manifest["created"]), last)
    return FormerVersion(
        ref.version,
        last.config.split,
        last.split,
        ref.rows,
        ref.classes,
        {**later, **splits},
        ref,
        last.config,
    )


def _after_damaged(parent: str, former: FormerVersion, damaged: Sequence[str]) -> FormerVersion:
    """The former version, given later ones whose manifests are damaged; the first of them is the latest."""
    name, latest = parent.rpartition("/")[2], damaged[0].rpartition("/")[2]
    titles = ", ".join(versioned(name, uri.rpartition("/")[2]) for uri in damaged)
    how = (
        f"images are compared with {versioned(name, former.version)}, the latest that can be read"
        if former.ref is not None
        else "every image is read again, since no other version can be read"
    )
    notes = [f"the manifest of {titles} is damaged: {how}"]
    last = remembered_ingest(parent) if latest == storage.current(parent) else None
    if last is None and former.ref is None:
        raise CorruptArtifact(
            f"A manifest or {storage.POINTER} must record how a dataset was split; those of {titles} are "
            f"damaged. Restore one from a copy; or remove all of the dataset, `dml rm dataset {name}`, and "
            "ingest it with --split."
        )
    if last is None:
        return replace(former, notes=tuple(notes))
    splits = _class_table(damaged[0])
    if splits is None:
        notes.append(f"classes that only {versioned(name, latest)} had may change their split: {CLASSES}")
    known = {**(former.split_of_class if former.split == last.split else {}), **(splits or {})}
    return replace(
        former,
        version=former.version or latest,
        requested_split=last.config.split,
        split=last.split,
        split_of_class=known,
        config=last.config,
        notes=tuple(notes),
    )


def _splits_of_later_versions(parent: str, created: str, last: LastIngest) -> dict[str, str]:
    """Split by label, from the versions made after the current one that have the same split.

    Later versions exist after a rollback, or if a source returned to an earlier state. Versions with a
    different split are ignored, since a different split assigns all classes again.
    """
    uris = [storage.join(parent, version) for version in storage.list_versions(parent)]
    with ThreadPoolExecutor(_READING_THREADS) as pool:
        manifests = list(pool.map(_manifest_or_none, uris))
    split = last.to_json()
    later = [
        (manifest["created"], uri, manifest["ref"])
        for uri, manifest in zip(uris, manifests, strict=True)
        if manifest is not None
        and manifest["created"] > created
        and (manifest["split"] == split["split"] or manifest["ingest"]["split"] == split["ingest"]["split"])
    ]
    splits: dict[str, str] = {}
    for _, uri, ref in sorted(later, key=lambda version: version[:2]):
        try:
            splits |= _splits_of(DatasetRef(uri=uri, **ref))
        except StorageUnavailable:
            raise
        except DmlError as error:
            logger.warning("classes that only a later version has may change their split: %s", error)
    return splits


def _manifest_or_none(uri: str) -> dict[str, Any] | None:
    """A version's manifest; None if it is damaged, was just removed, or has no split."""
    try:
        manifest = storage.read_manifest(uri)
    except StorageUnavailable:
        raise
    except DmlError as error:
        logger.warning("classes that only this version has may change their split: %s", error)
        return None
    return manifest if "split" in manifest else None


def _splits_of(ref: DatasetRef) -> dict[str, str]:
    """Split by label, from the small table, or from the rows if the table is damaged."""
    splits = _class_table(ref.uri)
    return _splits_of_rows(ref) if splits is None else splits


def _class_table(uri: str) -> dict[str, str] | None:
    """Split by label, from the small table of a version; None if that is damaged."""
    try:
        return read_class_splits(uri)
    except StorageUnavailable:
        raise
    except (OSError, DmlError):
        return None


def _splits_of_rows(ref: DatasetRef) -> dict[str, str]:
    try:
        table = read_rows(ref, columns=["label", "split"])
    except StorageUnavailable:
        raise
    except (OSError, pa.ArrowException) as error:
        raise CorruptArtifact(
            f"A dataset's current version must record which classes are for test; {ref.uri} is damaged: "
            f"{error}. Restore its files, or remove that folder to use the version before it."
        ) from error
    return dict(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))
