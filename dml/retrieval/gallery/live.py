"""An index with what was enrolled and forgotten since it was built, searched as if it were one index.

It is a value: the index of one revision of the gallery. A search is answered by one of them, so it sees all
of an enrolment or nothing of it.
"""

from collections.abc import Sequence
from functools import cached_property
from heapq import merge
from itertools import islice
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.errors import CorruptArtifact, MissingArtifact
from dml.retrieval.answer import NO_MORE, Answer, answer_of
from dml.retrieval.filters import Compare, Filter, check
from dml.retrieval.filters.columns import Columns
from dml.retrieval.gallery.delta import Delta
from dml.retrieval.plan import Plan
from dml.retrieval.recall_table import EXACT, Recall
from dml.retrieval.search import BuiltIndex, Index
from dml.retrieval.sharded_columns import LocalColumns, ShardedColumns
from dml.retrieval.tombstones import Tombstones


class LiveIndex(Index):
    """The items of an index and a delta, without those that are deleted; can be shared between threads.

    Args:
        base: the index as it was built.
        tombstones: its deleted rows.
        delta: enrolled items, none with the id of a live row of `base`.
        revision: of the gallery.
        without_vector: ids of enrolled items that have no vector by the model of this index.
    """

    def __init__(
        self,
        base: BuiltIndex,
        tombstones: Tombstones,
        delta: Delta,
        revision: int,
        without_vector: frozenset[str] = frozenset(),
    ) -> None:
        self._base, self.tombstones, self.delta, self.revision = base, tombstones, delta, revision
        self.without_vector = without_vector
        self.ref = base.ref
        self._parts = _Parts(_LiveBase(base, tombstones), _LiveDelta(delta))
        self._columns = ShardedColumns(self._parts)

    def at(
        self, tombstones: Tombstones, delta: Delta, revision: int, without_vector: frozenset[str]
    ) -> "LiveIndex":
        """The same index at another revision; what was read of its deleted rows is kept where they are."""
        other = LiveIndex(self.base, tombstones, delta, revision, without_vector)
        if tombstones is self.tombstones:
            other._parts.of_base = self._parts.of_base
        return other

    @property
    def base(self) -> BuiltIndex:
        return self._base

    @cached_property
    def items(self) -> pa.Table:
        """A row for each live item: those of the index, then those that were enrolled."""
        base = self.base.items
        if self.tombstones:
            base = base.take(pa.array(self.tombstones.live.rows()))
        schema = pa.schema([field.with_nullable(True) for field in base.schema])
        return pa.concat_tables([base.cast(schema), self.delta.table.select(schema.names).cast(schema)])

    @property
    def columns(self) -> Columns:
        return self._columns

    @property
    def num_rows(self) -> int:
        return self.base.num_rows - len(self.tombstones) + self.delta.num_rows

    @property
    def num_enrolled(self) -> int:
        return self.delta.num_rows

    @property
    def num_deleted(self) -> int:
        return len(self.tombstones)

    def check(self) -> None:
        self.base.check()

    def close(self) -> None:
        self.base.close()

    def _live_rows(self, ids: Sequence[str]) -> list[int | None]:
        """The row in the index of each of these items; None: it is not there, or deleted."""
        rows = self.base.find_rows(ids)
        return [None if row is None or self._is_deleted(row) else row for row in rows]

    def _is_deleted(self, row: int) -> bool:
        return bool(self.tombstones.among(np.array([row]))[0])

    def vectors_of(self, ids: Sequence[str]) -> NDArray[np.float32]:
        of_delta = {id_: vector for id_ in ids if (vector := self.delta.vector(id_)) is not None}
        others = list(dict.fromkeys(id_ for id_ in ids if id_ not in of_delta))
        absent = [id_ for id_, row in zip(others, self._live_rows(others), strict=True) if row is None]
        if absent:
            raise MissingArtifact(
                f"An item must be in gallery {self.ref.name} of {self.num_rows} items; {absent[0]!r} is not."
            )
        vectors = dict(zip(others, self.base.vectors_of(others), strict=True)) if others else {}
        of_delta = {id_: vector / np.linalg.norm(vector) for id_, vector in of_delta.items()}
        dim = self.ref.embeddings.dim
        return (
            np.stack([{**vectors, **of_delta}[id_] for id_ in ids]) if ids else np.empty((0, dim), np.float32)
        )

    def item(self, id_: str) -> dict[str, Any] | None:
        """The columns of a live item; None: there is none with this id."""
        if (item := self.delta.item(id_)) is not None:
            return item
        (row,) = self._live_rows([id_])
        return None if row is None else self.base.items_at(np.array([row]))[0]

    def ids_with_label(self, label: str) -> list[str]:
        """The ids of the live items with a label; of one without, its own."""
        columns = self.columns
        ids: list[str] = []
        if "label" in columns and columns["label"].has([label])[0]:
            filter = check(Compare(column="label", operator="=", value=label), columns, refuse_absent=False)
            assert filter is not None
            rows = self._base_rows(filter)
            ids = [item["id"] for item in self.base.items_at(rows)] if len(rows) else []
            ids += [self.delta.item_at(int(row))["id"] for row in self._delta_rows(filter)]
        elif (item := self.item(label)) is not None and item.get("label") is None:
            ids = [label]
        return ids

    def _count(self, filter: Filter | None, tombstones: Tombstones | None) -> int:
        of_base = self.base.count(
            self._parts.of_base.local(filter), refuse_absent=False, tombstones=self.tombstones
        )
        return of_base + len(self._delta_rows(filter))

    def rows_of(self, filter: Filter) -> NDArray[np.int64]:
        rows = self._base_rows(filter)
        numbers = rows - np.searchsorted(self.tombstones.rows, rows)
        first = self.base.num_rows - len(self.tombstones)
        return np.concatenate([numbers, first + self._delta_rows(filter)])

    def num_identities(self, filter: Filter | None) -> int:
        if filter is None:
            rows = self.tombstones.live.rows() if self.tombstones else slice(None)
        else:
            rows = self._base_rows(filter)
        numbers = np.unique(self.base.identities.of_rows[rows])
        items = [self.delta.item_at(int(row)) for row in self._delta_rows(filter)]
        labels = {label for item in items if (label := item.get("label"))}
        known = self.base.identities.of_labels(sorted(labels))
        others = len(labels) - len(known) + sum(not item.get("label") for item in items)
        return len(np.union1d(numbers, list(known.values()))) + others

    def _base_rows(self, filter: Filter) -> NDArray[np.int64]:
        local = self._parts.of_base.local(filter)
        assert local is not None
        rows = self.base.rows_of(local)
        return rows[~self.tombstones.among(rows)] if self.tombstones else rows

    def _delta_rows(self, filter: Filter | None) -> NDArray[np.int64]:
        return self.delta.rows_of(self._parts.of_delta.local(filter))

    def _nearest(
        self,
        vectors: NDArray[np.float32],
        k: int,
        filter: Filter | None,
        tombstones: Tombstones | None,
        *,
        more: int,
    ) -> tuple[list[list[Answer]], Plan]:
        of_base = self.base.search(
            vectors,
            k + more,
            embedder=self.ref.embeddings.embedder.fingerprint,
            where=self._parts.of_base.local(filter),
            refuse_absent=False,
            tombstones=self.tombstones,
        )
        rows = self._delta_rows(filter)
        (similarities, found), recall = self.delta.nearest(np.asarray(vectors, np.float32), k + more, rows)
        answers = []
        for number, of_query in enumerate(of_base.answers):
            of_delta = map(self._enrolled, similarities[number].tolist(), found[number].tolist())
            both = merge(of_query, of_delta, key=lambda answer: -answer.similarity)
            answers.append(list(islice(both, k + more)))
        self._require_live(answers)
        return answers, self._plan_of(of_base.plan, len(rows), recall, k)

    def _exact_similarities(
        self, query: NDArray[np.float32], k: int, filter: Filter | None, tombstones: Tombstones | None
    ) -> NDArray[np.float32]:
        of_base = self.base.exact_similarities(
            query, k, where=self._parts.of_base.local(filter), tombstones=self.tombstones
        )
        (of_delta,), _ = self.delta.search(query[None], k, self._delta_rows(filter))
        return np.sort(np.concatenate([of_base, of_delta]))[::-1][:k]

    def _enrolled(self, similarity: float, row: int) -> Answer:
        return answer_of(similarity, self.delta.item_at(row))

    def _require_live(self, answers: Sequence[Sequence[Answer]]) -> None:
        """No answer is an item that was forgotten, whatever the index says."""
        deleted = self._parts.of_base.deleted_ids
        if not deleted:
            return
        for answer in (answer for of_query in answers for answer in of_query):
            if answer.id in deleted and self.delta.item(answer.id) is None:
                raise CorruptArtifact(
                    f"Index {self.ref} must answer with live items; it answers with one that was forgotten. "
                    f"`dml reindex {self.ref.name}` builds it without."
                )

    def _plan_of(self, plan: Plan, num_matching: int, of_delta: Recall, k: int) -> Plan:
        """The plan of the index's part, with what is said of the delta; of two recalls the lower."""
        notes = [note for note in plan.notes if not note.endswith(NO_MORE)]
        if num_matching:
            how = "compared exactly" if of_delta == EXACT else "by their nearest lists"
            notes.append(f"{num_matching} enrolled since {how}")
        if self.without_vector:
            notes.append(f"{len(self.without_vector)} enrolled items have no vector by this version's model")
        update: dict[str, Any] = {
            "count": plan.count + num_matching,
            "rows": self.num_rows,
            "k": k,
            "notes": tuple(notes),
            "recall": min(plan.recall, of_delta, key=lambda recall: recall.value),
        }
        if plan.kind == "nothing" and num_matching:
            update["kind"] = "exact"
        return plan.model_copy(update=update)


class _LiveBase(LocalColumns):
    """The columns of the index: a value that only deleted items have is none, and is never named."""

    def __init__(self, base: BuiltIndex, tombstones: Tombstones) -> None:
        super().__init__(base.columns)
        self._base, self._tombstones = base, tombstones

    @cached_property
    def deleted(self) -> list[dict[str, Any]]:
        """The deleted items."""
        return self._base.items_at(self._tombstones.rows) if self._tombstones else []

    @cached_property
    def deleted_ids(self) -> frozenset[str]:
        """Their ids."""
        return frozenset(item["id"] for item in self.deleted)

    def has(self, column: str, values: Sequence[Any]) -> list[bool]:
        gone = {item[column] for item in self.deleted}
        return [
            is_there and (value not in gone or self._is_live(column, value))
            for value, is_there in zip(values, super().has(column, values), strict=True)
        ]

    def near(self, column: str, value: Any) -> tuple[list[Any], int]:
        values, number = super().near(column, value)
        gone = {item[column] for item in self.deleted}
        live = [other for other in values if other not in gone or self._is_live(column, other)]
        return live, number - (len(values) - len(live))

    def example(self, column: str, unlike: str) -> str:
        text = super().example(column, unlike)
        if text and not self.has(column, [text])[0]:
            return next(iter(self.near(column, "")[0]), "")
        return text

    def _is_live(self, column: str, value: Any) -> bool:
        same = Compare(column=column, operator="=", value=value)
        return self._base.count(same, refuse_absent=False, tombstones=self._tombstones) > 0


class _LiveDelta(LocalColumns):
    """The columns of what was enrolled, read when a filter asks for them."""

    def __init__(self, delta: Delta) -> None:
        self._delta = delta

    @property
    def _here(self) -> Columns:  # type: ignore[override]
        return self._delta.columns


class _Parts:
    """Both parts of a live index, called as the shards of an index are."""

    def __init__(self, of_base: _LiveBase, of_delta: _LiveDelta) -> None:
        self.of_base, self.of_delta = of_base, of_delta

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return [getattr(part, method)(*arguments) for part in (self.of_base, self.of_delta)]

    def close(self) -> None:
        """Nothing is held."""
