"""An opened index of one bundle: each search planned, carried out with Faiss, and what it finds checked."""

from collections.abc import Callable, Sequence
from functools import lru_cache
from operator import gt
from typing import Any, Literal
from weakref import WeakKeyDictionary

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml import storage
from dml.errors import CorruptArtifact, InvalidSetting, MissingArtifact
from dml.refs import IndexRef
from dml.retrieval.answer import Answer, answer_of
from dml.retrieval.attributes import Matches
from dml.retrieval.bundle import ITEMS_FILE, REMEDY, Calibration, open_bundle
from dml.retrieval.cascade import Cascade
from dml.retrieval.execution import FilteredLists
from dml.retrieval.filters import Filter, Where, check
from dml.retrieval.filters.columns import Columns
from dml.retrieval.first_stage import FirstStage
from dml.retrieval.lists import InvertedLists, Selector
from dml.retrieval.plan import Plan, choose_plan
from dml.retrieval.probe import processor_name
from dml.retrieval.query_costs import Costs
from dml.retrieval.recall_table import Recall, RecallTable
from dml.retrieval.search import BuiltIndex
from dml.retrieval.ties import Neighbors, by_similarity, first_of_equals
from dml.retrieval.tombstones import Tombstones
from dml.retrieval.tune import refined
from dml.retrieval.vectors import FlatVectors, Subset, is_flat, nearest

Device = Literal["cpu", "cuda"]

_SIMILARITY_LIMIT = 1.001
_CHECKED_ROWS = 3
_IDS_SHOWN = 3
_FEW_TOMBSTONES = 16
"""A search without a filter finds so many more rows, and as many again as it wants, of which it leaves out
those that are deleted."""
_KEPT_PLANS, _KEPT_FILTERS, _KEPT_LENGTH = 1024, 256, 8192


class BundleIndex(BuiltIndex):
    """An opened index version of one bundle: vectors and items, memory-mapped if Faiss supports it.

    Args:
        ref: the version.
        calibration: recall table and cost model; None: those that were measured when it was built.
        selector: makes Faiss' selector of a bitmap.

    Raises:
        MissingArtifact, CorruptArtifact: its files are not those that were published.
    """

    def __init__(
        self,
        ref: IndexRef,
        *,
        calibration: Calibration | None = None,
        selector: Selector = faiss.IDSelectorBitmap,  # type: ignore[assignment]
    ) -> None:
        self.ref = ref
        bundle = open_bundle(ref)
        self._index, self._vectors, self._items = bundle.index, bundle.vectors, bundle.items
        self._attributes = bundle.attributes
        calibration = calibration or bundle.calibration
        curve = calibration.operating_curve
        self._k_factor = 0 if curve is None else curve.k_factor
        self._unfiltered = refined(self._index, self._vectors.index, self._k_factor)
        lists = InvertedLists.of(self._index, selector=selector)
        costs, table = calibration.costs, None if lists is None else calibration.recall_table
        self._is_flat = is_flat(self._index)
        has_similarities = self._is_flat or isinstance(self._index, faiss.IndexHNSWFlat)
        has_similarities |= lists is not None and lists.keeps_vectors
        self._has_estimates = not has_similarities
        self._filtered_lists = None
        if lists is not None and costs is not None and table is not None:
            self._filtered_lists = FilteredLists(lists, self._vectors, table, costs)
        self._mate_recalls = {stage.stage: stage.mate_recall for stage in calibration.stages}
        self._cascade = None
        if bundle.first_stage is not None and (choice := calibration.first_stage) and choice.chosen:
            first_stage = FirstStage(bundle.first_stage)
            least = None if curve is None else curve.least_similarity
            self._cascade = Cascade(first_stage, self._vectors, choice, self._mate_recalls, least)
        built = Recall(value=ref.recall, basis="built")
        if curve is not None:
            built = Recall(
                value=curve.chosen.recall,
                basis="built",
                num_queries=curve.num_queries,
                least_similarity=curve.least_similarity,
            )
        # Neither remembers this object: a version that is replaced is freed at once.
        planner = _planner(ref, costs, table, built=None if self._is_flat else built)
        self._plan = lru_cache(_KEPT_PLANS)(planner)
        self._checked = lru_cache(_KEPT_FILTERS)(_checker(self._attributes))
        self._subsets: WeakKeyDictionary[Matches, Subset] = WeakKeyDictionary()

    def mate_recall(self, stage: str) -> float | None:
        return self._mate_recalls.get(stage)

    @property
    def vectors(self) -> FlatVectors:
        """The vectors of the rows."""
        return self._vectors

    @property
    def items(self) -> pa.Table:
        return self._items.table

    @property
    def columns(self) -> Columns:
        return self._attributes

    def move_to(self, device: Device) -> None:
        """Search without a filter there from now on; on the CPU where there is no GPU.

        Raises:
            InvalidSetting: Faiss has no such index on a GPU.
        """
        if device == "cuda" and getattr(faiss, "get_num_gpus", int)() > 0:
            try:
                self._resources = faiss.StandardGpuResources()
                on_gpu = faiss.index_cpu_to_gpu(self._resources, 0, self._index)
                self._unfiltered = refined(on_gpu, self._vectors.index, self._k_factor)
                self._cascade = None
            except RuntimeError as error:
                raise InvalidSetting(
                    f"Faiss must have the index on a GPU to search there; {self.ref.factory} it has not: "
                    f"{str(error).rsplit(': ', 1)[-1]}. Search on the CPU, or build it with Flat or IVF."
                ) from error

    def check(self) -> None:
        rows = np.unique(
            np.linspace(0, self.ref.rows - 1, min(self.ref.rows, _CHECKED_ROWS)).astype(np.int64)
        )
        vectors = self._vectors.take(rows)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise self._corrupt("have finite vectors; it has NaN or infinity")
        self.search(vectors / lengths, 1, embedder=self.ref.embeddings.embedder.fingerprint)

    def vectors_of(self, ids: Sequence[str]) -> NDArray[np.float32]:
        found = self.find_rows(ids)
        if None in found:
            absent = ids[found.index(None)]
            few = self.items["id"].slice(0, _IDS_SHOWN).to_pylist()
            raise MissingArtifact(
                f"An item to search with must be in index {self.ref}; {absent!r} is not. Its {self.ref.rows} "
                f"ids begin {', '.join(map(repr, few))}."
            )
        vectors = self._vectors.take(np.array(found, dtype=np.int64))
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def _count(self, filter: Filter | None, tombstones: Tombstones | None) -> int:
        matches = self._matching(filter, tombstones)
        return self.ref.rows if matches is None else matches.count

    def rows_of(self, filter: Filter) -> NDArray[np.int64]:
        return self._attributes.matches(filter).rows()

    def find_rows(self, ids: Sequence[str]) -> list[int | None]:
        return [self._attributes.row_with("id", id_) for id_ in ids]

    def items_at(self, rows: NDArray[np.int64]) -> list[dict[str, Any]]:
        with storage.reading(f"{self.ref.uri}/{ITEMS_FILE}", REMEDY):
            return self._items.take(rows)

    def _matching(self, filter: Filter | None, tombstones: Tombstones | None) -> Matches | None:
        """The live rows that match; None: every row does."""
        if not tombstones:
            return None if filter is None else self._attributes.matches(filter)
        return tombstones.live if filter is None else tombstones.without(self._attributes.matches(filter))

    def _corrupt(self, must: str) -> CorruptArtifact:
        return CorruptArtifact(f"Index {self.ref.uri} must {must}. {REMEDY}")

    def search_rows(
        self, vectors: NDArray[np.float32], k: int, *, embedder: str, where: Where = None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], Plan]:
        """Find the k most similar items for each query, as row numbers; as `search`, without their columns.

        Returns:
            (Q, min(k, matches)) similarities, descending, and rows; and the plan.
        """
        k = self._checked_queries(vectors, k, embedder)
        (similarities, rows), plan = self._neighbors(vectors, k, self._filter(where, True), None)
        return similarities, rows, plan

    def _exact_similarities(
        self, query: NDArray[np.float32], k: int, filter: Filter | None, tombstones: Tombstones | None
    ) -> NDArray[np.float32]:
        matches = self._matching(filter, tombstones)
        num_matching = self.ref.rows if matches is None else matches.count
        if not num_matching:
            return np.empty(0, np.float32)
        exact: NDArray[np.float32] = self._compared(query[None], min(k, num_matching), matches)[0][0]
        return exact

    def _nearest(
        self,
        vectors: NDArray[np.float32],
        k: int,
        filter: Filter | None,
        tombstones: Tombstones | None,
        *,
        more: int,
    ) -> tuple[list[list[Answer]], Plan]:
        (similarities, rows), plan = self._neighbors(vectors, k + more, filter, tombstones)
        return self._answers(similarities, rows), plan

    def _neighbors(
        self, vectors: NDArray[np.float32], k: int, filter: Filter | None, tombstones: Tombstones | None
    ) -> tuple[Neighbors, Plan]:
        """Similarities, descending, and rows, ties by row."""
        if filter is None and not tombstones:
            return self._find(np.ascontiguousarray(vectors, np.float32), min(k, self._vectors.rows), None)
        matches = self._matching(filter, tombstones)
        num_matching = self.ref.rows if matches is None else matches.count
        queries, k = np.ascontiguousarray(vectors, dtype=np.float32), min(k, num_matching)
        if not tombstones:
            return self._find(queries, k, matches)
        found, plan = (
            self._find_live(queries, k, tombstones) if filter is None else self._find(queries, k, matches)
        )
        if tombstones.among(found[1].ravel()).any():
            raise self._corrupt("answer with live rows; it answers with deleted ones")
        return found, plan

    def _find_live(
        self, vectors: NDArray[np.float32], k: int, tombstones: Tombstones
    ) -> tuple[Neighbors, Plan]:
        """As `_find` without a filter, of the live rows: a few more are found, and the deleted ones left out.

        Graphs and small codes take no selector, and a filter that all but a few rows satisfy is dear. Where
        too few are left, the search is one with a filter.
        """
        more = min(len(tombstones), k + _FEW_TOMBSTONES)
        if not k or k + more > self.ref.rows:
            return self._find(vectors, k, tombstones.live)
        (similarities, rows), plan = self._find(vectors, k + more, None)
        is_live = ~tombstones.among(rows.ravel()).reshape(rows.shape)
        first = np.argsort(~is_live, axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(similarities, first, axis=1), np.take_along_axis(rows, first, axis=1)
        others = np.flatnonzero(is_live.sum(axis=1) < k)
        if len(others):
            found[0][others], found[1][others] = self._find(vectors[others], k, tombstones.live)[0]
        count = self.ref.rows - len(tombstones)
        return found, plan.model_copy(update={"k": k, "count": count})

    def _filter(self, where: Where, refuse_absent: bool) -> Filter | None:
        if where is None:
            return None
        if isinstance(where, str) and len(where) <= _KEPT_LENGTH:
            return self._checked(where, refuse_absent)
        return check(where, self._attributes, refuse_absent=refuse_absent)

    def _find(self, vectors: NDArray[np.float32], k: int, matches: Matches | None) -> tuple[Neighbors, Plan]:
        """(Q, k) similarities, descending, and rows, with k at most the number of matches; and the plan."""
        if matches is None:
            plan = self._plan(None, max(k, 1), False)
        else:
            is_range = matches.count < self.ref.rows and self._subset(matches).is_range
            plan = self._plan(matches.count, max(k, 1), is_range)
        if plan.kind == "nothing":
            return (np.empty((len(vectors), 0), np.float32), np.empty((len(vectors), 0), np.int64)), plan
        are_estimates = self._has_estimates
        if plan.kind == "index" and self._cascade is not None and self._cascade.suits(k):
            found, plan = self._cascade.search(vectors, k, plan)
            are_estimates = False
            answered = (found[1] >= 0).all(axis=1)
            why = "too few candidates"
        elif plan.kind == "index" or plan.count == plan.rows:
            if self._is_flat:
                found = first_of_equals(self._unfiltered.search, vectors, k, self.ref.rows)
            elif self._k_factor and k * self._k_factor > self._vectors.rows:
                # NSG looks for more candidates than rows for ever. This is exact, so no query is unlike.
                return self._in_order(*self._compared(vectors, k, None)), plan
            else:
                found = nearest(self._unfiltered, vectors, k)
            are_estimates &= not self._k_factor  # else compared in full
            if not are_estimates and self._are_in_order(*found):
                # As a rule; what follows takes a third of the time of a search in a graph.
                return found, plan.noting_unlike(found[0])
            # NSG finds some rows twice.
            answered = (found[1] >= 0).all(axis=1) & np.diff(np.sort(found[1], axis=1), axis=1).all(axis=1)
            why = "too few in their lists"
        elif plan.kind == "index_filtered":
            assert matches is not None
            assert self._filtered_lists is not None
            found, answered = self._filtered_lists.search(vectors, k, matches, plan)
            why = "too few matches near them"
        else:
            assert matches is not None
            return self._in_order(*self._compared(vectors, k, matches)), plan
        others = np.flatnonzero(~answered)
        is_exact = np.zeros((len(vectors), 1), np.bool_)
        is_exact[others] = True
        if len(others):
            few = self._compared(vectors[others], k, matches)
            found[0][others], found[1][others] = few
            plan = plan.noting(f"{len(others)} of {len(vectors)} queries compared with all, {why}")
        if are_estimates:
            found = self._rescored(vectors, found[1]), found[1]
        found = self._in_order(*found)
        # Those that were compared with all are exact, however unlike they are.
        return found, plan.noting_unlike(np.where(is_exact, np.inf, found[0]))

    def _compared(self, vectors: NDArray[np.float32], k: int, matches: Matches | None) -> Neighbors:
        """Exact: compare with every match."""
        subset = self._subset(matches)
        return first_of_equals(subset.search, vectors, k, len(subset.rows))

    def _subset(self, matches: Matches | None) -> Subset:
        """The vectors of the matches, as Faiss compares them; made once."""
        if matches is None:
            return self._vectors.subset(np.arange(self.ref.rows))
        subset = self._subsets.get(matches)
        if subset is None:
            self._subsets[matches] = subset = self._vectors.subset(matches.rows())
        return subset

    def _rescored(self, vectors: NDArray[np.float32], rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """The similarities of the flat vectors, where the index has only estimates of them."""
        found = self._vectors.take(rows.ravel()).reshape(*rows.shape, self._vectors.dim)
        exact: NDArray[np.float32] = np.einsum("qd,qkd->qk", vectors, found)
        return exact

    def _are_in_order(self, similarities: NDArray[np.float32], rows: NDArray[np.int64]) -> bool:
        """Whether the answers are cosines of rows that there are, each less similar than the one before."""
        if len(rows) == 1:  # as lists: 2 us instead of the 10 of arrays
            cosines, numbers = similarities.ravel().tolist(), rows.ravel().tolist()
            return (
                all(map(gt, cosines, cosines[1:]))
                and cosines[-1] >= -_SIMILARITY_LIMIT
                and cosines[0] <= _SIMILARITY_LIMIT
                and min(numbers) >= 0
                and max(numbers) < self._vectors.rows
            )
        descend = similarities[:, :-1] > similarities[:, 1:]
        possible = (np.abs(similarities) <= _SIMILARITY_LIMIT) & (rows >= 0) & (rows < self.ref.rows)
        return bool(descend.all() and possible.all())

    def _in_order(self, similarities: NDArray[np.float32], rows: NDArray[np.int64]) -> Neighbors:
        """The answers by similarity, ties by row.

        Raises:
            CorruptArtifact: they are no cosines, or of rows that there are not.
        """
        if self._are_in_order(similarities, rows):
            return similarities, rows
        if not (np.abs(similarities) <= _SIMILARITY_LIMIT).all():
            wrong = similarities[~(np.abs(similarities) <= _SIMILARITY_LIMIT)]
            raise self._corrupt(f"answer with similarities in [-1, 1]; it answers with {wrong.flat[0]:.6g}")
        if not ((rows >= 0) & (rows < self.ref.rows)).all():
            raise self._corrupt(f"answer with rows below {self.ref.rows}; it answers with others")
        return by_similarity(similarities, rows)

    def _answers(self, similarities: NDArray[np.float32], rows: NDArray[np.int64]) -> list[list[Answer]]:
        """The items of each query."""
        items = iter(self.items_at(rows.ravel()))
        return [[answer_of(float(value), next(items)) for value in values] for values in similarities]


def _planner(
    ref: IndexRef, costs: Costs | None, table: RecallTable | None, *, built: Recall | None
) -> Callable[[int | None, int, bool], Plan]:
    """The plan for a count of matches, None without a filter, k, and whether the matches are a long range.

    Args:
        ref: the index.
        costs: cost model.
        table: lists to scan under a filter.
        built: recall without a filter; None: it is exact.
    """
    timed_elsewhere = None if costs is None or costs.processor == processor_name() else costs.processor

    def plan(count: int | None, k: int, is_range: bool) -> Plan:
        return choose_plan(
            ref.rows if count is None else count,
            ref.rows,
            k,
            costs,
            table,
            factory=ref.factory,
            filtered=count is not None,
            is_range=is_range,
            built=built,
            timed_elsewhere=timed_elsewhere,
        )

    return plan


def _checker(columns: Columns) -> Callable[[str, bool], Filter | None]:
    def checked(where: str, refuse_absent: bool) -> Filter | None:
        return check(where, columns, refuse_absent=refuse_absent)

    return checked
