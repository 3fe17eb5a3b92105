"""What a gallery holds at a revision: an opened index version and entries of its log in, a live index out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dml.config import IndexConfig
from dml.refs import IndexRef
from dml.retrieval.changes import NO_POSITION, items_columns
from dml.retrieval.gallery.delta import EXACT_ROWS, Delta
from dml.retrieval.gallery.live import LiveIndex
from dml.retrieval.gallery.log import ERASED, Entry, erased_id
from dml.retrieval.index import index_config_of
from dml.retrieval.search import BuiltIndex
from dml.retrieval.tombstones import Tombstones


@dataclass(frozen=True)
class State:
    """An opened version of the index at a revision; replaced whole."""

    index: BuiltIndex
    live: LiveIndex
    config: IndexConfig
    """Of the version."""

    @classmethod
    def built(
        cls, index: BuiltIndex, *, exact_rows: int = EXACT_ROWS, config: IndexConfig | None = None
    ) -> "State":
        """As a version was built: at the revision that it covers.

        Args:
            index: the version; what is enrolled into one that was asked for as Flat is compared exactly, too.
            exact_rows: up to so many enrolled items are compared exactly whatever was asked for.
            config: of the version; None: as its manifest has it, which is gone where it was removed.
        """
        ref, config = index.ref, config or index_config_of(index.ref)
        delta = Delta(
            items_columns(ref.embeddings.items),
            ref.embeddings.dim,
            recall=1.0 if config.factory == "Flat" else config.recall,
            exact_rows=exact_rows,
        )
        tombstones = Tombstones(np.empty(0, np.int64), index.ref.rows)
        return cls(index, LiveIndex(index, tombstones, delta, index.ref.covers_revision), config)

    @property
    def ref(self) -> IndexRef:
        """The version of the index."""
        return self.index.ref

    @property
    def embedder(self) -> str:
        """The fingerprint of its embedder."""
        return self.ref.embeddings.embedder.fingerprint

    def after(self, entries: Sequence[Entry], revision: int) -> "State":
        """The state after some changes, in their order, of which the last are of a revision."""
        live = self.live
        last: dict[str, Entry] = {}
        for entry in entries:
            last.pop(entry.id, None)
            last[entry.id] = entry
        rows = dict(zip(last, self.index.find_rows(list(last)), strict=True))
        erased: list[str] = []
        if any(id_.startswith(ERASED) for id_ in last):  # this version is older than the one without them
            ids = self.index.items["id"].to_pylist()
            rows |= {key: row for row, id_ in enumerate(ids) if (key := erased_id(id_)) in last}
            erased = [id_ for id_ in live.delta.ids if erased_id(id_) in last]
        items: list[dict[str, Any]] = []
        vectors: list[NDArray[np.float32]] = []
        without_vector = set(live.without_vector.difference(last))
        for entry in last.values():
            if entry.op == "forget":
                continue
            row = rows[entry.id]
            vector = live.delta.vector(entry.id) if entry.vector is None else entry.vector
            if vector is None and row is not None:
                (vector,) = self.index.vectors_of([entry.id])
            if vector is not None:
                items.append(self.columns_of(entry, row))
                vectors.append(vector)
            elif entry.op == "enrol":  # else it was an item of the source, which has it no more
                without_vector.add(entry.id)
        deleted = {row for row in rows.values() if row is not None}
        deleted -= set(live.tombstones.rows.tolist()) if deleted else set()
        tombstones = live.tombstones
        if deleted:
            every = np.concatenate([tombstones.rows, np.fromiter(deleted, np.int64)])
            tombstones = Tombstones(every, self.ref.rows)
        delta = live.delta.without([*last, *erased])
        if items:
            delta = delta.with_items(items, np.stack(vectors))
        return replace(self, live=live.at(tombstones, delta, revision, frozenset(without_vector)))

    def columns_of(self, entry: Entry, row: int | None) -> dict[str, Any]:
        """An entry's item by its columns: enrolled, or that of a row of the index with other attributes."""
        columns: dict[str, Any] = dict.fromkeys(items_columns(self.ref.embeddings.items).names)
        if entry.op == "update" and row is not None:
            (columns,) = self.index.items_at(np.array([row]))
        else:
            columns["position"] = NO_POSITION
            if "sha256" in columns:
                columns["sha256"] = entry.content
        attributes = {name: value for name, value in entry.attributes.items() if name in columns}
        return {**columns, **attributes, "id": entry.id, "label": entry.label}
