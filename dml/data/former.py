"""What a dataset's former version says of the next: a class that was for test stays for test.

A version remembers the split of every class that it or one before it had, in `classes.parquet`. One that
became current again knows nothing of those made after it, so theirs are read as well. How a dataset was
ingested last, which may have given a version that was there already, stands beside the pointer to it.
"""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet
from pydantic import TypeAdapter, ValidationError

from dml import storage
from dml.config import IngestConfig, SplitConfig
from dml.data.dataset import find_dataset, read_ref, read_rows
from dml.data.sources.sample import Sample
from dml.data.split import split_of_classes
from dml.errors import CorruptArtifact, DmlError
from dml.refs import DatasetRef

logger = logging.getLogger(__name__)

CLASSES = "classes.parquet"
_READING_THREADS = 8
_NAMED_AT_MOST = 5
_SPLIT: TypeAdapter[SplitConfig] = TypeAdapter(SplitConfig)


@dataclass(frozen=True)
class FormerVersion:
    """A dataset's current version, as the next one sees it; all empty before the first."""

    version: str | None = None
    requested_split: SplitConfig | None = None
    """What a user chose, or None where the source's layout did."""
    split: SplitConfig | None = None
    rows: int = 0
    classes: int = 0
    split_of_class: Mapping[str, str] = field(default_factory=dict)
    """From label to split, of every class of it, of those before it, and of those made after it alike."""


@dataclass(frozen=True)
class ChosenSplit:
    """How the classes of a new version are split."""

    requested: SplitConfig | None
    """What a user chose, now or before, or None where the source's layout did."""
    config: SplitConfig
    split_of_class: dict[str, str]
    remembered: dict[str, str]
    """`split_of_class`, and the same of classes that are not there at present."""
    notes: list[str]
    reassigns: bool = False
    """Whether another split was requested than the former version's, so that no class keeps its own."""


def find_former(store: str, name: str) -> FormerVersion:
    """The current version of a dataset, or the last before it that is still there; empty before the first.

    Raises:
        CorruptArtifact: nothing in that version says any more which classes were for test.
        IncompatibleArtifact: it was written by another version of this project.
    """
    parent = storage.named_folder(store, "datasets", name)
    current = storage.current(parent)
    there = (storage.join(parent, v) for v in [current, *storage.former_versions(parent)] if v is not None)
    uri = next((uri for uri in there if storage.is_complete(uri)), None)
    if uri is None:
        return FormerVersion()
    manifest = storage.read_manifest(uri)
    ref, made = read_ref(uri, manifest), _parse(manifest, uri)
    last = made if ref.version != current else _read_last(parent) or made
    # Assigned again with the same result, a version's table has absent classes as the former split had them.
    splits = _read_class_splits(ref) if last.split == made.split else _splits_of_rows(ref)
    later = _splits_of_later(parent, str(manifest["created"]), last)
    return FormerVersion(
        ref.version, last.config.split, last.split, ref.rows, ref.classes, {**later, **splits}
    )


class LastIngest(NamedTuple):
    """How a dataset was ingested last."""

    config: IngestConfig
    split: SplitConfig

    def to_json(self) -> dict[str, Any]:
        """As a manifest has it, and as the pointer to the current version remembers it."""
        return {
            "ingest": self.config.model_dump(mode="json"),
            "split": self.split.model_dump(mode="json"),
        }


def last_ingest(store: str, name: str) -> IngestConfig:
    """How a dataset was ingested last, to do the same again; that may have given a version that was there.

    Raises:
        MissingArtifact: there is no such dataset.
        CorruptArtifact: its pointer, or its current version's manifest, is damaged.
    """
    ref = find_dataset(store, name)
    last = _read_last(storage.named_folder(store, "datasets", ref.name))
    return (last or _parse(storage.read_manifest(ref.uri), ref.uri)).config


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
            f"{uri} must say how the dataset was ingested; it is damaged, or of another version of this "
            "project. Remove it, and ingest with --split."
        ) from error


def _splits_of_later(parent: str, created: str, last: LastIngest) -> dict[str, str]:
    """From label to split, of the versions that were made after the current one and are split as it is.

    There are some after a rollback, and where a source is again what it was. Another split than the current
    one's assigned all classes again, so it counts for nothing.
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
            logger.warning("classes that only a later version has may change sides: %s", error)
    return splits


def _manifest_or_none(uri: str) -> dict[str, Any] | None:
    """What a version says of itself; None where it is damaged, was just removed, or says no split."""
    try:
        manifest = storage.read_manifest(uri)
    except DmlError as error:
        logger.warning("classes that only this version has may change sides: %s", error)
        return None
    return manifest if "split" in manifest else None


def _read_class_splits(ref: DatasetRef) -> dict[str, str]:
    """From the small table, or where that is damaged from the rows themselves."""
    filesystem, path = storage.filesystem(storage.join(ref.uri, CLASSES))
    try:
        table = parquet.read_table(path, filesystem=filesystem, page_checksum_verification=True)
    except (OSError, pa.ArrowException):
        return _splits_of_rows(ref)
    return dict(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))


def _splits_of_rows(ref: DatasetRef) -> dict[str, str]:
    try:
        table = read_rows(ref, columns=["label", "split"])
    except (OSError, pa.ArrowException) as error:
        raise CorruptArtifact(
            f"A dataset's current version must say which classes are for test; {ref.uri} is damaged: "
            f"{error}. Bring its files back, or remove that folder: then the one before it decides."
        ) from error
    return dict(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))


def write_class_splits(folder: str, splits: Mapping[str, str]) -> None:
    """Lay the splits of classes into a version that is being made."""
    labels = sorted(splits)
    table = pa.table(
        {"label": pa.array(labels, pa.large_string()), "split": [splits[label] for label in labels]}
    )
    filesystem, path = storage.filesystem(storage.join(folder, CLASSES))
    parquet.write_table(table, path, filesystem=filesystem, compression="ZSTD", write_page_checksum=True)


def choose_split(
    samples: Sequence[Sample], requested: SplitConfig | None, default: SplitConfig, former: FormerVersion
) -> ChosenSplit:
    """The split of a new version's classes: as the former version has them, new ones assigned.

    Args:
        samples: every sample of the source.
        requested: what a user chose now; another split than the former version's assigns all classes again.
        default: what the source's layout uses where no user ever chose.
        former: the current version.

    Raises:
        DmlError: as `split_of_classes`.
    """
    config, known = requested or former.requested_split or default, former.split_of_class
    reassigns = requested is not None and former.split is not None and requested != former.split
    try:
        split_of_class = split_of_classes(samples, config, {} if reassigns else known)
    except DmlError as error:
        if requested is not None:
            raise
        if former.requested_split is None:
            raise type(error)(
                f"{error} The source's layout is split by {default}; --split asks for another."
            ) from error
        raise type(error)(
            f"{error} Version {former.version} was split by {config}; --split asks for another."
        ) from error
    changed = sorted(label for label, split in split_of_class.items() if known.get(label, split) != split)
    notes = []
    if reassigns or changed:
        why = "asked for" if reassigns else "as the source says"
        examples = f", such as {changed[:_NAMED_AT_MOST]}" if changed else ""
        notes.append(
            f"split {config} ({why}) instead of {former.split} of version {former.version}: "
            f"{len(changed)} of {len(split_of_class)} classes change sides{examples}"
        )
    remembered = split_of_class if reassigns else {**known, **split_of_class}
    return ChosenSplit(
        requested or former.requested_split, config, split_of_class, remembered, notes, reassigns
    )
