"""Milvus as an engine: items and vectors in a collection of a Milvus server, reached over gRPC.

A load fills a collection of another name, which takes its own name when it is complete: a killed load leaves
nothing that a search finds. Missing values (null, NaN and empty text) are null there, so that filters mean
the same.
"""

import json
import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from dml.data.dataset import read_rows
from dml.data.schema import IMAGE, POSITION, dataset_schema, items_schema
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
from dml.refs import DatasetRef, EmbeddingsRef
from dml.retrieval.arguments import checked_k
from dml.retrieval.engines.engine import Capabilities, Found
from dml.retrieval.engines.expression import REFUSED_FILTERS, MilvusColumns, write_expression, write_ids
from dml.retrieval.filters.check import check
from dml.retrieval.filters.times import times_of
from dml.retrieval.filters.where import Where
from dml.retrieval.search import Answer, answer_of

SCHEMES = {"milvus": "http", "milvus+tls": "https"}
DEFAULT_PORT = 19530
CONNECT_TIMEOUT_S = 8.0
"""Of the first answer; with what follows, a dead server is named within 10 s."""
_REQUEST_TIMEOUT_S = 6.0
# pymilvus pings an idle server each 10 s; gRPC's servers end the connections of clients that ping so often.
_QUIET_CHANNEL = {"grpc.keepalive_time_ms": 300_000, "grpc.keepalive_permit_without_calls": False}
_LOAD_TIMEOUT_S = 600.0
_VECTOR = "vector"
_MOST_TEXT = 65_535
"""Bytes of a text, Milvus' own limit."""
_MOST_ANSWERS = 16_384
_BATCH_QUERIES = 1_000
_BATCH_BYTES = 4 << 20
"""Of vectors in a request; gRPC's own limit is some times more."""
_FLAT_BELOW = 100_000
_TABLE, _COLUMNS = "dml.embeddings", "dml.columns"
"""Properties of a collection: the fingerprint of its embeddings table, and its columns' types."""
_LENGTH_TOLERANCE = 1e-3


@dataclass(frozen=True)
class MilvusAddress:
    """Where a Milvus server is: `milvus://HOST[:PORT][/DATABASE]`, `milvus+tls://...` if encrypted."""

    host: str
    port: int
    database: str = ""
    is_encrypted: bool = False

    @classmethod
    def parse(cls, text: str) -> "MilvusAddress":
        """The address that a text is.

        Raises:
            InvalidSetting: it is none.
        """
        try:
            parts = urlsplit(text)
            port = parts.port or DEFAULT_PORT
        except ValueError:
            parts, port = urlsplit(""), 0
        database = parts.path.strip("/")
        wrong = not parts.hostname or "/" in database or parts.query or parts.fragment
        if parts.scheme not in SCHEMES or wrong:
            raise InvalidSetting(
                "An engine must be milvus://HOST:PORT, or milvus+tls://HOST:PORT, and may end in /DATABASE; "
                "got "
                f"{without_password(text)!r}."
            )
        if parts.username or parts.password:
            raise InvalidSetting(
                "An engine's address must hold no password, which others on this machine could read; got "
                "one for "
                f"{parts.hostname}. Set DML_MILVUS_TOKEN=USER:PASSWORD instead."
            )
        return cls(str(parts.hostname), port, unquote(database), parts.scheme == "milvus+tls")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (f"/{self.database}" if self.database else "")

    @property
    def uri(self) -> str:
        """As pymilvus takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_encrypted else 'http'}://{host}:{self.port}"


def collection_name(index: str) -> str:
    """The collection of an index version NAME@VERSION; Milvus allows letters, digits and underscores.

    Example:
        >>> collection_name("shop-2@0123456789ab")
        'dml_shop_2_0123456789ab'
    """
    return "dml_" + re.sub("[^A-Za-z0-9]", "_", index)


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
        max_k=_MOST_ANSWERS,
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
            self._create(self._collection, embeddings, MilvusColumns(_types_of(embeddings)))
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
                        "other items. "
                        "Name another, or drop it."
                    )
                self._client.drop_collection(self._collection, timeout=_REQUEST_TIMEOUT_S)
            aside = f"{self._collection}_loading"
            if self._client.has_collection(aside, timeout=_REQUEST_TIMEOUT_S):  # of a load that was killed
                self._client.drop_collection(aside, timeout=_REQUEST_TIMEOUT_S)
            items = read_rows(embeddings.items, split=embeddings.split)
            columns = _columns_of(embeddings, items)
            self._create(aside, embeddings, columns)
            ticker.begin(f"loading into Milvus at {self._address}", "rows", embeddings.rows)
            self._fill(aside, embeddings, items, columns)
            ticker.begin("Milvus builds its index")
            self._client.flush(aside, timeout=_LOAD_TIMEOUT_S)
            self._index(aside, embeddings.rows, wait=True)
            self._open(aside)
            held = self._count(aside, "")
            if held != embeddings.rows:
                raise InvalidData(
                    f"{self} must hold the {embeddings.rows} rows that were loaded; Milvus counts {held}. "
                    "Load again."
                )
            self._client.rename_collection(aside, self._collection, timeout=_REQUEST_TIMEOUT_S)
            self._open(self._collection)
            self._opened = columns
        return embeddings.rows

    def search(self, vectors: NDArray[np.float32], k: int, where: Where = None) -> Found:
        k = checked_k(k, at_most=self.capabilities.max_k, engine=self.capabilities.name)
        expression = self._expression(where)
        columns = {column.field: name for name, column in self._columns.items()}
        answers: list[list[Answer]] = []
        with self._errors():
            self._refuse_queries(vectors)
            for start in range(0, len(vectors), _BATCH_QUERIES):
                found = self._client.search(
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
                answers += [_answers(hits, columns) for hits in found]
            plan = f"{self._kind_of_index()} of {self}"
            fewest = min(map(len, answers), default=k)
            if fewest < k:
                matching = self._count(self._collection, expression)
                plan += f"; {fewest} of {k} answers: " + (
                    "no more match"
                    if fewest == matching
                    else f"Milvus' index finds no more of the {matching} that match"
                )
        return Found(answers, plan)

    def count(self, where: Where = None) -> int:
        expression = self._expression(where)
        with self._errors():
            return self._count(self._collection, expression)

    def upsert(self, items: pa.Table, vectors: NDArray[np.float32]) -> None:
        columns = self._columns
        with self._errors():
            self._refuse_queries(vectors)
            if items.num_rows != len(vectors) or set(items.column_names) != set(columns):
                raise InvalidData(
                    f"Items must have a vector each and the columns {list(columns)}; got {items.num_rows} "
                    "items of "
                    f"{items.column_names} and {len(vectors)} vectors."
                )
            for start, stop in _batches(len(items), vectors.shape[1]):
                rows = _rows(items.slice(start, stop - start), columns)
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
        schema.add_field("id", kinds.VARCHAR, is_primary=True, max_length=_MOST_TEXT)
        schema.add_field(_VECTOR, kinds.FLOAT_VECTOR, dim=embeddings.dim)
        for column in [column for column in columns.values() if column.name != "id"]:
            text = {"max_length": _MOST_TEXT} if column.kind == "text" else {}
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
                self._upsert(name, _rows(part.slice(start, stop - start), columns), vectors[start:stop])
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

    def _refuse_queries(self, vectors: NDArray[np.float32]) -> None:
        dim = self._dim()
        if vectors.ndim != 2 or vectors.shape[1] != dim:
            raise InvalidData(f"Vectors must be (N, {dim}); got {vectors.shape}.")
        lengths = np.linalg.norm(vectors, axis=1)
        if not (np.abs(lengths - 1) <= _LENGTH_TOLERANCE).all():
            raise InvalidData(
                f"Vectors must have length 1; got lengths {lengths.min()} to {lengths.max()}. "
                "Divide each by its length."
            )

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


def _types_of(embeddings: EmbeddingsRef) -> dict[str, str]:
    """The columns of a table's items, in the four types that attributes have."""
    items = embeddings.items
    schema = dataset_schema if isinstance(items, DatasetRef) else items_schema
    columns = {field.name: str(field.type) for field in schema(items.attributes) if field.name != IMAGE}
    return {
        **{name: "int64" if kind == "int32" else kind for name, kind in columns.items()},
        POSITION: "int64",
    }


def _columns_of(embeddings: EmbeddingsRef, items: pa.Table) -> MilvusColumns:
    types = _types_of(embeddings)
    texts = [name for name, kind in types.items() if kind == "string" and name != "id"]
    held = {name: times_of(items[name]) for name in texts if items[name].null_count < len(items)}
    return MilvusColumns(types, {name: times.type for name, times in held.items() if times is not None})


def _batches(rows: int, dim: int) -> Iterator[tuple[int, int]]:
    """First and last row, exclusive, of each request."""
    size = max(1, _BATCH_BYTES // (4 * dim + 256))
    for start in range(0, rows, size):
        yield start, min(start + size, rows)


def _rows(items: pa.Table, columns: MilvusColumns) -> list[dict[str, Any]]:
    """Items as Milvus takes them: null for what is missing.

    Raises:
        InvalidData: a value that Milvus cannot hold.
    """
    fields: dict[str, list[Any]] = {}
    for name, column in columns.items():
        values = items[name].cast(column.type)
        fields[column.field] = _held(name, values)
        if column.time_type is not None:
            fields[column.time_field] = _times(name, values, column.time_type)
    return [dict(zip(fields, values, strict=True)) for values in zip(*fields.values(), strict=True)]


def _times(name: str, texts: pa.ChunkedArray, kind: pa.TimestampType) -> list[int | None]:
    missing = compute.fill_null(compute.equal(texts, ""), True)
    filled = compute.if_else(missing, pa.scalar(None, texts.type), texts)
    try:
        values: list[int | None] = filled.cast(kind).cast(pa.int64()).to_pylist()
    except pa.ArrowInvalid as error:
        raise InvalidData(
            f"Column {name!r} holds times; {str(error).splitlines()[0]}. Write them alike, or load into "
            "another."
        ) from error
    return values


def _held(name: str, column: pa.ChunkedArray) -> list[Any]:
    if pa.types.is_floating(column.type):
        if compute.any(compute.is_inf(column)).as_py():
            raise InvalidData(f"Milvus holds finite numbers; column {name!r} has infinity. Make it missing.")
        column = compute.if_else(compute.is_nan(column), None, column)
    elif pa.types.is_string(column.type):
        longest = compute.max(compute.binary_length(column)).as_py() or 0
        if longest > _MOST_TEXT:
            raise InvalidData(
                f"Milvus holds texts of at most {_MOST_TEXT} bytes; column {name!r} has one of {longest}. "
                "Shorten it."
            )
        column = compute.if_else(compute.equal(column, ""), None, column)
    values: list[Any] = column.to_pylist()
    return values


def _answers(hits: Sequence[Any], columns: dict[str, str]) -> list[Answer]:
    """Milvus' hits by descending similarity; ties by id, since Milvus has no order among them."""
    ranked = sorted(hits, key=lambda hit: (-hit["distance"], hit["id"]))
    return [
        answer_of(float(hit["distance"]), {name: hit["entity"].get(field) for field, name in columns.items()})
        for hit in ranked
    ]
