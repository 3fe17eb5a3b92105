"""Milvus as an engine: items and vectors in a collection of a Milvus server, reached over gRPC.

A load fills a collection of another name, which takes its own name when it is complete: a killed load leaves
nothing that a search finds. Missing values (null, NaN and empty text) are null there, so that filters mean
the same.
"""

import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.data.dataset import read_rows
from dml.deadline import call_within
from dml.embedding.table import read_vectors
from dml.errors import (
    CorruptArtifact,
    IncompatibleArtifact,
    InvalidData,
    InvalidSetting,
    MissingArtifact,
    Unreachable,
    without_password,
)
from dml.progress import Ticker, count
from dml.refs import EmbeddingsRef
from dml.retrieval.arguments import check_vectors, checked_k
from dml.retrieval.engines.engine import Capabilities, EngineResult
from dml.retrieval.engines.milvus_address import MilvusAddress
from dml.retrieval.engines.milvus_columns import MAX_TEXT_BYTES, MilvusColumns, columns_of, rows_of, types_of
from dml.retrieval.engines.milvus_expression import REFUSED_FILTERS, write_expression, write_ids
from dml.retrieval.filters.check import check
from dml.retrieval.filters.where import Where
from dml.retrieval.search import Answer, answer_of

CONNECT_TIMEOUT_S = 8.0
"""Of the first answer; with what follows, a dead server is named within 10 s."""
_REQUEST_TIMEOUT_S = 6.0
# pymilvus pings an idle server each 10 s; gRPC's servers end the connections of clients that ping so often.
_QUIET_CHANNEL = {"grpc.keepalive_time_ms": 300_000, "grpc.keepalive_permit_without_calls": False}
_LOAD_TIMEOUT_S = 600.0
_VECTOR = "vector"
_MAX_ANSWERS = 16_384
_BATCH_QUERIES = 1_000
_BATCH_BYTES = 4 << 20
"""Of vectors in a request; gRPC's own limit is some times more."""
_FLAT_BELOW = 100_000
_TABLE, _COLUMNS = "dml.embeddings", "dml.columns"
"""Properties of a collection: the fingerprint of its embeddings table, and its columns' types."""


class MilvusEngine:
    """A collection of a Milvus server; it need not be there yet.

    Args:
        address: the server's.
        collection: its name.
        token: USER:PASSWORD or an API key; "": the server asks for none.
        index_type: of the vectors, as Milvus calls it; "auto": FLAT, which is exact, below 100,000 rows,
            and Milvus' own choice, AUTOINDEX, beyond.
        connect_timeout_s: how long to wait for the server's first answer, seconds.

    Raises:
        Unreachable: no Milvus answers there in time.
        ModuleNotFoundError: pymilvus is not installed.

    Example:
        engine = MilvusEngine(MilvusAddress.parse("milvus://localhost:19530"), "shop")
        engine.load(index.embeddings)
        found = engine.search(vectors, 10, parse("region = 'east'"))
    """

    capabilities = Capabilities(
        "Milvus",
        upsert=True,
        delete=True,
        refused_filters=REFUSED_FILTERS,
        knows_values=False,
        max_k=_MAX_ANSWERS,
    )

    def __init__(
        self,
        address: MilvusAddress,
        collection: str,
        *,
        token: str = "",
        index_type: str = "auto",
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        import pymilvus

        # What goes wrong is raised; it would be printed beside, with its traceback.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self._pymilvus, self._address, self._collection = pymilvus, address, collection
        self._index_type = index_type
        self._opened: MilvusColumns | None = None

        def connect() -> Any:
            return pymilvus.MilvusClient(
                uri=address.uri,
                token=token,
                db_name=address.database,
                timeout=connect_timeout_s,
                dedicated=True,
                grpc_options=_QUIET_CHANNEL,
            )

        with self._errors():
            self._client = call_within(connect_timeout_s + 1, connect)

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def create(self, embeddings: EmbeddingsRef) -> None:
        with self._errors():
            if self._client.has_collection(self._collection, timeout=_REQUEST_TIMEOUT_S):
                raise InvalidSetting(
                    f"A collection must be new to be created; {self} is there already. Name another, or "
                    "drop it."
                )
            self._create(self._collection, embeddings, MilvusColumns(types_of(embeddings)))
            self._index(self._collection, embeddings.rows, wait=False)
            self._open(self._collection)

    def load(self, embeddings: EmbeddingsRef) -> int:
        with Ticker("load") as ticker, self._errors():
            if self._client.has_collection(self._collection, timeout=_REQUEST_TIMEOUT_S):
                if self._table() == embeddings.fingerprint and self.count() >= embeddings.rows:
                    return embeddings.rows
                if self.count():
                    raise InvalidSetting(
                        f"A collection must be empty, or hold the table already, to be loaded; {self} has "
                        "other items. Name another, or drop it."
                    )
                self._client.drop_collection(self._collection, timeout=_REQUEST_TIMEOUT_S)
            loading = f"{self._collection}_loading"
            if self._client.has_collection(loading, timeout=_REQUEST_TIMEOUT_S):  # of a load that was killed
                self._client.drop_collection(loading, timeout=_REQUEST_TIMEOUT_S)
            items = read_rows(embeddings.items, split=embeddings.split)
            columns = columns_of(embeddings, items)
            self._create(loading, embeddings, columns)
            ticker.begin(f"loading into Milvus at {self._address}", "rows", embeddings.rows)
            self._fill(loading, embeddings, items, columns)
            ticker.begin("Milvus builds its index")
            self._client.flush(loading, timeout=_LOAD_TIMEOUT_S)
            self._index(loading, embeddings.rows, wait=True)
            self._open(loading)
            num_loaded = self._count(loading, "")
            if num_loaded != embeddings.rows:
                raise InvalidData(
                    f"{self} must hold the {embeddings.rows} rows that were loaded; Milvus counts "
                    f"{num_loaded}. Load again."
                )
            self._client.rename_collection(loading, self._collection, timeout=_REQUEST_TIMEOUT_S)
            self._open(self._collection)
            self._opened = columns
        return embeddings.rows

    def search(self, vectors: NDArray[np.float32], k: int, where: Where = None) -> EngineResult:
        k = checked_k(k, at_most=self.capabilities.max_k, engine=self.capabilities.name)
        expression = self._expression(where)
        columns = {column.field: name for name, column in self._columns.items()}
        answers: list[list[Answer]] = []
        with self._errors():
            check_vectors("Vectors", vectors, self._dim())
            for start in range(0, len(vectors), _BATCH_QUERIES):
                results = self._client.search(
                    self._collection,
                    data=list(vectors[start : start + _BATCH_QUERIES]),
                    filter=expression,
                    limit=k,
                    anns_field=_VECTOR,
                    output_fields=list(columns),
                    search_params={"metric_type": "IP"},
                    timeout=_REQUEST_TIMEOUT_S,
                    consistency_level="Strong",
                )
                answers += [_answers(hits, columns) for hits in results]
            plan = f"{self._kind_of_index()} of {self}"
            fewest = min(map(len, answers), default=k)
            if fewest < k:
                matching = self._count(self._collection, expression)
                plan += f"; {fewest} of {k} answers: " + (
                    "no more match"
                    if fewest == matching
                    else f"Milvus' index finds no more of the {matching} that match"
                )
        return EngineResult(answers, plan)

    def count(self, where: Where = None) -> int:
        expression = self._expression(where)
        with self._errors():
            return self._count(self._collection, expression)

    def upsert(self, items: pa.Table, vectors: NDArray[np.float32]) -> None:
        columns = self._columns
        with self._errors():
            check_vectors("Vectors", vectors, self._dim())
            if items.num_rows != len(vectors) or set(items.column_names) != set(columns):
                raise InvalidData(
                    f"Items must have a vector each and the columns {list(columns)}; got {items.num_rows} "
                    f"items of {items.column_names} and {len(vectors)} vectors."
                )
            for start, stop in _batches(len(items), vectors.shape[1]):
                rows = rows_of(items.slice(start, stop - start), columns)
                self._upsert(self._collection, rows, vectors[start:stop])

    def delete(self, ids: Sequence[str]) -> None:
        with self._errors():
            for start in range(0, len(ids), _BATCH_QUERIES):
                # pymilvus would write `ids` into an expression without escaping them.
                expression = write_ids(ids[start : start + _BATCH_QUERIES])
                self._client.delete(self._collection, filter=expression, timeout=_REQUEST_TIMEOUT_S)

    def drop(self) -> None:
        """Remove the collection and all that it holds; one that is not there is no error."""
        with self._errors():
            self._client.drop_collection(self._collection, timeout=_REQUEST_TIMEOUT_S)
        self._opened = None

    def require_table(self, embeddings: EmbeddingsRef) -> None:
        """Raise MissingArtifact or IncompatibleArtifact unless the collection holds this table's items."""
        with self._errors():
            _ = self._columns
            if self._table() != embeddings.fingerprint:
                raise IncompatibleArtifact(
                    f"{self} must hold the vectors of {embeddings.source}; it holds others. Load them into "
                    "another."
                )

    def __str__(self) -> str:
        return f"Milvus' collection {self._collection} at {self._address}"

    @property
    def _columns(self) -> MilvusColumns:
        """The columns of the collection's items."""
        if self._opened is None:
            with self._errors():
                properties = self._properties()
            try:
                self._opened = MilvusColumns.from_json(json.loads(properties[_COLUMNS]))
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise IncompatibleArtifact(
                    f"{self} must be one that `dml load` made; its properties do not say its columns. Name "
                    "another."
                ) from error
        return self._opened

    def _properties(self) -> dict[str, str]:
        if not self._client.has_collection(self._collection, timeout=_REQUEST_TIMEOUT_S):
            raise MissingArtifact(f"{self} must be loaded to be searched; there is none. Do: dml load.")
        described = self._client.describe_collection(self._collection, timeout=_REQUEST_TIMEOUT_S)
        properties: dict[str, str] = described.get("properties") or {}
        return properties

    def _table(self) -> str | None:
        """The fingerprint of the table that the collection was made for."""
        return self._properties().get(_TABLE)

    def _expression(self, where: Where) -> str:
        if where is None:
            return ""
        columns = self._columns
        filter = check(where, columns, refuse_absent=False)
        return "" if filter is None else write_expression(filter, columns)

    def _create(self, name: str, embeddings: EmbeddingsRef, columns: MilvusColumns) -> None:
        client, kinds = self._client, self._pymilvus.DataType
        of_kind = {
            "text": kinds.VARCHAR,
            "integer": kinds.INT64,
            "number": kinds.DOUBLE,
            "boolean": kinds.BOOL,
        }
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        attributes = client.prepare_index_params()
        schema.add_field("id", kinds.VARCHAR, is_primary=True, max_length=MAX_TEXT_BYTES)
        schema.add_field(_VECTOR, kinds.FLOAT_VECTOR, dim=embeddings.dim)
        for column in [column for column in columns.values() if column.name != "id"]:
            text = {"max_length": MAX_TEXT_BYTES} if column.kind == "text" else {}
            schema.add_field(column.field, of_kind[column.kind], nullable=True, **text)
            attributes.add_index(column.field, index_type="INVERTED")
            if column.time_type is not None:
                schema.add_field(column.time_field, kinds.INT64, nullable=True)
                attributes.add_index(column.time_field, index_type="INVERTED")
        client.create_collection(
            name,
            schema=schema,
            properties={_TABLE: embeddings.fingerprint, _COLUMNS: json.dumps(columns.to_json())},
            consistency_level="Strong",
            timeout=_REQUEST_TIMEOUT_S,
        )
        client.create_index(name, attributes, timeout=_REQUEST_TIMEOUT_S, sync=False)

    def _index(self, name: str, rows: int, *, wait: bool) -> None:
        """Have the vectors indexed; an item that is not yet indexed is compared all the same."""
        vectors = self._client.prepare_index_params()
        vectors.add_index(_VECTOR, index_type=self._index_type_for(rows), metric_type="IP")
        self._client.create_index(name, vectors, timeout=_LOAD_TIMEOUT_S, sync=wait)

    def _index_type_for(self, rows: int) -> str:
        if self._index_type != "auto":
            return self._index_type
        return "FLAT" if rows < _FLAT_BELOW else "AUTOINDEX"

    def _kind_of_index(self) -> str:
        return str(
            self._client.describe_index(self._collection, _VECTOR, timeout=_REQUEST_TIMEOUT_S)["index_type"]
        )

    def _open(self, name: str) -> None:
        self._client.load_collection(name, timeout=_LOAD_TIMEOUT_S)

    def _fill(self, name: str, embeddings: EmbeddingsRef, items: pa.Table, columns: MilvusColumns) -> None:
        first = 0
        for ids, vectors in read_vectors(embeddings):
            part = items.slice(first, len(ids))
            if not part["id"].cast(ids.type).equals(ids):
                raise CorruptArtifact(
                    f"{embeddings.uri} must have the items of {embeddings.items}, in their order. Embed "
                    "again."
                )
            first += len(ids)
            for start, stop in _batches(len(ids), embeddings.dim):
                self._upsert(name, rows_of(part.slice(start, stop - start), columns), vectors[start:stop])
                count(stop - start)

    def _upsert(self, name: str, rows: list[dict[str, Any]], vectors: NDArray[np.float32]) -> None:
        for row, vector in zip(rows, vectors, strict=True):
            row[_VECTOR] = vector
        self._client.upsert(name, rows, timeout=_LOAD_TIMEOUT_S)

    def _count(self, name: str, expression: str) -> int:
        (row,) = self._client.query(
            name,
            filter=expression,
            output_fields=["count(*)"],
            timeout=_REQUEST_TIMEOUT_S,
            consistency_level="Strong",
        )
        return int(row["count(*)"])

    def _dim(self) -> int:
        described = self._client.describe_collection(self._collection, timeout=_REQUEST_TIMEOUT_S)
        return next(int(field["params"]["dim"]) for field in described["fields"] if field["name"] == _VECTOR)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """What pymilvus raises, as an error that says which server and what to do."""
        import grpc

        try:
            yield
        except (self._pymilvus.MilvusException, grpc.RpcError, TimeoutError) as error:
            reason = without_password(str(getattr(error, "message", None) or error).splitlines()[0])
            raise Unreachable(
                f"A Milvus server must answer at {self._address}; it does not, or refuses: {reason}. Check "
                "the address, that the server runs, and DML_MILVUS_TOKEN."
            ) from error


def _batches(rows: int, dim: int) -> Iterator[tuple[int, int]]:
    """First and last row, exclusive, of each request."""
    size = max(1, _BATCH_BYTES // (4 * dim + 256))
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def _answers(hits: Sequence[Any], columns: dict[str, str]) -> list[Answer]:
    """Milvus' hits by descending similarity; ties by id, since Milvus has no order among them."""
    ranked = sorted(hits, key=lambda hit: (-hit["distance"], hit["id"]))
    return [
        answer_of(float(hit["distance"]), {name: hit["entity"].get(field) for field, name in columns.items()})
        for hit in ranked
    ]
