"""Manifest: a CSV or Parquet table with columns `image`, `label`, `id`, `split`, and attributes."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from dml import storage
from dml.config import ClassSplit, OfficialSplit
from dml.data.sources import web
from dml.data.sources.access import SOURCE_FOLDER_ONLY, Access, local_path
from dml.data.sources.csv_table import read_csv
from dml.data.sources.files import local_stamp, object_stamps, read_local, read_object
from dml.data.sources.parquet_table import ParquetTable, is_parquet
from dml.data.sources.sample import MAX_BYTES, Listing, Problem, Refused, Sample, Stamp
from dml.data.sources.table import Table
from dml.data.sources.web_stamps import web_stamps
from dml.errors import InvalidData, MissingArtifact
from dml.progress import begin, count

_TABLE_BYTES = 16 << 30
_CSV_SUFFIXES, _PARQUET_SUFFIX = (".csv", ".tsv"), ".parquet"
_DATA = re.compile(r"\s*data:[\w.+-]+/[\w.+-]+[;,]", re.IGNORECASE)
_INLINE = re.compile(r"#(\d+)")
"""The locator of an image inside the table: its row."""


@dataclass(frozen=True)
class ManifestSource:
    """Each row names an image: a path relative to the manifest, an absolute one, or an s3, http or https URI.

    Images outside the manifest's folder must be below an allowed prefix. In Parquet an image can also be its
    bytes, or Hugging Face's struct of bytes and path. `id` defaults to the image's path or URI, or to the row
    number if rows have bytes without a unique path. An optional column `split` is train or test. Every other
    column is an attribute.
    """

    uri: str
    access: Access = SOURCE_FOLDER_ONLY

    def list(self) -> Listing:
        begin("listing, reading the table")
        table = self._table()
        missing = {"image", "label"} - set(table.columns)
        if missing:
            raise InvalidData(
                f"{self.uri} must have the columns image and label; it has {table.names}. Rename them."
            )
        samples, problems = [], list(table.problems)
        official = "split" in table.columns
        columns = dict(table.columns)
        images, labels = columns.pop("image"), columns.pop("label")
        ids, splits = columns.pop("id", images), columns.pop("split", None)
        begin("listing", "rows", len(images))
        for row, (image, label, id_) in enumerate(zip(images, labels, ids, strict=True)):
            count()
            if row in table.refused:
                problems.append(Problem(id_ or image or "", label or "", image or "", *table.refused[row]))
                continue
            locator = f"#{row}" if table.is_inline else _locator(image)
            split = splits[row] if splits is not None else None
            if not locator:
                problems.append(
                    Problem(id_ or "", label or "", "", "missing file", "the row's image is blank")
                )
            elif split not in (None, "train", "test"):
                detail = f"{split!r}: not train or test"
                problems.append(Problem(id_ or locator, label or "", locator, "unknown split", detail))
            else:
                attributes = {name: values[row] for name, values in columns.items()}
                samples.append(Sample(id_ or locator, locator, label or "", split, attributes))
        return Listing(
            samples, OfficialSplit() if official else ClassSplit(), problems, ids_are_rows=table.ids_are_rows
        )

    def stamps(self, locators: Sequence[str]) -> Sequence[Stamp | None]:
        """Of images in the table that of the table; of others that of their file, object or answer."""
        objects = {locator: uri for locator in locators if (uri := self._object(locator)) is not None}
        stamp_of = dict(zip(objects, object_stamps(list(objects.values())), strict=True))
        urls = {locator: locator.strip() for locator in locators if _is_web(locator)}
        stamp_of |= dict(zip(urls, web_stamps(list(urls.values()), self.access), strict=True)) if urls else {}
        table = self._table_stamp() if any(map(_INLINE.fullmatch, locators)) else None
        return [
            table
            if _INLINE.fullmatch(locator)
            else stamp_of[locator]
            if locator in stamp_of
            else self._local_stamp(locator)
            for locator in locators
        ]

    def _object(self, locator: str) -> str | None:
        """The URI of an image on S3; None for one elsewhere."""
        locator = locator.strip() if "://" in locator else locator
        is_relative = "://" not in locator and not locator.startswith("/") and not _DATA.match(locator)
        if storage.is_remote(self.uri) and is_relative and not _INLINE.fullmatch(locator):
            locator = storage.join(self._folder, locator)
        if not locator.startswith("s3://"):
            return None
        with suppress(Refused):
            self.access.require_key(locator, self._folder)
            return locator
        return None

    def _local_stamp(self, locator: str) -> Stamp | None:
        locator = locator.strip() if "://" in locator else locator
        if _DATA.match(locator) or ("://" in locator and not locator.lower().startswith("file://")):
            return None
        path, root = local_path(locator), self.uri
        if not storage.is_remote(self.uri):
            path, root = os.path.join(self._folder, path), os.path.realpath(self._folder)
        with suppress(Refused):
            return local_stamp(self.access.real_path(path, root))
        return None

    def _table_stamp(self) -> Stamp | None:
        if not ParquetTable(self.uri).has_all_bytes():
            return None
        return object_stamps([self.uri])[0] if storage.is_remote(self.uri) else local_stamp(self.uri)

    def read(self, locator: str, max_bytes: int = MAX_BYTES) -> bytes:
        if inline := _INLINE.fullmatch(locator):
            image = ParquetTable(self.uri).image(int(inline[1]), max_bytes)
            return image if isinstance(image, bytes) else self._read_path(image, max_bytes)
        return self._read_path(locator, max_bytes)

    def _read_path(self, locator: str, max_bytes: int) -> bytes:
        locator = locator.strip() if "://" in locator else locator
        if _DATA.match(locator):
            raise _unknown_scheme(locator)
        if "://" in locator and not locator.lower().startswith("file://"):
            return self._read_uri(locator, max_bytes)
        if storage.is_remote(self.uri) and not locator.startswith(("/", "file://")):
            return self._read_uri(storage.join(self._folder, locator), max_bytes)
        path = local_path(locator)
        if storage.is_remote(self.uri):  # a manifest on S3 has no folder on this machine
            return read_local(self.access.real_path(path, self.uri), max_bytes)
        return read_local(
            self.access.real_path(os.path.join(self._folder, path), os.path.realpath(self._folder)), max_bytes
        )

    @property
    def _folder(self) -> str:
        return self.uri.rpartition("/")[0]

    def _read_uri(self, uri: str, max_bytes: int) -> bytes:
        if uri.startswith("s3://"):
            self.access.require_key(uri, self._folder)
            return read_object(uri, max_bytes)
        if _is_web(uri):
            return web.fetch(uri, self.access, max_bytes)
        raise _unknown_scheme(uri)

    def _table(self) -> Table:
        if self.uri.lower().endswith(_PARQUET_SUFFIX) or is_parquet(self.uri):
            return ParquetTable(self.uri).read()
        try:
            if storage.is_remote(self.uri):
                content = read_object(self.uri, _TABLE_BYTES)
            else:
                content = read_local(self.uri, _TABLE_BYTES)
        except Refused as refusal:
            kind = MissingArtifact if refusal.reason == "missing file" else InvalidData
            raise kind(
                f"The manifest {self.uri} must be readable; {refusal.reason}: {refusal.detail}."
            ) from None
        return read_csv(content, self.uri)


def _is_web(locator: str) -> bool:
    return locator.strip().lower().startswith(("http://", "https://"))


def _unknown_scheme(uri: str) -> Refused:
    return Refused(
        "unknown scheme", f"{uri.partition(':')[0]}:; an image must be a path or an s3, http or https URI"
    )


def _locator(image: str | None) -> str | None:
    """The locator of an image; a file called `#7` must not be confused with a table's row 7."""
    return f"./{image}" if image and _INLINE.fullmatch(image) else image


def recognize(uri: str) -> bool:
    """Whether a URI is a manifest, by its name or first bytes."""
    if storage.is_remote(uri):
        return uri.lower().endswith((*_CSV_SUFFIXES, _PARQUET_SUFFIX))
    path = storage.resolve(uri)
    if os.path.isdir(path):
        return False
    return path.lower().endswith((*_CSV_SUFFIXES, _PARQUET_SUFFIX)) or is_parquet(path)
