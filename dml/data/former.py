"""The former version of a dataset and its split, which classes keep in the next version.

A version stores the split of every class that it or an earlier version had, in `classes.parquet`. After a
rollback, the current version does not know the classes of later versions, so their tables are read too. The
configuration of the latest ingest is stored with the pointer. So a current version whose manifest is damaged
still says how its classes are split, and the version before it which rows there are.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet
from pydantic import TypeAdapter, ValidationError

from dml import storage
from dml.config import IngestConfig, SplitConfig
from dml.data.dataset import find_dataset, has_dataset, read_ref, read_rows
from dml.data.sources.sample import Sample
from dml.data.split import split_classes
from dml.errors import CorruptArtifact, DmlError
from dml.names import versioned
from dml.refs import DatasetRef

logger = logging.getLogger(__name__)

CLASSES = "classes.parquet"
_READING_THREADS = 8
_MAX_NAMED = 5
_SPLIT: TypeAdapter[SplitConfig] = TypeAdapter(SplitConfig)


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


@dataclass(frozen=True)
class ChosenSplit:
    """The split of the classes of a new version."""

    requested: SplitConfig | None
    """The split that a user chose, now or before; None if the source's layout chose it."""
    config: SplitConfig
    split_of_class: dict[str, str]
    remembered: dict[str, str]
    """`split_of_class`, and the split of classes that the source does not contain at present."""
    notes: list[str]
    reassigns: bool = False
    """Whether the requested split differs from the former one, so that all classes are assigned again."""


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
    ref, made = read_ref(uri, manifest), _parse(manifest, uri)
    last = made if ref.version != storage.current(parent) else _read_last(parent) or made
    # If a reassignment gave the same version, its table has absent classes with their former split.
    splits = _read_class_splits(ref) if last.split == made.split else _splits_of_rows(ref)
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
    last = _read_last(parent) if latest == storage.current(parent) else None
    if last is None and former.ref is None:
        raise CorruptArtifact(
            f"A manifest or {storage.POINTER} must record how a dataset was split; those of {titles} are "
            f"damaged. Restore one from a copy; or remove all of the dataset, `dml rm dataset {name}`, and "
            "ingest it with --split."
        )
    if last is None:
        return replace(former, notes=tuple(notes))
    splits = _read_class_table(damaged[0])
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


class LastIngest(NamedTuple):
    """The configuration of a dataset's latest ingest."""

    config: IngestConfig
    split: SplitConfig

    def to_json(self) -> dict[str, Any]:
        """The form that manifests and the pointer store."""
        return {
            "ingest": self.config.model_dump(mode="json"),
            "split": self.split.model_dump(mode="json"),
        }


def last_ingest(store: str, name: str) -> IngestConfig:
    """The configuration of a dataset's latest ingest, for repeating it.

    Raises:
        MissingArtifact: there is no such dataset.
        CorruptArtifact: the pointer or the current version's manifest is damaged.
    """
    if not has_dataset(store, name):
        raise storage.missing_version(storage.named_folder(store, "datasets", name), None, "dataset")
    # First that beside the pointer: it is there also where the current version's manifest is damaged.
    last = _read_last(storage.named_folder(store, "datasets", name))
    if last is not None:
        return last.config
    ref = find_dataset(store, name)
    return _parse(storage.read_manifest(ref.uri), ref.uri).config


def _read_last(parent: str) -> LastIngest | None:
    remembered = storage.remembered(parent)
    return _parse(remembered, storage.join(parent, storage.POINTER)) if remembered else None


def _parse(content: Mapping[str, Any], uri: str) -> LastIngest:
    try:
        return LastIngest(
            IngestConfig.model_validate(content["ingest"]), _SPLIT.validate_python(content["split"])
        )
    except (KeyError, ValidationError) as error:
        raise CorruptArtifact(
            f"{uri} must record how the dataset was ingested; it is damaged, or was written by another "
            "version of this project. Remove it, and ingest with --split."
        ) from error


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
            splits |= _read_class_splits(DatasetRef(uri=uri, **ref))
        except DmlError as error:
            logger.warning("classes that only a later version has may change their split: %s", error)
    return splits


def _manifest_or_none(uri: str) -> dict[str, Any] | None:
    """A version's manifest; None if it is damaged, was just removed, or has no split."""
    try:
        manifest = storage.read_manifest(uri)
    except DmlError as error:
        logger.warning("classes that only this version has may change their split: %s", error)
        return None
    return manifest if "split" in manifest else None


def _read_class_splits(ref: DatasetRef) -> dict[str, str]:
    """Split by label, from the small table, or from the rows if the table is damaged."""
    splits = _read_class_table(ref.uri)
    return _splits_of_rows(ref) if splits is None else splits


def _read_class_table(uri: str) -> dict[str, str] | None:
    """Split by label, from the small table of a version; None if that is damaged."""
    filesystem, path = storage.filesystem(storage.join(uri, CLASSES))
    try:
        table = parquet.read_table(path, filesystem=filesystem, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return None
    return dict(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))


def _splits_of_rows(ref: DatasetRef) -> dict[str, str]:
    try:
        table = read_rows(ref, columns=["label", "split"])
    except (OSError, pa.ArrowException) as error:
        raise CorruptArtifact(
            f"A dataset's current version must record which classes are for test; {ref.uri} is damaged: "
            f"{error}. Restore its files, or remove that folder to use the version before it."
        ) from error
    return dict(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))


def write_class_splits(folder: str, splits: Mapping[str, str]) -> None:
    """Write the table of class splits into a version that is being made."""
    labels = sorted(splits)
    table = pa.table(
        {"label": pa.array(labels, pa.large_string()), "split": [splits[label] for label in labels]}
    )
    filesystem, path = storage.filesystem(storage.join(folder, CLASSES))
    parquet.write_table(table, path, filesystem=filesystem, compression="ZSTD", write_page_checksum=True)


def choose_split(
    samples: Sequence[Sample], requested: SplitConfig | None, default: SplitConfig, former: FormerVersion
) -> ChosenSplit:
    """The split of a new version's classes: known classes keep their split, new ones are assigned.

    Args:
        samples: every sample of the source.
        requested: the user's choice; a different split than the former version's assigns all classes again.
        default: the layout's split, used if no user ever chose one.
        former: the current version.

    Raises:
        DmlError: as `split_classes`.
    """
    config, known = requested or former.requested_split or default, former.split_of_class
    reassigns = requested is not None and former.split is not None and requested != former.split
    try:
        split_of_class = split_classes(samples, config, {} if reassigns else known)
    except DmlError as error:
        if requested is not None:
            raise
        if former.requested_split is None:
            raise type(error)(
                f"{error} The source's layout is split by {default}; choose another, dml ingest SOURCE "
                "--split SPLIT."
            ) from error
        raise type(error)(
            f"{error} Version {former.version} was split by {config}; choose another, dml ingest SOURCE "
            "--split SPLIT."
        ) from error
    changed = sorted(label for label, split in split_of_class.items() if known.get(label, split) != split)
    notes = []
    if reassigns or changed:
        reason = "requested" if reassigns else "given by the source"
        examples = f", such as {changed[:_MAX_NAMED]}" if changed else ""
        notes.append(
            f"split {config} ({reason}) instead of {former.split} of version {former.version}: "
            f"{len(changed)} of {len(split_of_class)} classes change their split{examples}"
        )
    remembered = split_of_class if reassigns else {**known, **split_of_class}
    return ChosenSplit(
        requested or former.requested_split, config, split_of_class, remembered, notes, reassigns
    )
