"""A collection of a Milvus server: its schema, its indexes, and the requests for its items.

What goes wrong is raised as pymilvus raises it.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dml.retrieval.engines.milvus_columns import MAX_TEXT_BYTES, MilvusColumns
from dml.retrieval.engines.milvus_expression import write_ids

MAX_ANSWERS = 16_384
_REQUEST_TIMEOUT_S = 6.0
_LOAD_TIMEOUT_S = 600.0
_VECTOR = "vector"
_BATCH_QUERIES = 1_000
_BATCH_BYTES = 4 << 20
"""Of vectors in a request; gRPC's own limit is some times more."""
_TABLE, _COLUMNS = "dml.embeddings", "dml.columns"
"""Properties of a collection: the fingerprint of its embeddings table, and its columns' types."""


class MilvusCollection:
    """A collection by its name; it need not be there.

    Args:
        client: a `pymilvus.MilvusClient`.
        name: of the collection.
    """

    def __init__(self, client: Any, name: str) -> None:
        self._client, self.name = client, name

    def exists(self) -> bool:
        """Whether the server has it."""
        return bool(self._client.has_collection(self.name, timeout=_REQUEST_TIMEOUT_S))

    def create(self, dim: int, table: str, columns: MilvusColumns) -> None:
        """Make it, with no items; each column has an index for filters.

        Args:
            dim: of the vectors.
            table: fingerprint of the embeddings table that it is for.
            columns: of the items.
        """
        import pymilvus

        client, kinds = self._client, pymilvus.DataType
        of_kind = {
            "text": kinds.VARCHAR,
            "integer": kinds.INT64,
            "number": kinds.DOUBLE,
            "boolean": kinds.BOOL,
        }
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        attributes = client.prepare_index_params()
        schema.add_field("id", kinds.VARCHAR, is_primary=True, max_length=MAX_TEXT_BYTES)
        schema.add_field(_VECTOR, kinds.FLOAT_VECTOR, dim=dim)
        for column in [column for column in columns.values() if column.name != "id"]:
            text = {"max_length": MAX_TEXT_BYTES} if column.kind == "text" else {}
            schema.add_field(column.field, of_kind[column.kind], nullable=True, **text)
            attributes.add_index(column.field, index_type="INVERTED")
            if column.time_type is not None:
                schema.add_field(column.time_field, kinds.INT64, nullable=True)
                attributes.add_index(column.time_field, index_type="INVERTED")
        client.create_collection(
            self.name,
            schema=schema,
            properties={_TABLE: table, _COLUMNS: json.dumps(columns.to_json())},
            consistency_level="Strong",
            timeout=_REQUEST_TIMEOUT_S,
        )
        client.create_index(self.name, attributes, timeout=_REQUEST_TIMEOUT_S, sync=False)

    def index_vectors(self, index_type: str, *, wait: bool) -> None:
        """Have the vectors indexed; an item that is not yet indexed is compared all the same."""
        vectors = self._client.prepare_index_params()
        vectors.add_index(_VECTOR, index_type=index_type, metric_type="IP")
        self._client.create_index(self.name, vectors, timeout=_LOAD_TIMEOUT_S, sync=wait)

    def open(self) -> None:
        """Have the server hold it in memory, to be searched."""
        self._client.load_collection(self.name, timeout=_LOAD_TIMEOUT_S)

    def flush(self) -> None:
        """Have what was written on the server's disk."""
        self._client.flush(self.name, timeout=_LOAD_TIMEOUT_S)

    def rename(self, name: str) -> None:
        """Give it another name."""
        self._client.rename_collection(self.name, name, timeout=_REQUEST_TIMEOUT_S)
        self.name = name

    def drop(self) -> None:
        """Remove it and its items; one that is not there is no error."""
        self._client.drop_collection(self.name, timeout=_REQUEST_TIMEOUT_S)

    def table(self) -> str | None:
        """The fingerprint of the table that it was made for; None: another program made it."""
        return self._properties().get(_TABLE)

    def columns(self) -> MilvusColumns | None:
        """The columns of its items; None: another program made it."""
        try:
            return MilvusColumns.from_json(json.loads(self._properties()[_COLUMNS]))
        except (KeyError, ValueError, TypeError, AttributeError):
            return None

    def dim(self) -> int:
        """Of the vectors."""
        described = self._client.describe_collection(self.name, timeout=_REQUEST_TIMEOUT_S)
        return next(int(field["params"]["dim"]) for field in described["fields"] if field["name"] == _VECTOR)

    def index_type(self) -> str:
        """Of the vectors, as Milvus calls it."""
        described = self._client.describe_index(self.name, _VECTOR, timeout=_REQUEST_TIMEOUT_S)
        return str(described["index_type"])

    def search(
        self, vectors: NDArray[np.float32], k: int, expression: str, fields: Sequence[str]
    ) -> Iterator[Sequence[Any]]:
        """For each query its hits, with these fields."""
        for start in range(0, len(vectors), _BATCH_QUERIES):
            yield from self._client.search(
                self.name,
                data=list(vectors[start : start + _BATCH_QUERIES]),
                filter=expression,
                limit=k,
                anns_field=_VECTOR,
                output_fields=list(fields),
                search_params={"metric_type": "IP"},
                timeout=_REQUEST_TIMEOUT_S,
                consistency_level="Strong",
            )

    def count(self, expression: str = "") -> int:
        """How many items match."""
        (row,) = self._client.query(
            self.name,
            filter=expression,
            output_fields=["count(*)"],
            timeout=_REQUEST_TIMEOUT_S,
            consistency_level="Strong",
        )
        return int(row["count(*)"])

    def upsert(self, rows: list[dict[str, Any]], vectors: NDArray[np.float32]) -> None:
        """Add items, or replace those of the same ids; `batches` says how many a request takes."""
        for row, vector in zip(rows, vectors, strict=True):
            row[_VECTOR] = vector
        self._client.upsert(self.name, rows, timeout=_LOAD_TIMEOUT_S)

    def delete(self, ids: Sequence[str]) -> None:
        """Remove the items of these ids."""
        for start in range(0, len(ids), _BATCH_QUERIES):
            # pymilvus would write `ids` into an expression without escaping them.
            expression = write_ids(ids[start : start + _BATCH_QUERIES])
            self._client.delete(self.name, filter=expression, timeout=_REQUEST_TIMEOUT_S)

    def _properties(self) -> dict[str, str]:
        described = self._client.describe_collection(self.name, timeout=_REQUEST_TIMEOUT_S)
        properties: dict[str, str] = described.get("properties") or {}
        return properties


def batches(rows: int, dim: int) -> Iterator[tuple[int, int]]:
    """First and last row, exclusive, of each request."""
    size = max(1, _BATCH_BYTES // (4 * dim + 256))
    for start in range(0, rows, size):
        yield start, min(start + size, rows)
