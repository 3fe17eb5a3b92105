"""Calibration of an index: its items are probes of each other, and set and check the thresholds of scopes.

Every item of the index is a non-mated probe once its identity is left out of the gallery, so no other data is
needed; an identity is a label. Items of training classes are enrolled, and are no probes where there are
others: the embedding has learnt to tell those apart, and not the people who come later. A network from
elsewhere was trained on none of them.

A scope is a part of the gallery, and as a rule a more similar one: it has a tail of its own, of probes from
inside it. A scope with too few identities for that uses the pooled tail of its column: that of the scopes of
all values. Its threshold is then not below the scope's own estimate, and not below that of the whole gallery
unless the held-out probes of all these scopes together show that they need not be.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from dml import storage
from dml.errors import DmlError, IncompatibleArtifact, InvalidData, InvalidSetting, StorageUnavailable
from dml.progress import Ticker
from dml.refs import IndexRef, ThresholdsRef
from dml.reports import CalibratedScope, CalibrationReport, CheckedFpir
from dml.retrieval.arguments import checked_error_rate
from dml.retrieval.index import published_index
from dml.retrieval.scope_impostors import ImpostorSearch, IndexedRows, ScopeImpostors, select_scopes
from dml.retrieval.tails import ImpostorTail, fit_tail, held_out_fpir, held_out_tails
from dml.retrieval.thresholds import (
    PooledTail,
    ScopeTail,
    Thresholds,
    find_thresholds,
    find_thresholds_ref,
    save_thresholds,
    threshold_for,
    thresholds_uri,
)

logger = logging.getLogger(__name__)


_MANY_SCOPES = 100
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
        refuse_absent: refuse a filter with a value that no item has, as searches do.

    Returns:
        For each scope its threshold, the pairs beyond it, and the FPIR of the check; or why none is promised.

    Raises:
        InvalidSetting: a rate outside (0, 0.5], a filter or column that the items do not have; or nothing can
            be promised, and the index version has thresholds, which it keeps.
        IncompatibleArtifact: the items have no labels, or fewer than 20 pairs of identities.
    """
    fpir = checked_error_rate("fpir", fpir, usual=0.01)
    indexed = IndexedRows(index)
    num_tries = 1 + len(by) + len(scopes)
    search = ImpostorSearch(indexed, fpir / num_tries)
    with Ticker("calibrate") as ticker:
        selections = list(select_scopes(indexed.items, scopes, by, refuse_absent))
        ticker.begin("the whole gallery", "probes", search.num_gallery_probes)
        gallery = search.in_gallery()
        ticker.begin("searching in scopes", "scopes", len(selections))
        are_many = len(selections) > _MANY_SCOPES
        measured = [search.in_scope(selected, is_one_of_many=are_many) for selected in selections]
        ticker.begin("setting and checking thresholds")
        thresholds, report = _Calibrator(search).calibrate(gallery, measured, fpir, num_tries)
    former = find_thresholds_ref(store, index)
    if former is not None and all(scope.refused for scope in report) and _promised(store, index):
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


def calibrate_alike(store: str, index: IndexRef, *, former_must_go: bool = False) -> CalibrationReport | None:
    """Calibrate a new version as the version in use was, so that a refreshed index goes on identifying.

    A filter whose values no item has any more is an empty scope. Scopes that have no threshold any more are
    named in the log.

    Args:
        store: the store's URI.
        index: the new version.
        former_must_go: the version in use holds what is forgotten, so the new one replaces it in any case;
            the error then says so.

    Returns:
        None: there is no version in use, it was not calibrated or cannot be read, or it is this one.

    Raises:
        IncompatibleArtifact: this version has no labels, or no pairs of identities, or no threshold at all
            where the version in use has one.
    """
    try:
        former = published_index(store, index.name)
        asked = None if former is None else find_thresholds_ref(store, former)
    except StorageUnavailable:
        raise
    except DmlError as error:
        logger.warning("%s is not calibrated, since the version in use cannot be read: %s", index, error)
        return None
    if former is None or asked is None or former.version == index.version:
        return None
    try:
        report = calibrate(
            store, index, fpir=asked.fpir, scopes=asked.scopes, by=asked.by, refuse_absent=False
        )
    except (IncompatibleArtifact, InvalidSetting) as error:
        raise _not_alike(former, index, str(error), former_must_go) from error
    promised = _promised(store, former)
    if promised and not report.num_promised:
        raise _not_alike(former, index, report.scopes[0].refused, former_must_go)
    if lost := [scope for scope in report.scopes if scope.refused and scope.scope in promised]:
        logger.warning(
            "%s has no thresholds for %d of the %d scopes that had one, as for %s: %s",
            index,
            len(lost),
            len(promised),
            lost[0].scope or "the whole gallery",
            lost[0].refused,
        )
    return report


def _promised(store: str, index: IndexRef) -> set[str]:
    """The scopes of an index version with a threshold; none where its thresholds cannot be read."""
    try:
        thresholds = find_thresholds(store, index)
    except StorageUnavailable:
        raise
    except DmlError:
        return set()
    return set() if thresholds is None else {tail.scope for tail in thresholds.scopes if not tail.refused}


def _not_alike(former: IndexRef, index: IndexRef, why: str, former_must_go: bool) -> IncompatibleArtifact:
    name = index.name
    if former_must_go:
        then = f"{index} replaces it, and searches go on. To identify again: dml calibrate {name}."
    else:
        then = (
            f"{former} stays in use. To go on without thresholds: dml rm thresholds {name}, then index again."
        )
    return IncompatibleArtifact(
        f"{former} identifies with calibrated thresholds, and the new {index} cannot: {why} {then}"
    )


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
    """Sets and checks thresholds.

    Args:
        search: has measured the impostors.
    """

    def __init__(self, search: ImpostorSearch) -> None:
        self._search, self._share = search, search.share

    def calibrate(
        self, gallery: ScopeImpostors, scopes: Sequence[ScopeImpostors], fpir: float, num_tries: int
    ) -> tuple[Thresholds, list[CalibratedScope]]:
        """The thresholds of the gallery and of its scopes, and how held-out probes met them."""
        if gallery.tail is None or not gallery.fold_thresholds:
            raise IncompatibleArtifact(
                f"Thresholds need impostors: 20 pairs of items of different labels that are not all copies; "
                f"{self._search.index} has {gallery.searched} label(s). Enrol more identities."
            )
        columns = {scope.column for scope in scopes if scope.column is not None}
        pooled = {column: self._pool(column, scopes) for column in columns}
        tails = [self._scope_tail(measured) for measured in (gallery, *scopes)]
        thresholds = Thresholds(
            fpir=fpir,
            num_tries=num_tries,
            scopes=tails,
            pooled={column: pool.tail for column, pool in pooled.items() if pool is not None},
            **self._search.pair_tails(),
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

    def _pool(self, column: str, scopes: Sequence[ScopeImpostors]) -> _Pooled | None:
        """The pooled tail of a column's scopes; None for one scope, or too few pairs."""
        pool = self._search.pool(column)
        if pool.num_searches < 2:
            return None
        try:
            tail, fold_tails = fit_tail(pool.pairs()), held_out_tails(pool)
        except InvalidData:
            return None
        searches = [
            (scope.probes, self._pooled_fold_thresholds(scope, fold_tails))
            for scope in scopes
            if scope.column == column and scope.probes is not None
        ]
        checked = held_out_fpir(searches, self._search.folds)
        meets_target = checked.low <= self._share and checked.high <= _MAX_FPIR_RATIO * self._share
        return _Pooled(PooledTail(tail=tail, meets_target=meets_target), fold_tails)

    def _pooled_fold_thresholds(
        self, scope: ScopeImpostors, pooled_tails: Sequence[ImpostorTail]
    ) -> list[float]:
        """Each fold's threshold of a scope by the pooled tail, not below the scope's own estimate."""
        pooled = [tail.threshold(scope.searched, self._share) for tail in pooled_tails]
        return _maxima(pooled, scope.fold_thresholds or pooled)

    def _scope_tail(self, measured: ScopeImpostors) -> ScopeTail:
        meets_target = False
        if measured.probes is not None and measured.fold_thresholds:
            checked = held_out_fpir([(measured.probes, measured.fold_thresholds)], self._search.folds)
            meets_target = checked.low <= self._share
        return ScopeTail(
            scope=measured.scope,
            column=measured.column,
            identities=measured.identities,
            tail=measured.tail,
            meets_target=meets_target,
        )

    def _check(
        self,
        measured: ScopeImpostors,
        thresholds: Thresholds,
        gallery: ScopeImpostors,
        pooled: _Pooled | None,
    ) -> CalibratedScope:
        """A scope's threshold, and the FPIR of held-out probes by it."""
        size, share = measured.identities, self._share
        row = CalibratedScope(scope=measured.scope, identities=size, share=share)
        try:
            threshold = threshold_for(thresholds, measured.scope, measured.column, size, share)
        except InvalidSetting as error:
            return row.model_copy(update={"refused": str(error)})
        checked, refused = None, ""
        if measured.probes is not None:
            limits = measured.fold_thresholds
            if pooled is not None and threshold.basis == "pooled":
                limits = self._pooled_fold_thresholds(measured, pooled.fold_tails)
                if not pooled.tail.meets_target:
                    limits = _maxima(limits, gallery.fold_thresholds)
            checked = held_out_fpir([(measured.probes, limits)], self._search.folds)
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


def _maxima(thresholds: Sequence[float], others: Sequence[float]) -> list[float]:
    """The higher of both thresholds of each fold."""
    return [max(both) for both in zip(thresholds, others, strict=True)]
