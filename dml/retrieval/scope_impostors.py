"""The impostors of an index, measured: its items, searched among those of other identities, scope by scope.

Items of training classes are enrolled, and are no probes where there are others: the embedding has learnt to
tell those apart, and not the people who come later.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from dml.errors import IncompatibleArtifact, InvalidData, InvalidSetting
from dml.progress import count
from dml.refs import AnyEmbedder, IndexRef, PackageRef
from dml.retrieval.bundle import open_bundle
from dml.retrieval.filters import Compare, check, matching_rows
from dml.retrieval.filters.columns import ItemColumns
from dml.retrieval.impostors import (
    MAX_PAIRS_KEPT,
    ImpostorPool,
    ImpostorScores,
    ProbeMaxima,
    impostor_scores,
    sample_probes,
)
from dml.retrieval.tails import ImpostorTail, fit_tail, held_out_tails, identity_folds
from dml.retrieval.thresholds import WHOLE_GALLERY, column_of

_MAX_SCOPES = 10_000
_GALLERY_PROBES, _SCOPE_PROBES = 5_000, 2_000
_WANTED_BEYOND = 30
"""Pairs that are expected beyond a threshold, where there are enough items: of P probes P * FPIR."""
_MAX_PAIRS_OF_SCOPE, _MAX_PAIRS_POOLED = 500_000, 4_000_000
_MAX_ROWS_FOR_PAIRS = 20_000
_SHORT_TAIL = {"num_largest": 50, "num_quantiles": 24}
"""10,000 scopes of usual tails are 67 MB of thresholds, which a service reads at its start."""


class IndexedRows:
    """The items and vectors of an index version, opened; of all its shards in one.

    Args:
        ref: the version.

    Raises:
        MissingArtifact, CorruptArtifact, IncompatibleArtifact: as `open_bundle`.
    """

    def __init__(self, ref: IndexRef) -> None:
        parts = [ref.shard(number) for number in range(len(ref.shards))] or [ref]
        bundles = [open_bundle(part) for part in parts]
        self.ref = ref
        self.items = pa.concat_tables([bundle.items.table for bundle in bundles])
        """A row for each vector."""
        self._vectors = [bundle.vectors for bundle in bundles]
        self._stops = np.cumsum([vectors.rows for vectors in self._vectors])

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """(n, D) vectors of the rows."""
        if len(self._vectors) == 1:
            return self._vectors[0].take(rows)
        shards = np.searchsorted(self._stops, rows, side="right")
        taken = np.empty((len(rows), self.ref.embeddings.dim), dtype=np.float32)
        for shard in np.unique(shards):
            positions = np.flatnonzero(shards == shard)
            first = self._stops[shard] - self._vectors[shard].rows
            taken[positions] = self._vectors[shard].take(rows[positions] - first)
        return taken


@dataclass(frozen=True)
class Selection:
    """The items of a scope."""

    scope: str
    column: str | None
    """Where the scope is `column = value`."""
    rows: NDArray[np.int64]


def select_scopes(
    items: pa.Table, scopes: Sequence[str], by: Sequence[str], refuse_absent: bool
) -> Iterator[Selection]:
    """The items of each filter, and of each value of each column that no filter has named.

    Raises:
        InvalidSetting: a filter or column that the items do not have, or a column of too many values.
    """
    columns = ItemColumns(items)
    named = set()
    for where in scopes:
        filter = check(where, columns, refuse_absent=refuse_absent)
        if filter is None:
            raise InvalidSetting(
                "--scope must be a filter; the whole gallery is always calibrated. Leave it out."
            )
        named.add(str(filter))
        rows = np.flatnonzero(matching_rows(items, filter, refuse_absent=False))
        yield Selection(str(filter), column_of(filter), rows)
    for name in by:
        values, codes = _values(items, name)
        if len(values) > _MAX_SCOPES:
            raise InvalidSetting(
                f"--by must name a column with at most {_MAX_SCOPES} values; {name} has {len(values)}. Name "
                "another, or the scopes themselves by --scope."
            )
        by_value = np.argsort(codes, kind="stable")
        stops = np.cumsum(np.bincount(codes + 1, minlength=len(values) + 1))  # the missing ones come first
        for value, start, stop in zip(values, stops[:-1], stops[1:], strict=True):
            text = str(check(Compare(column=name, operator="=", value=value), columns))
            if text not in named:
                yield Selection(text, name, np.sort(by_value[start:stop]))


def _values(items: pa.Table, name: str) -> tuple[list[Any], NDArray[np.int64]]:
    """The values of a column, and (N,) which of them each item has; -1 where it is missing."""
    if name not in items.column_names:
        raise InvalidSetting(f"--by must name a column of the items, {items.column_names}; got {name!r}.")
    encoded = items[name].combine_chunks().dictionary_encode()
    codes = compute.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    values = encoded.dictionary.to_pylist()
    is_value = np.array([value not in (None, "") and value == value for value in values], dtype=np.bool_)
    numbers = np.append(np.where(is_value, np.cumsum(is_value) - 1, -1), -1)  # the last is that of -1
    return [value for value, is_one in zip(values, is_value, strict=True) if is_one], numbers[codes]


def not_trained_on(items: pa.Table, embedder: AnyEmbedder) -> NDArray[np.bool_]:
    """(N,) the items whose classes the embedder was not trained on.

    All of a network that was trained elsewhere, where there is no split, and where all were trained on.
    """
    is_from_elsewhere = isinstance(embedder, PackageRef) and embedder.dataset is None
    if is_from_elsewhere or "split" not in items.column_names:
        return np.ones(len(items), dtype=np.bool_)
    trained = compute.fill_null(compute.equal(items["split"], "train"), False)
    others: NDArray[np.bool_] = ~trained.to_numpy()
    return others if others.any() else ~others


@dataclass(frozen=True)
class ScopeImpostors:
    """The impostors inside a scope."""

    scope: str
    column: str | None
    identities: int
    """Enrolled; an item without a label is one by itself, since nobody knows whose it is."""
    searched: int
    """Those with a label: the probes are searched among them."""
    probes: ProbeMaxima | None = None
    """None: fewer than two identities, or no probe."""
    tail: ImpostorTail | None = None
    """None: too few pairs."""
    fold_thresholds: Sequence[float] = ()
    """For each fold of identities the threshold among those searched, by the tail without the fold; none
    where a fold has too few pairs."""


class ImpostorSearch:
    """Searches an index's items among those of other identities, one scope after another.

    Memory is that of one scope's pairs, and of the most similar pairs of each column's scopes.

    Args:
        indexed: the open index.
        share: of the FPIR, for each scope.

    Raises:
        IncompatibleArtifact: the items have no labels.
    """

    def __init__(self, indexed: IndexedRows, share: float) -> None:
        items = indexed.items
        if "label" not in items.column_names or items["label"].null_count == len(items):
            raise IncompatibleArtifact(
                f"Thresholds need labels, which say whose image an item is; the items of "
                f"{indexed.ref} have none. Import the vectors with labels, or give a threshold of your own."
            )
        self.index, self.share, self._take = indexed.ref, share, indexed.take
        names, self._identities = _values(items, "label")
        self._has_label = self._identities >= 0
        self._may_probe = not_trained_on(items, indexed.ref.embeddings.embedder)
        self.folds = identity_folds(len(names))
        self._pools: defaultdict[str, ImpostorPool] = defaultdict(
            lambda: ImpostorPool(self.folds, max_kept=_MAX_PAIRS_POOLED)
        )

    @property
    def num_gallery_probes(self) -> int:
        """Items that are searched in the whole gallery."""
        return min(self._enough(_GALLERY_PROBES), int((self._has_label & self._may_probe).sum()))

    def _enough(self, usual: int) -> int:
        return max(usual, math.ceil(_WANTED_BEYOND / self.share))

    def in_gallery(self) -> ScopeImpostors:
        """The impostors in the whole gallery."""
        selection = Selection(WHOLE_GALLERY, None, np.arange(len(self._has_label)))
        measured = self._measured(selection, self._enough(_GALLERY_PROBES), MAX_PAIRS_KEPT)
        count(0 if measured.probes is None else len(measured.probes.maxima))
        return measured

    def in_scope(self, selection: Selection, *, is_one_of_many: bool = False) -> ScopeImpostors:
        """The impostors inside a scope. Its pairs are pooled with those of its column's other scopes.

        Args:
            selection: the scope.
            is_one_of_many: keep a short tail.
        """
        measured = self._measured(
            selection,
            self._enough(_SCOPE_PROBES),
            _MAX_PAIRS_OF_SCOPE,
            **(_SHORT_TAIL if is_one_of_many else {}),
        )
        count()
        return measured

    def pool(self, column: str) -> ImpostorPool:
        """The impostors inside the scopes `column = value` that were measured."""
        return self._pools[column]

    def _measured(
        self, selection: Selection, max_probes: int, max_kept: int, **kept_of_tail: int
    ) -> ScopeImpostors:
        rows = selection.rows[self._has_label[selection.rows]]
        searched = len(np.unique(self._identities[rows]))
        identities = searched + len(selection.rows) - len(rows)
        measured = ScopeImpostors(selection.scope, selection.column, identities, searched)
        probes = rows[self._may_probe[rows]]
        if searched < 2 or not len(probes):
            return measured
        probes = probes[sample_probes(self._identities[probes], max_probes)]
        scores = self._scores(probes, rows, max_kept=max_kept)
        measured = replace(measured, probes=scores.probe_maxima())
        if selection.column is not None:
            self._pools[selection.column].add(scores)
        pool = ImpostorPool(self.folds, max_kept=max_kept)
        pool.add(scores)
        try:
            tail = fit_tail(pool.pairs(), **kept_of_tail)
            limits = [each.threshold(searched, self.share) for each in held_out_tails(pool)]
        except InvalidData:
            return measured
        return replace(measured, tail=tail, fold_thresholds=limits)

    def pair_tails(self) -> Mapping[str, ImpostorTail | None]:
        """The tails of one probe against one image, and against one identity."""
        rows = np.flatnonzero(self._has_label)
        gallery = rows[sample_probes(self._identities[rows], _MAX_ROWS_FOR_PAIRS)]
        probes = gallery[self._may_probe[gallery]]
        probes = probes[sample_probes(self._identities[probes], _SCOPE_PROBES)]
        tails: dict[str, ImpostorTail | None] = {}
        for name, by_image in (("image_to_image", True), ("image_to_identity", False)):
            try:
                tails[name] = fit_tail(self._scores(probes, gallery, by_image=by_image).pairs())
            except InvalidData:
                tails[name] = None
        return tails

    def _vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        vectors = self._take(rows)
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def _scores(
        self, probes: NDArray[np.int64], gallery: NDArray[np.int64], **options: Any
    ) -> ImpostorScores:
        """Compare some rows with the other identities of some rows."""
        return impostor_scores(
            self._vectors(probes),
            self._identities[probes],
            self._vectors,
            self._identities,
            rows=gallery,
            **options,
        )
