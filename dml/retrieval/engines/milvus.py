"""Milvus as an engine: items and vectors in a collection of a Milvus server, reached over gRPC.

A load fills a collection of another name, which takes its own name when it is complete: a killed load leaves
nothing that a search finds. Missing values (null, NaN and empty text) are null there, so that filters mean
the same.
"""

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
from dml.retrieval.answer import Answer, answer_of
from dml.retrieval.arguments import check_vectors, checked_k
from dml.retrieval.engines.engine import Capabilities, EngineResult
from dml.retrieval.engines.milvus_address import MilvusAddress
from dml.retrieval.engines.milvus_collection import MAX_ANSWERS, MilvusCollection, batches
from dml.retrieval.engines.milvus_columns import MilvusColumns, columns_of, rows_of, types_of
from dml.retrieval.engines.milvus_expression import REFUSED_FILTERS, write_expression
from dml.retrieval.filters.check import check
from dml.retrieval.filters.where import Where

CONNECT_TIMEOUT_S = 8.0
"""Of the first answer; with what follows, a dead server is named within 10 s."""
# pymilvus pings an idle server each 10 s; gRPC's servers end the connections of clients that ping so often.
_QUIET_CHANNEL = {"grpc.keepalive_time_ms": 300_000, "grpc.keepalive_permit_without_calls": False}
_FLAT_BELOW = 100_000


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
        max_k=MAX_ANSWERS,
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
        self._pymilvus, self._address, self._index_type = pymilvus, address, index_type
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
        self._collection = MilvusCollection(self._client, collection)

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def create(self, embeddings: EmbeddingsRef) -> None:
        with self._errors():
            if self._collection.exists():
                raise InvalidSetting(
                    f"A collection must be new to be created; {self} is there already. Name another, or "
                    "drop it."
                )
            columns = MilvusColumns(types_of(embeddings))
            self._collection.create(embeddings.dim, embeddings.fingerprint, columns)
            self._collection.index_vectors(self._index_type_for(embeddings.rows), wait=False)
            self._collection.open()

    def load(self, embeddings: EmbeddingsRef) -> int:
        with Ticker("load") as ticker, self._errors():
            if self._collection.exists():
                if self._collection.table() == embeddings.fingerprint and self.count() >= embeddings.rows:
                    return embeddings.rows
                if self.count():
                    raise InvalidSetting(
                        f"A collection must be empty, or hold the table already, to be loaded; {self} has "
                        "other items. Name another, or drop it."
                    )
                self._collection.drop()
            name = self._collection.name
            loading = MilvusCollection(self._client, f"{name}_loading")
            if loading.exists():  # of a load that was killed
                loading.drop()
            items = read_rows(embeddings.items, split=embeddings.split)
            columns = columns_of(embeddings, items)
            loading.create(embeddings.dim, embeddings.fingerprint, columns)
            ticker.begin(f"loading into Milvus at {self._address}", "rows", embeddings.rows)
            _fill(loading, embeddings, items, columns)
            ticker.begin("Milvus builds its index")
            loading.flush()
            loading.index_vectors(self._index_type_for(embeddings.rows), wait=True)
            loading.open()
            num_loaded = loading.count()
            if num_loaded != embeddings.rows:
                raise InvalidData(
                    f"{self} must hold the {embeddings.rows} rows that were loaded; Milvus counts "
                    f"{num_loaded}. Load again."
                )
            loading.rename(name)
            self._collection.open()
            self._opened = columns
        return embeddings.rows

    def search(self, vectors: NDArray[np.float32], k: int, where: Where = None) -> EngineResult:
        k = checked_k(k, at_most=self.capabilities.max_k, engine=self.capabilities.name)
        expression = self._expression(where)
        columns = {column.field: name for name, column in self._columns.items()}
        with self._errors():
            check_vectors("Vectors", vectors, self._collection.dim())
            found = self._collection.search(vectors, k, expression, list(columns))
            answers = [_answers(hits, columns) for hits in found]
            plan = f"{self._collection.index_type()} of {self}"
            fewest = min(map(len, answers), default=k)
            if fewest < k:
                matching = self._collection.count(expression)
                plan += f"; {fewest} of {k} answers: " + (
                    "no more match"
                    if fewest == matching
                    else f"Milvus' index finds no more of the {matching} that match"
                )
        return EngineResult(answers, plan)

    def count(self, where: Where = None) -> int:
        expression = self._expression(where)
        with self._errors():
            return self._collection.count(expression)

    def upsert(self, items: pa.Table, vectors: NDArray[np.float32]) -> None:
        columns = self._columns
        with self._errors():
            check_vectors("Vectors", vectors, self._collection.dim())
            if items.num_rows != len(vectors) or set(items.column_names) != set(columns):
                raise InvalidData(
                    f"Items must have a vector each and the columns {list(columns)}; got {items.num_rows} "
                    f"items of {items.column_names} and {len(vectors)} vectors."
                )
            for start, stop in batches(len(items), vectors.shape[1]):
                rows = rows_of(items.slice(start, stop - start), columns)
                self._collection.upsert(rows, vectors[start:stop])

    def delete(self, ids: Sequence[str]) -> None:
        with self._errors():
            self._collection.delete(ids)

    def drop(self) -> None:
        """Remove the collection and all that it holds; one that is not there is no error."""
        with self._errors():
            self._collection.drop()
        self._opened = None

    def require_table(self, embeddings: EmbeddingsRef) -> None:
        """Raise MissingArtifact or IncompatibleArtifact unless the collection holds this table's items."""
        with self._errors():
            _ = self._columns
            if self._collection.table() != embeddings.fingerprint:
                raise IncompatibleArtifact(
                    f"{self} must hold the vectors of {embeddings.source}; it holds others. Load them into "
                    "another."
                )

    def __str__(self) -> str:
        return f"Milvus' collection {self._collection.name} at {self._address}"

    @property
    def _columns(self) -> MilvusColumns:
        """The columns of the collection's items."""
        if self._opened is None:
            with self._errors():
                if not self._collection.exists():
                    raise MissingArtifact(
                        f"{self} must be loaded to be searched; there is none. Do: dml load."
                    )
                self._opened = self._collection.columns()
            if self._opened is None:
                raise IncompatibleArtifact(
                    f"{self} must be one that `dml load` made; its properties do not say its columns. Name "
                    "another."
                )
        return self._opened

    def _expression(self, where: Where) -> str:
        if where is None:
            return ""
        columns = self._columns
        filter = check(where, columns, refuse_absent=False)
        return "" if filter is None else write_expression(filter, columns)

    def _index_type_for(self, rows: int) -> str:
        if self._index_type != "auto":
            return self._index_type
        return "FLAT" if rows < _FLAT_BELOW else "AUTOINDEX"

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


def _fill(
    collection: MilvusCollection, embeddings: EmbeddingsRef, items: pa.Table, columns: MilvusColumns
) -> None:
    first = 0
    for ids, vectors in read_vectors(embeddings):
        part = items.slice(first, len(ids))
        if not part["id"].cast(ids.type).equals(ids):
            raise CorruptArtifact(
                f"{embeddings.uri} must have the items of {embeddings.items}, in their order. Embed again."
            )
        first += len(ids)
        for start, stop in batches(len(ids), embeddings.dim):
            collection.upsert(rows_of(part.slice(start, stop - start), columns), vectors[start:stop])
            count(stop - start)


def _answers(hits: Sequence[Any], columns: dict[str, str]) -> list[Answer]:
    """Milvus' hits by descending similarity; ties by id, since Milvus has no order among them."""
    ranked = sorted(hits, key=lambda hit: (-hit["distance"], hit["id"]))
    return [
        answer_of(float(hit["distance"]), {name: hit["entity"].get(field) for field, name in columns.items()})
        for hit in ranked
    ]
