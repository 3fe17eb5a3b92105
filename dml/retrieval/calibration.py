"""Calibration of an index: its items are probes of each other, and set and check the thresholds of scopes.

Every item of the index is a non-mated probe once its identity is left out of the gallery, so no other data is
needed; an identity is a label. Items of training classes are enrolled, and are no probes where there are
others: the embedding has learnt to tell those apart, and not the people who come later.

A scope is a part of the gallery, and as a rule a more similar one: it has a tail of its own, of probes from
inside it. A scope with too few identities for that uses the pooled tail of its column: that of the scopes of
all values. Its threshold is then not below the scope's own estimate, and not below that of the whole gallery
unless the held-out probes of all these scopes together show that they need not be.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute

from dml import storage
from dml.errors import DmlError, IncompatibleArtifact, InvalidData, InvalidSetting
from dml.progress import Ticker, count
from dml.refs import IndexRef, ThresholdsRef
from dml.reports import CalibratedScope, CalibrationReport, CheckedFpir
from dml.retrieval.arguments import checked_error_rate
from dml.retrieval.bundle import Bundle, open_bundle
from dml.retrieval.filters import Compare, check, matching_rows
from dml.retrieval.filters.columns import ItemColumns
from dml.retrieval.impostors import ImpostorScores, impostor_scores, sample_probes
from dml.retrieval.index import published_index
from dml.retrieval.tails import ImpostorTail, fit_tail, held_out_fpir, held_out_tails, identity_folds
from dml.retrieval.thresholds import (
    WHOLE_GALLERY,
    PooledTail,
    ScopeTail,
    Thresholds,
    column_of,
    find_thresholds_ref,
    save_thresholds,
    threshold_for,
    thresholds_uri,
)

logger = logging.getLogger(__name__)


_MAX_SCOPES = 10_000
_MAX_SCOPE_PROBES = 2_000
_MIN_PAIRS_PER_SCOPE, _MAX_PAIRS_OF_SCOPES = 20_000, 4_000_000
_MAX_ROWS_FOR_PAIRS = 20_000
_MANY_SCOPES, _LARGEST_OF_MANY = 100, 50
"""Of so many scopes, each tail keeps only its 50 most similar pairs of identities."""
_MAX_FPIR_RATIO = 2.0
"""A pooled threshold may be below the whole gallery's if the interval of its checked FPIR ends below so many
times the target."""


def calibrate(
    store: str,
    index: IndexRef,
    *,
    fpir: float = 0.01,
    scopes: Sequence[str] = (),
    by: Sequence[str] = (),
    max_probes: int = 5_000,
    refuse_absent: bool = True,
) -> CalibrationReport:
    """Measure the impostors of an index, set the thresholds, and check them on held-out identities.

    The thresholds replace those that the index version had, unless nothing at all can be promised.

    Args:
        store: the store's URI.
        index: the version.
        fpir: false-positive identification rate of one identification, over all scopes that it tries.
        scopes: filters, each a scope.
        by: columns, each of whose values is a scope.
        max_probes: items of the index that are searched in it.
        refuse_absent: refuse a filter with a value that no item has, as searches do.

    Returns:
        For each scope its threshold, the pairs beyond it, and the FPIR of the check; or why none is promised.

    Raises:
        InvalidSetting: a rate outside (0, 0.5], a filter or column that the items do not have; or nothing can
            be promised, and the index version has thresholds, which it keeps.
        IncompatibleArtifact: the items have no labels, or fewer than 20 pairs of identities.
    """
    fpir = checked_error_rate("fpir", fpir, usual=0.01)
    bundle = open_bundle(index)
    num_tries = 1 + len(by) + len(scopes)
    calibrator = _Calibrator(bundle, fpir / num_tries)
    with Ticker("calibrate") as ticker:
        selections = list(_select_scopes(bundle.items.table, scopes, by, refuse_absent))
        ticker.begin("the whole gallery", "probes", min(max_probes, index.rows))
        gallery = calibrator.measure_gallery(max_probes)
        ticker.begin("scopes", "scopes", len(selections))
        max_kept = max(_MAX_PAIRS_OF_SCOPES // max(len(selections), 1), _MIN_PAIRS_PER_SCOPE)
        measured = [calibrator.measure(selected, _MAX_SCOPE_PROBES, max_kept) for selected in selections]
        thresholds, report = calibrator.calibrate(gallery, measured, fpir, num_tries)
    former = find_thresholds_ref(store, index)
    if former is not None and all(scope.refused for scope in report):
        raise InvalidSetting(
            f"{report[0].refused} The thresholds of {index} for an FPIR of {former.fpir:g} stay."
        )
    fingerprint = storage.digest_of(index.fingerprint, thresholds.model_dump(mode="json"))
    ref = ThresholdsRef(
        uri=thresholds_uri(store, index),
        fingerprint=fingerprint,
        index=index,
        fpir=fpir,
        scopes=list(scopes),
        by=list(by),
    )
    save_thresholds(ref, thresholds)
    return CalibrationReport(thresholds=ref, scopes=report)


def calibrate_alike(store: str, index: IndexRef) -> CalibrationReport | None:
    """Calibrate a new version as the version in use was, so that a refreshed index goes on identifying.

    A filter whose values no item has any more is an empty scope.

    Returns:
        None: there is no version in use, it was not calibrated or cannot be read, or it is this one.
    """
    try:
        former = published_index(store, index.name)
        asked = None if former is None else find_thresholds_ref(store, former)
    except DmlError as error:
        logger.warning("%s is not calibrated, since the version in use cannot be read: %s", index, error)
        return None
    if former is None or asked is None or former.version == index.version:
        return None
    report = calibrate(store, index, fpir=asked.fpir, scopes=asked.scopes, by=asked.by, refuse_absent=False)
    if not report.num_promised:
        logger.warning("%s has no thresholds any more: %s", index, report.scopes[0].refused)
    return report


@dataclass(frozen=True)
class _Selection:
    """The items of a scope."""

    scope: str
    column: str | None
    """Where the scope is `column = value`."""
    rows: NDArray[np.int64]


def _select_scopes(
    items: pa.Table, scopes: Sequence[str], by: Sequence[str], refuse_absent: bool
) -> Iterator[_Selection]:
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
        yield _Selection(str(filter), column_of(filter), rows)
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
                yield _Selection(text, name, np.sort(by_value[start:stop]))


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


def _not_trained_on(items: pa.Table) -> NDArray[np.bool_]:
    """(N,) the items whose classes were not trained on; all where there is no other, or no split."""
    if "split" not in items.column_names:
        return np.ones(len(items), dtype=np.bool_)
    trained = compute.fill_null(compute.equal(items["split"], "train"), False)
    others: NDArray[np.bool_] = ~trained.to_numpy()
    return others if others.any() else ~others


@dataclass(frozen=True)
class _Measured:
    """The impostors inside a scope: its items, searched among each other."""

    scope: str
    column: str | None
    scores: ImpostorScores | None
    """None: fewer than two identities, or no probe."""
    identities: int
    tail: ImpostorTail | None = None
    """None: too few pairs."""
    fold_tails: Sequence[ImpostorTail] = ()
    """For each fold of identities the tail without them; none where a fold has too few pairs."""

    def fold_thresholds(self, share: float) -> list[float]:
        """The threshold of each fold for a share of the FPIR, by this scope's tails."""
        return [tail.threshold(self.identities, share) for tail in self.fold_tails]


@dataclass(frozen=True)
class _Pooled:
    """The impostors inside the scopes of all values of a column."""

    tail: PooledTail
    fold_tails: Sequence[ImpostorTail]


def _refusal(scope: str, share: float, checked: CheckedFpir) -> str:
    """Why nothing is promised for a scope; empty where its check agrees with the target."""
    if checked.low <= share:
        return ""
    what = f"Scope {scope!r}" if scope else "The whole gallery"
    return (
        f"{what} must keep an FPIR of {share:.3g}; held-out probes give {checked.fpir:.3g} "
        f"[{checked.low:.3g}, {checked.high:.3g}]. Enrol more of its identities and calibrate again, or leave"
        " it out."
    )


class _Calibrator:
    """Measures the impostors among an index's items, and sets and checks thresholds.

    Args:
        bundle: the open index.
        share: of the FPIR, for each scope.
    """

    def __init__(self, bundle: Bundle, share: float) -> None:
        items = bundle.items.table
        if "label" not in items.column_names or items["label"].null_count == len(items):
            raise IncompatibleArtifact(
                f"Thresholds need labels, which say whose image an item is; the items of "
                f"{bundle.ref} have none. Import the vectors with labels, or give a threshold of your own."
            )
        self._index, self._take, self._share = bundle.ref, bundle.vectors.take, share
        names, self._identities = _values(items, "label")
        self._has_label = self._identities >= 0
        self._may_probe = _not_trained_on(items)
        self._folds = identity_folds(len(names))

    def measure_gallery(self, max_probes: int) -> _Measured:
        """The impostors in the whole gallery."""
        selection = _Selection(WHOLE_GALLERY, None, np.flatnonzero(self._has_label))
        return self.measure(selection, max_probes, _MAX_PAIRS_OF_SCOPES // 2)

    def measure(self, selection: _Selection, max_probes: int, max_kept: int) -> _Measured:
        """The impostors inside a scope, from about `max_kept` pairs."""
        scope, column, rows = selection.scope, selection.column, selection.rows
        rows = rows[self._has_label[rows]]
        num_identities = len(np.unique(self._identities[rows]))
        probes = rows[self._may_probe[rows]]
        if num_identities < 2 or not len(probes):
            count()
            return _Measured(scope, column, None, num_identities)
        probes = probes[sample_probes(self._identities[probes], max_probes)]
        scores = self._scores(probes, rows, max_kept=max_kept)
        count(len(probes) if scope == WHOLE_GALLERY else 1)
        try:
            fold_tails = held_out_tails([scores], self._folds)
            return _Measured(scope, column, scores, num_identities, fit_tail([scores]), fold_tails)
        except InvalidData:
            return _Measured(scope, column, scores, num_identities)

    def calibrate(
        self, gallery: _Measured, scopes: Sequence[_Measured], fpir: float, num_tries: int
    ) -> tuple[Thresholds, list[CalibratedScope]]:
        """The thresholds of the gallery and of its scopes, and how held-out probes met them."""
        if gallery.scores is None or gallery.tail is None or not gallery.fold_tails:
            raise IncompatibleArtifact(
                f"Thresholds need impostors: 20 pairs of items of different labels that are not all copies; "
                f"{self._index} has {gallery.identities} label(s). Enrol more identities."
            )
        columns = {scope.column for scope in scopes if scope.column is not None}
        pooled = {column: self._pool(column, scopes) for column in columns}
        tails = [self._scope_tail(measured, len(scopes)) for measured in (gallery, *scopes)]
        thresholds = Thresholds(
            fpir=fpir,
            num_tries=num_tries,
            scopes=tails,
            pooled={column: pool.tail for column, pool in pooled.items() if pool is not None},
            **self._pair_tails(),
        )
        report = [
            self._check(
                measured,
                thresholds,
                gallery,
                None if measured.column is None else pooled[measured.column],
            )
            for measured in (gallery, *scopes)
        ]
        checked_tails = [
            tail.model_copy(update={"refused": row.refused}) for tail, row in zip(tails, report, strict=True)
        ]
        # `model_copy` would keep the scopes that were looked up.
        return Thresholds(**{**dict(thresholds), "scopes": checked_tails}), report

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

    def _pool(self, column: str, scopes: Sequence[_Measured]) -> _Pooled | None:
        """The pooled tail of a column's scopes; None for one scope, or too few pairs."""
        members = [scope for scope in scopes if scope.column == column]
        scores = [scope.scores for scope in members if scope.scores is not None]
        if len(scores) < 2:
            return None
        try:
            tail, fold_tails = fit_tail(scores), held_out_tails(scores, self._folds)
        except InvalidData:
            return None
        searches = [
            (scope.scores, self._pooled_fold_thresholds(scope, fold_tails))
            for scope in members
            if scope.scores is not None
        ]
        checked = held_out_fpir(searches, self._folds)
        meets_target = checked.low <= self._share and checked.high <= _MAX_FPIR_RATIO * self._share
        return _Pooled(PooledTail(tail=tail, meets_target=meets_target), fold_tails)

    def _pooled_fold_thresholds(self, scope: _Measured, pooled_tails: Sequence[ImpostorTail]) -> list[float]:
        """Each fold's threshold of a scope by the pooled tail, not below the scope's own estimate."""
        pooled = [tail.threshold(scope.identities, self._share) for tail in pooled_tails]
        return _maxima(pooled, scope.fold_thresholds(self._share) or pooled)

    def _scope_tail(self, measured: _Measured, num_scopes: int) -> ScopeTail:
        tail, meets_target = measured.tail, False
        if tail is not None and num_scopes > _MANY_SCOPES:
            tail = tail.model_copy(update={"largest": tail.largest[:_LARGEST_OF_MANY]})
        if measured.fold_tails and measured.scores is not None:
            limits = measured.fold_thresholds(self._share)
            meets_target = held_out_fpir([(measured.scores, limits)], self._folds).low <= self._share
        return ScopeTail(
            scope=measured.scope,
            column=measured.column,
            identities=measured.identities,
            tail=tail,
            meets_target=meets_target,
        )

    def _check(
        self, measured: _Measured, thresholds: Thresholds, gallery: _Measured, pooled: _Pooled | None
    ) -> CalibratedScope:
        """A scope's threshold, and the FPIR of held-out probes by it."""
        size, share = measured.identities, self._share
        row = CalibratedScope(scope=measured.scope, identities=size, share=share)
        try:
            threshold = threshold_for(thresholds, measured.scope, measured.column, size, share)
        except InvalidSetting as error:
            return row.model_copy(update={"refused": str(error)})
        checked, refused = None, ""
        if measured.scores is not None:
            limits = measured.fold_thresholds(share)
            if pooled is not None and threshold.basis == "pooled":
                limits = self._pooled_fold_thresholds(measured, pooled.fold_tails)
                if not pooled.tail.meets_target:
                    limits = _maxima(limits, gallery.fold_thresholds(share))
            checked = held_out_fpir([(measured.scores, limits)], self._folds)
            refused = _refusal(measured.scope, share, checked)
        return row.model_copy(
            update={
                "threshold": threshold.similarity,
                "basis": threshold.basis,
                "beyond": threshold.beyond,
                "checked": checked,
                "refused": refused,
            }
        )

    def _pair_tails(self) -> Mapping[str, ImpostorTail | None]:
        """The tails of one probe against one image, and against one identity."""
        rows = np.flatnonzero(self._has_label)
        gallery = rows[sample_probes(self._identities[rows], _MAX_ROWS_FOR_PAIRS)]
        probes = gallery[self._may_probe[gallery]]
        probes = probes[sample_probes(self._identities[probes], _MAX_SCOPE_PROBES)]
        tails: dict[str, ImpostorTail | None] = {}
        for name, by_image in (("image_to_image", True), ("image_to_identity", False)):
            try:
                tails[name] = fit_tail([self._scores(probes, gallery, by_image=by_image)])
            except InvalidData:
                tails[name] = None
        return tails


def _maxima(thresholds: Sequence[float], others: Sequence[float]) -> list[float]:
    """The higher of both thresholds of each fold."""
    return [max(both) for both in zip(thresholds, others, strict=True)]
