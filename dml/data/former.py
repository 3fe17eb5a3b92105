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
class Former:
    """A dataset's current version, as the next one sees it; all empty before the first."""

    version: str | None = None
    asked: SplitConfig | None = None
    """The split that somebody asked for, or None where the source's layout chose it."""
    used: SplitConfig | None = None
    rows: int = 0
    classes: int = 0
    sides: Mapping[str, str] = field(default_factory=dict)
    """From label to split, of every class of it, of those before it, and of those made after it alike."""


@dataclass(frozen=True)
class ChosenSplit:
    """How the classes of a new version are split."""

    asked: SplitConfig | None
    used: SplitConfig
    of_class: dict[str, str]
    sides: dict[str, str]
    """Those of `of_class`, and of classes that are not there at present."""
    notes: list[str]
    deals_anew: bool = False
    """Whether another split was asked for than the former version's, so that no class keeps its side."""


def find_former(store: str, name: str) -> Former:
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
        return Former()
    manifest = storage.read_manifest(uri)
    ref, made = read_ref(uri, manifest), _parse(manifest, uri)
    last = made if ref.version != current else _read_last(parent) or made
    # Dealt anew with the same result, a version's own table has sides of absent classes by the former split.
    sides = _read_sides(ref) if last.used == made.used else _sides_of_rows(ref)
    later = _sides_of_later(parent, str(manifest["created"]), last)
    return Former(ref.version, last.config.split, last.used, ref.rows, ref.classes, sides={**later, **sides})


class LastIngest(NamedTuple):
    """How a dataset was ingested last."""

    config: IngestConfig
    used: SplitConfig

    def to_json(self) -> dict[str, Any]:
        """As a manifest has it, and as the pointer to the current version remembers it."""
        return {
            "ingest": self.config.model_dump(mode="json"),
            "split": self.used.model_dump(mode="json"),
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


def _sides_of_later(parent: str, created: str, last: LastIngest) -> dict[str, str]:
    """From label to split, of the versions that were made after the current one and are split as it is.

    There are some after a rollback, and where a source is again what it was. Another split than the current
    one's dealt all classes anew, so what it dealt counts for nothing.
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
    sides: dict[str, str] = {}
    for _, uri, ref in sorted(later, key=lambda version: version[:2]):
        try:
            sides |= _read_sides(DatasetRef(uri=uri, **ref))
        except DmlError as error:
            logger.warning("classes that only a later version has may change sides: %s", error)
    return sides


def _manifest_or_none(uri: str) -> dict[str, Any] | None:
    """What a version says of itself; None where it is damaged, was just removed, or says no split."""
    try:
        manifest = storage.read_manifest(uri)
    except DmlError as error:
        logger.warning("classes that only this version has may change sides: %s", error)
        return None
    return manifest if "split" in manifest else None


def _read_sides(ref: DatasetRef) -> dict[str, str]:
    """From the small table, or where that is damaged from the rows themselves."""
    filesystem, path = storage.filesystem(storage.join(ref.uri, CLASSES))
    try:
        table = parquet.read_table(path, filesystem=filesystem)
    except (OSError, pa.ArrowException):
        return _sides_of_rows(ref)
    return dict(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))


def _sides_of_rows(ref: DatasetRef) -> dict[str, str]:
    try:
        table = read_rows(ref, columns=["label", "split"])
    except (OSError, pa.ArrowException) as error:
        raise CorruptArtifact(
            f"A dataset's current version must say which classes are for test; {ref.uri} is damaged: "
            f"{error}. Bring its files back, or remove that folder: then the one before it decides."
        ) from error
    return dict(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))


def write_sides(folder: str, sides: Mapping[str, str]) -> None:
    """Lay the splits of classes into a version that is being made."""
    labels = sorted(sides)
    table = pa.table(
        {"label": pa.array(labels, pa.large_string()), "split": [sides[label] for label in labels]}
    )
    filesystem, path = storage.filesystem(storage.join(folder, CLASSES))
    parquet.write_table(table, path, filesystem=filesystem, compression="ZSTD")


def choose_split(
    samples: Sequence[Sample], asked: SplitConfig | None, own: SplitConfig, former: Former
) -> ChosenSplit:
    """The split of a new version's classes: as the former version has them, new ones as they are dealt.

    Args:
        samples: every sample of the source.
        asked: the split somebody asks for now; another than the former version's deals all classes anew.
        own: what the source's layout uses where nobody ever asked.
        former: the current version.

    Raises:
        DmlError: as `split_of_classes`.
    """
    used = asked or former.asked or own
    anew = asked is not None and former.used is not None and asked != former.used
    try:
        of_class = split_of_classes(samples, used, {} if anew else former.sides)
    except DmlError as error:
        if asked is not None:
            raise
        if former.asked is None:
            raise type(error)(
                f"{error} The source's layout is split by {own}; --split asks for another."
            ) from error
        raise type(error)(
            f"{error} Version {former.version} was split by {used}; --split asks for another."
        ) from error
    changed = sorted(label for label, side in of_class.items() if former.sides.get(label, side) != side)
    notes = []
    if anew or changed:
        why = "asked for" if anew else "as the source says"
        examples = f", such as {changed[:_NAMED_AT_MOST]}" if changed else ""
        notes.append(
            f"split {used} ({why}) instead of {former.used} of version {former.version}: {len(changed)} of "
            f"{len(of_class)} classes change sides{examples}"
        )
    sides = of_class if anew else {**former.sides, **of_class}
    return ChosenSplit(asked or former.asked, used, of_class, sides, notes, anew)
