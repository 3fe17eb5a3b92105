"""A table of images: a CSV or Parquet file with the columns `image` and `label`, optional `id` and `split`.

`image` is a path (absolute, or relative to the manifest) or a URI that fsspec reads, such as `s3://`; every
other column is an attribute.
"""

import io
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyarrow import csv, parquet

from dml import storage
from dml.config import ClassSplit, OfficialSplit
from dml.data.sources.sample import Listing, Problem, Sample
from dml.errors import InvalidData, MissingArtifact

SUFFIXES = (".csv", ".parquet")


@dataclass(frozen=True)
class ManifestSource:
    uri: str

    def scan(self) -> Listing:
        table = self._table()
        if not {"image", "label"} <= set(table.column_names):
            raise InvalidData(
                f"A manifest must have the columns image and label; {self.uri} has {table.column_names}."
            )
        samples, problems = [], []
        for number, row in enumerate(table.to_pylist()):
            image, label = _text(row.pop("image")), _text(row.pop("label"))
            sample_id, split = _text(row.pop("id", None)) or image, _text(row.pop("split", None)) or None
            if not image:
                problems.append(Problem(f"row {number}", label, "", "missing file", "no image is named"))
            elif split not in (None, "train", "test"):
                detail = f"split must be train or test; got {split!r}"
                problems.append(Problem(sample_id, label, image, "no label", detail))
            else:
                samples.append(Sample(sample_id, image, label, split, row))
        has_split = bool(samples) and all(sample.split for sample in samples)
        return Listing(samples, OfficialSplit() if has_split else ClassSplit(), problems)

    def _table(self) -> pa.Table:
        content = io.BytesIO(storage.read_bytes(self.uri))
        try:
            if self.uri.lower().endswith(".parquet"):
                return parquet.read_table(content)
            # Labels and ids such as "007" are names, not numbers.
            types = {name: pa.string() for name in ("image", "label", "id", "split")}
            options = csv.ConvertOptions(column_types=types, strings_can_be_null=True)
            return csv.read_csv(content, convert_options=options)
        except pa.ArrowInvalid as error:
            raise InvalidData(f"A manifest must be readable CSV or Parquet; {self.uri}: {error}.") from error

    def read(self, locator: str) -> bytes:
        if "://" not in locator:
            parent = self.uri.rsplit("/", 1)[0]
            path = locator if locator.startswith("/") else storage.join(parent, locator)
            return storage.read_bytes(path)
        import fsspec

        try:
            with fsspec.open(locator, "rb") as stream:
                content: bytes = stream.read()
                return content
        except (OSError, ImportError, ValueError) as error:
            raise MissingArtifact(f"The manifest names {locator}, which cannot be read: {error}.") from error


def _text(value: Any) -> str:
    return "" if value is None else str(value).strip()
