"""The table of a version's class splits, `classes.parquet`: those of its classes and of all earlier ones."""

from collections.abc import Mapping

import pyarrow as pa
from pyarrow import parquet

from dml import storage

CLASSES = "classes.parquet"


def read_class_splits(version_uri: str) -> dict[str, str]:
    """Split by label, of a version.

    Raises:
        MissingArtifact, CorruptArtifact: the table is not as it was published.
    """
    uri = storage.join(version_uri, CLASSES)
    filesystem, path = storage.filesystem(uri)
    with storage.reading(uri, "`dml verify --repair` makes the version again."):
        table = parquet.read_table(path, filesystem=filesystem, page_checksum_verification=True)
    return dict(zip(table["label"].to_pylist(), table["split"].to_pylist(), strict=True))


def write_class_splits(folder: str, splits: Mapping[str, str]) -> None:
    """Write the table into a version that is being made."""
    labels = sorted(splits)
    table = pa.table(
        {"label": pa.array(labels, pa.large_string()), "split": [splits[label] for label in labels]}
    )
    filesystem, path = storage.filesystem(storage.join(folder, CLASSES))
    parquet.write_table(table, path, filesystem=filesystem, compression="ZSTD", write_page_checksum=True)
