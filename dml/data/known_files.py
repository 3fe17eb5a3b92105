"""What an ingest knows of the files that an earlier one read: `datasets/NAME/files.parquet`.

A row has an id, the stamp of the file that it was read from, and the SHA-256 of the content. A later ingest
reads only files with another stamp. The table is a cache: without it, everything is read again.
"""

import io
import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from pyarrow import parquet

from dml import storage
from dml.config import IngestConfig
from dml.data.sources.sample import Sample, Source, Stamp
from dml.errors import CorruptArtifact, MissingArtifact

logger = logging.getLogger(__name__)

FILES = "files.parquet"
_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "stamp", "sha256")])
_METADATA = b"dml"
# A file that is changed twice within a tick of its file system's clock keeps its time. Kernels tick at least
# every 10 ms; a time in whole seconds is one of a file system without fractions, FAT counts in steps of two.
_TICK_NS, _COARSE_TICK_NS = 100_000_000, 2_000_000_000
_SECOND_NS = 1_000_000_000


class KnownFile(NamedTuple):
    """A file that was read: what identified it, and the digest of its content."""

    stamp: str
    sha256: str


class CurrentFile(NamedTuple):
    """A file of the source at present."""

    stamp: str | None
    """None: only its content tells whether it changed."""
    is_settled: bool
    """False if it changed so recently that a further change could leave the stamp as it is."""


def current_files(source: Source, samples: Sequence[Sample]) -> list[CurrentFile]:
    """The stamps of the samples' files, in their order; taken before any of them is read."""
    began_ns = time.time_ns()
    stamps = source.stamps([sample.locator for sample in samples])
    return [
        CurrentFile(None, False)
        if stamp is None
        else CurrentFile(storage.digest_of(sample.locator, stamp.text)[:32], _is_settled(stamp, began_ns))
        for sample, stamp in zip(samples, stamps, strict=True)
    ]


def _is_settled(stamp: Stamp, began_ns: int) -> bool:
    if stamp.changed_ns is None:
        return True
    tick_ns = _TICK_NS if stamp.changed_ns % _SECOND_NS else _COARSE_TICK_NS
    return stamp.changed_ns + tick_ns < began_ns


def read_known_files(store: str, config: IngestConfig) -> dict[str, KnownFile]:
    """What earlier ingests of the same source have read, by id; empty if the settings now refuse more.

    Where the table cannot be read, a warning says that all images are read again.
    """
    uri = _uri(store, config.name)
    try:
        content = storage.read_bytes(uri)
        with storage.reading(uri, "Nothing is lost: the next ingest reads all files."):
            table = parquet.read_table(io.BytesIO(content), page_checksum_verification=True)
            settings = json.loads((table.schema.metadata or {})[_METADATA])
    except MissingArtifact:
        return {}
    except (CorruptArtifact, KeyError, ValueError, OSError) as error:
        logger.warning("all images are read again, since %s cannot be read: %s", uri, error)
        return {}
    if not _covers(settings, _settings(config)):
        return {}
    columns = (table[name].to_pylist() for name in ("id", "stamp", "sha256"))
    return {id_: KnownFile(stamp, sha256) for id_, stamp, sha256 in zip(*columns, strict=True)}


def write_known_files(store: str, config: IngestConfig, files: Mapping[str, KnownFile]) -> None:
    """Replace the table; where it cannot be written, a warning says that the next ingest reads more."""
    uri = _uri(store, config.name)
    try:
        _write(
            uri,
            ({"id": id_, **file._asdict()} for id_, file in sorted(files.items())),
            {_METADATA: json.dumps(_settings(config)).encode()},
        )
    except OSError as error:  # the version is published, and what the table says is still true
        logger.warning(
            "the next ingest reads again what this one has read, since %s cannot be written: %s. "
            "Remove it, or make it writable.",
            uri,
            error,
        )


def erase_known_files(store: str, name: str, ids: Iterable[str]) -> None:
    """Remove the rows of some ids."""
    uri, erased = _uri(store, name), set(ids)
    if storage.exists(uri):
        try:
            with storage.reading(uri, "It is removed."):
                table = parquet.read_table(io.BytesIO(storage.read_bytes(uri)))
        except (CorruptArtifact, OSError):
            storage.delete(uri)
            return
        rows = (row for row in table.to_pylist() if row["id"] not in erased)
        _write(uri, rows, table.schema.metadata or {})


def _write(uri: str, rows: Iterable[Mapping[str, Any]], metadata: Mapping[bytes, bytes]) -> None:
    sink = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema=_SCHEMA.with_metadata(dict(metadata)))
    parquet.write_table(table, sink, compression="ZSTD", write_page_checksum=True)
    storage.write_bytes(uri, sink.getvalue())


def _settings(config: IngestConfig) -> dict[str, Any]:
    """What decides which files are read, and which are refused."""
    return config.model_dump(
        mode="json", include={"source", "layout", "allowed_prefixes", "max_pixels", "max_bytes"}
    )


def _covers(former: Mapping[str, Any], present: Mapping[str, Any]) -> bool:
    """Whether what the former settings accepted the present ones accept too."""
    limits = ("max_pixels", "max_bytes")
    return former.keys() == present.keys() and all(
        present[name] >= former[name] if name in limits else present[name] == former[name] for name in present
    )


def _uri(store: str, name: str) -> str:
    return storage.join(storage.named_folder(store, "datasets", name), FILES)
