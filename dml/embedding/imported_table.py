"""Writes a version of imported vectors: rows in, the parts of a table and the fragments of its items out."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml import storage
from dml.data.items import attribute_types_of, seal_items, write_items
from dml.data.quarantine import QUARANTINE, write_quarantine
from dml.data.schema import SCHEMA_VERSION, Fragment
from dml.data.sources.sample import Problem
from dml.embedding.table import part_name, write_part
from dml.refs import AttributeType, EmbeddingsRef, ExternalModelRef, ItemsRef

_ITEMS = "items"


class ImportedTable:
    """A version of imported vectors that is being written.

    Args:
        staged: the folder that it is written to.
        source: the file that the vectors are from.
        embedder: what made the vectors.
    """

    def __init__(self, staged: str, source: str, embedder: ExternalModelRef) -> None:
        self._staged, self._source, self._embedder = staged, source, embedder
        self._fragments: list[Fragment] = []
        self._labels: set[str] = set()
        self._attributes: dict[str, AttributeType] = {}
        self._digest = hashlib.sha256()

    @property
    def num_rows(self) -> int:
        """How many rows were written."""
        return sum(fragment.rows for fragment in self._fragments)

    def write(self, items: pa.Table, vectors: NDArray[np.float32]) -> None:
        """Write rows as the next part, and their items as the next fragment; neither where there are none.

        Args:
            items: (n,) `id`, and `label` and attributes if there are any; the same columns each time.
            vectors: (n, D) of unit length.
        """
        fragment = write_items(self._items_folder(), items)
        if fragment is None:
            return
        part = storage.join(self._staged, part_name(len(self._fragments)))
        write_part(part, items["id"].cast(pa.string()), None, vectors)
        self._digest.update(vectors.data)
        self._fragments.append(fragment)
        self._attributes = attribute_types_of(items)
        if "label" in items.column_names:
            self._labels.update(items["label"].drop_null().unique().to_pylist())

    def publish(self, folder: str, name: str, problems: Sequence[Problem]) -> EmbeddingsRef:
        """Publish what was written, named by its content; the pointer is not moved.

        Args:
            folder: of all versions of these vectors.
            name: of the vectors.
            problems: the rows that were refused, for the version's quarantine.
        """
        ref = self._ref(folder, name)
        items = ref.items.model_dump(mode="json", exclude={"uri"})
        seal_items(storage.join(self._staged, _ITEMS), items, self._fragments)
        write_quarantine(storage.join(self._staged, QUARANTINE), problems)
        description = {
            "ref": ref.model_dump(mode="json", exclude={"uri"}),
            "parts": [{"name": part_name(n), "rows": f.rows} for n, f in enumerate(self._fragments)],
            "source": self._source,
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        storage.publish(self._staged, ref.uri, description)
        return ref

    def _ref(self, folder: str, name: str) -> EmbeddingsRef:
        names = [fragment.name for fragment in self._fragments]
        items_fingerprint = storage.digest_of("items", names, self._attributes)
        fingerprint = storage.digest_of(
            self._embedder.fingerprint, items_fingerprint, self._digest.hexdigest(), self.num_rows
        )
        uri = storage.join(folder, fingerprint[:12])
        items = ItemsRef(
            uri=storage.join(uri, _ITEMS),
            fingerprint=items_fingerprint,
            name=name,
            rows=self.num_rows,
            classes=len(self._labels),
            attributes=self._attributes,
            schema_version=SCHEMA_VERSION,
        )
        return EmbeddingsRef(
            uri=uri,
            fingerprint=fingerprint,
            embedder=self._embedder,
            items=items,
            dim=self._embedder.dim,
            rows=self.num_rows,
        )

    def _items_folder(self) -> str:
        return storage.make_folder(storage.join(self._staged, _ITEMS))
