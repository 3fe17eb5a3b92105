"""A CSV or Parquet table of images: columns `image`, `label`, optionally `id` and `split`, and attributes."""

import io
from dataclasses import dataclass
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import csv, parquet

from dml import storage
from dml.config import ClassSplit, OfficialSplit
from dml.data.sources.sample import Listing, Problem, Sample
from dml.errors import InvalidData

_TEXT = ("image", "label", "id", "split")


@dataclass(frozen=True)
class ManifestSource:
    """Each row names an image: a path relative to the manifest, an absolute one, or a URI fsspec opens.

    `id` defaults to the image's path or URI. Where there is a column `split` it holds train or test. Every
    other column is an attribute: whole and real numbers, truth values, and text for everything else.
    """

    uri: str

    def list(self) -> Listing:
        table = self._table()
        samples, problems = [], []
        for row in table.to_pylist():
            image, label = row.pop("image") or "", row.pop("label") or ""
            id_, split = row.pop("id", None) or image, row.pop("split", None)
            if not image:
                problems.append(Problem(id_, label, "", "missing file", "the row's image is blank"))
            elif split not in (None, "train", "test"):
                problems.append(Problem(id_, label, image, "unknown split", f"{split!r}: not train or test"))
            else:
                samples.append(Sample(id_, image, label, split, row))
        official = "split" in table.column_names
        return Listing(samples, OfficialSplit() if official else ClassSplit(), problems)

    def read(self, locator: str) -> bytes:
        if "://" not in locator:
            if PurePosixPath(locator).is_absolute():
                return storage.read_bytes(locator)
            return storage.read_bytes(storage.join(self.uri.rpartition("/")[0], locator))
        if locator.startswith(("s3://", "file://")):
            return storage.read_bytes(locator)
        import fsspec

        with fsspec.open(locator, "rb") as stream:
            return bytes(stream.read())

    def _table(self) -> pa.Table:
        content = io.BytesIO(storage.read_bytes(self.uri))
        try:
            if self.uri.lower().endswith(".parquet"):
                table = parquet.read_table(content)
            else:
                text = csv.ConvertOptions(column_types=dict.fromkeys(_TEXT, pa.string()))
                table = csv.read_csv(content, convert_options=text)
        except pa.ArrowInvalid as error:
            raise InvalidData(f"{self.uri} must be a CSV or Parquet table: {error}.") from error
        missing = {"image", "label"} - set(table.column_names)
        if missing:
            raise InvalidData(
                f"{self.uri} must have the columns image and label; it has {table.column_names}. Rename them."
            )
        return table.cast(pa.schema([(field.name, _column_type(field)) for field in table.schema]))


def recognise(uri: str) -> bool:
    return uri.lower().endswith((".csv", ".parquet"))


def _column_type(field: pa.Field) -> pa.DataType:
    if field.name in _TEXT:
        return pa.string()
    if pa.types.is_boolean(field.type):
        return pa.bool_()
    if pa.types.is_integer(field.type):
        return pa.int64()
    if pa.types.is_floating(field.type) or pa.types.is_decimal(field.type):
        return pa.float64()
    return pa.string()
