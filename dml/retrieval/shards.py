"""An index in shards: opened here or held in a cluster, searched together, answered as if it were one.

Each shard is a bundle of consecutive rows. A query goes to all of them; the best of their best are the best
of all, equal similarities by position. With exact plans that is bit for bit what one bundle answers. There is
never an answer of some shards only.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from itertools import accumulate
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.cluster import RemoteObjects
from dml.errors import InvalidSetting, MissingArtifact
from dml.refs import IndexRef
from dml.retrieval.answer import NO_MORE, Answer, SearchResult
from dml.retrieval.bundle_index import BundleIndex, Device
from dml.retrieval.filters import Filter, matching_rows
from dml.retrieval.filters.columns import Columns
from dml.retrieval.plan import NOT_PROMISED, Plan, Stage
from dml.retrieval.plan import Kind as PlanKind
from dml.retrieval.search import BuiltIndex
from dml.retrieval.sharded_columns import LocalColumns, ShardedColumns, Shards
from dml.retrieval.tombstones import Tombstones


class Shard(LocalColumns):
    """One opened shard of an index.

    Args:
        ref: the shard as an index.
        device: where a search without a filter is computed.
        first_row: where its rows begin among those of all shards.
    """

    def __init__(self, ref: IndexRef, device: Device = "cpu", *, first_row: int = 0) -> None:
        self.index = BundleIndex(ref)
        self.index.move_to(device)
        self._first, self._last = first_row, first_row + ref.rows
        super().__init__(self.index.columns)

    def search(
        self,
        vectors: NDArray[np.float32],
        k: int,
        embedder: str,
        where: Filter | None,
        tombstones: Tombstones | None,
    ) -> SearchResult:
        """The k most similar of its own items, under a filter that was checked against all shards."""
        return self.index.search(
            vectors,
            k,
            embedder=embedder,
            where=self.local(where),
            refuse_absent=False,
            tombstones=self._own(tombstones),
        )

    def exact_similarities(
        self, query: NDArray[np.float32], k: int, where: Filter | None, tombstones: Tombstones | None
    ) -> NDArray[np.float32]:
        """As of `Index`, of its own items."""
        return self.index.exact_similarities(
            query, k, where=self.local(where), tombstones=self._own(tombstones)
        )

    def vectors_of(self, ids: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """The vectors of those of some items that it has, by id."""
        found = self.index.find_rows(ids)
        present = [id_ for id_, row in zip(ids, found, strict=True) if row is not None]
        return dict(zip(present, self.index.vectors_of(present), strict=True)) if present else {}

    def find_rows(self, ids: Sequence[str]) -> list[int | None]:
        """The row among those of all shards of each item; None: it is not in this one."""
        return [None if row is None else self._first + row for row in self.index.find_rows(ids)]

    def items_at(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        """The columns of those of these rows (n,) of all shards, ascending, that are its own."""
        own = rows[(rows >= self._first) & (rows < self._last)] - self._first
        return self.index.items_at(own)

    def count(self, where: Filter | None, tombstones: Tombstones | None) -> int:
        """How many of its items match."""
        return self.index.count(self.local(where), refuse_absent=False, tombstones=self._own(tombstones))

    def check(self) -> None:
        """Search for a few of its items; raises CorruptArtifact where that fails."""
        self.index.check()

    def _own(self, tombstones: Tombstones | None) -> Tombstones | None:
        return None if tombstones is None else tombstones.part(self._first, self._last)


class LocalShards:
    """Shards opened in this process; can be shared between threads."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.shards = shards
        self._pool = ThreadPoolExecutor(len(shards), thread_name_prefix="shard")

    def call(self, method: str, *arguments: Any) -> list[Any]:
        return list(self._pool.map(lambda shard: getattr(shard, method)(*arguments), self.shards))

    def close(self) -> None:
        self._pool.shutdown()


class ShardedIndex(BuiltIndex):
    """An opened index version whose rows are in shards.

    Args:
        ref: the version.
        shards: its shards, opened.
    """

    def __init__(self, ref: IndexRef, shards: Shards) -> None:
        self.ref, self._shards = ref, shards
        self._sharded_columns = ShardedColumns(shards)

    @cached_property
    def items(self) -> pa.Table:
        if not isinstance(self._shards, LocalShards):
            raise InvalidSetting(
                f"The items of {self.ref} must be in this process to be read; a cluster holds them. Open "
                "the index here: open_index(ref)."
            )
        return pa.concat_tables(shard.index.items for shard in self._shards.shards)

    @property
    def columns(self) -> Columns:
        return self._sharded_columns

    def check(self) -> None:
        self._shards.call("check")

    def vectors_of(self, ids: Sequence[str]) -> NDArray[np.float32]:
        vectors: dict[str, NDArray[np.float32]] = {}
        for of_shard in self._shards.call("vectors_of", list(dict.fromkeys(ids))):
            vectors |= of_shard
        absent = [id_ for id_ in ids if id_ not in vectors]
        if absent:
            raise MissingArtifact(
                f"An item to search with must be in index {self.ref}; {absent[0]!r} is not among its "
                f"{self.ref.rows}."
            )
        dim = self.ref.embeddings.dim
        return np.stack([vectors[id_] for id_ in ids]) if len(ids) else np.empty((0, dim), dtype=np.float32)

    def _count(self, filter: Filter | None, tombstones: Tombstones | None) -> int:
        return int(sum(self._shards.call("count", filter, tombstones)))

    def find_rows(self, ids: Sequence[str]) -> list[int | None]:
        of_shards = self._shards.call("find_rows", list(ids))
        return [
            next((row for row in of_id if row is not None), None) for of_id in zip(*of_shards, strict=True)
        ]

    def items_at(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        ascending, inverse = np.unique(rows, return_inverse=True)
        items = [item for of_shard in self._shards.call("items_at", ascending) for item in of_shard]
        return [items[number] for number in inverse]

    def rows_of(self, filter: Filter) -> NDArray[np.int64]:
        return np.flatnonzero(matching_rows(self.items, filter, refuse_absent=False))

    def _exact_similarities(
        self, query: NDArray[np.float32], k: int, filter: Filter | None, tombstones: Tombstones | None
    ) -> NDArray[np.float32]:
        parts = self._shards.call("exact_similarities", query, k, filter, tombstones)
        return np.sort(np.concatenate(parts))[::-1][:k]

    def close(self) -> None:
        self._shards.close()

    def _nearest(
        self,
        vectors: NDArray[np.float32],
        k: int,
        filter: Filter | None,
        tombstones: Tombstones | None,
        *,
        more: int,
    ) -> tuple[list[list[Answer]], Plan]:
        embedder = self.ref.embeddings.embedder.fingerprint
        results: list[SearchResult] = self._shards.call(
            "search", vectors, k + more, embedder, filter, tombstones
        )
        answers = [
            _best([result.answers[number] for result in results], k + more) for number in range(len(vectors))
        ]
        best = [of_query[0].similarity for of_query in answers if of_query]
        plan = _plan_of(results, k)
        return answers, plan.noting_unlike(np.array(best, np.float32)[:, None])


def _best(of_shards: Sequence[Sequence[Answer]], k: int) -> list[Answer]:
    answers = [answer for of_shard in of_shards for answer in of_shard]
    return sorted(answers, key=lambda answer: (-answer.similarity, answer.position))[:k]


_BY_CERTAINTY: tuple[PlanKind, ...] = ("cascade", "index", "index_filtered", "exact", "nothing")


def _plan_of(results: Sequence[SearchResult], k: int) -> Plan:
    """The plan of all shards: that of the shard which is least certain, with the counts and costs of all."""
    plans = [result.plan for result in results]
    worst = min(plans, key=lambda plan: (_BY_CERTAINTY.index(plan.kind), plan.recall.value))
    notes = dict.fromkeys(
        note for plan in plans for note in plan.notes if not note.endswith((NO_MORE, NOT_PROMISED))
    )
    # A query that is unlike the items of one shard may be like those of another.
    least = [each for plan in plans if (each := plan.recall.least_similarity) is not None]
    recall = worst.recall.model_copy(
        update={"least_similarity": min(least) if len(least) == len(plans) else None}
    )
    return worst.model_copy(
        update={
            "count": sum(plan.count for plan in plans),
            "rows": sum(plan.rows for plan in plans),
            "k": k,
            "recall": recall,
            "scan_us": _total([plan.scan_us for plan in plans]),
            "index_us": _total([plan.index_us for plan in plans]),
            "stages": _stages(worst, plans),
            "notes": (f"in {len(plans)} shards", *notes),
        }
    )


def _stages(worst: Plan, plans: Sequence[Plan]) -> tuple[Stage, ...]:
    """Of all shards together, where they have the same; else those of the least certain."""
    names = [stage.name for stage in worst.stages]
    if any([stage.name for stage in plan.stages] != names for plan in plans):
        return worst.stages
    return tuple(
        stage.model_copy(
            update={
                "budget": sum(plan.stages[number].budget for plan in plans),
                "cpu_us": sum(plan.stages[number].cpu_us for plan in plans),
            }
        )
        for number, stage in enumerate(worst.stages)
    )


def _total(costs: Sequence[float | None]) -> float | None:
    known = [cost for cost in costs if cost is not None]
    return sum(known) if len(known) == len(costs) else None


def open_index(ref: IndexRef, *, device: Device = "cpu") -> BuiltIndex:
    """Open an index version, with all its shards, in this process.

    With a remote store it is downloaded once per machine.

    Args:
        ref: the version.
        device: "cuda" searches on a GPU where there is one and the search has no filter, else on the CPU.

    Raises:
        MissingArtifact, CorruptArtifact: its files are not those that were published.
        IncompatibleArtifact: an older version of this program made them.
    """
    if ref.shards:
        return ShardedIndex(ref, LocalShards([_open_shard(part) for part in _parts(ref, device)]))
    index = BundleIndex(ref)
    index.move_to(device)
    return index


def open_in_cluster(ref: IndexRef, *, device: Device = "cpu") -> ShardedIndex:
    """Open each shard of an index in a process of the open Ray session, on whichever machines have room.

    A lost process is started again and the query repeated; if that fails, the query is refused. They are held
    until `close`, or the end of the session.

    Args:
        ref: the version; its files must be reachable from every machine.
        device: "cuda" gives each shard a GPU.

    Raises:
        InvalidSetting: the index has no shards.
        MissingArtifact, CorruptArtifact: files are not those that were published.
        Unreachable: the cluster has no room, or its processes do not answer.
    """
    if not ref.shards:
        raise InvalidSetting(
            f"An index must have shards to be held in a cluster; {ref} is one bundle. Build it with "
            "--shards N, or open it here."
        )
    shards = RemoteObjects(_open_shard, _parts(ref, device), num_gpus=int(device == "cuda"))
    try:
        shards.call("columns")  # opened, or refused now
    except BaseException:
        shards.close()
        raise
    return ShardedIndex(ref, shards)


def _parts(ref: IndexRef, device: Device) -> list[tuple[IndexRef, Device, int]]:
    starts = [0, *accumulate(shard.rows for shard in ref.shards)]
    return [(ref.shard(number), device, starts[number]) for number in range(len(ref.shards))]


def _open_shard(part: tuple[IndexRef, Device, int]) -> Shard:
    ref, device, first_row = part
    return Shard(ref, device, first_row=first_row)
