"""Calibrated thresholds of an index version: for the whole gallery, for scopes, and for pairs of images.

An artefact of its own, in the store's `thresholds/`, found by the index's version: calibrating changes
nothing in a published index. Every item of the index is a non-mated probe once its own identity is left out
of the gallery, so no other data is needed; an identity is a label. Items of training classes are enrolled,
and are no probes where there are others: the embedding has learnt to tell them apart, but not strangers.

A scope is a part of the gallery, and as a rule a more similar one: it has a tail of its own, of probes from
inside it. A scope with too few identities for that borrows the tail that it and the other values of its
column have together. It is then not below its own estimate, and not below the threshold of the whole gallery
unless the probes of all these scopes together show that they need not be.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute
from pydantic import BaseModel, ConfigDict, Field

from dml import storage
from dml.errors import DmlError, IncompatibleArtifact, InvalidData, InvalidSetting
from dml.progress import Ticker, count
from dml.refs import IndexRef, ThresholdsRef
from dml.reports import CalibratedScope, CalibrationReport, CheckedFpir
from dml.retrieval.bundle import Bundle, open_bundle
from dml.retrieval.filters import Compare, Filter, check, matching_rows
from dml.retrieval.filters.columns import ItemColumns
from dml.retrieval.index import published_index
from dml.retrieval.thresholds import (
    FEWEST_BEYOND,
    ImpostorScores,
    ImpostorTail,
    check_thresholds,
    fit_tail,
    fold_of_identities,
    impostor_scores,
    sample_probes,
    tails_without_each_fold,
)

logger = logging.getLogger(__name__)

FOLDER, FILE = "thresholds", "thresholds.json"
WHOLE = ""
"""The scope of the whole gallery."""
_MAX_SCOPES = 10_000
_PROBES_OF_A_SCOPE, _FEWEST_KEPT = 2_000, 20_000
_KEPT_OF_ALL = 4_000_000
_SAMPLED_FOR_PAIRS = 20_000
_MANY_SCOPES, _COUNTED_OF_MANY = 100, 50
_SHOWN_BELOW = 2.0
"""A pooled threshold may be below the whole gallery's if the interval of its checked FPIR ends below so many
times the target."""


class ScopeTail(BaseModel):
    """The impostors inside a scope."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scope: str = Field(description="a filter; empty: the whole gallery")
    column: str | None = Field(description="its scopes of other values are similar ones; null: it has none")
    identities: int
    tail: ImpostorTail | None = Field(description="null: too few pairs")
    holds: bool = Field(description="whether probes that took no part met the target by the own tail")
    refused: str = Field("", description="why nothing is promised for it; empty: something is")


class SimilarScopes(BaseModel):
    """The impostors inside all scopes of a column, pooled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tail: ImpostorTail
    holds: bool = Field(
        description="whether probes that took no part met the target, so that it may be below the gallery's"
    )


class Thresholds(BaseModel):
    """All tails of an index version, from which the threshold for any FPIR is computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fpir: float = Field(description="of one identification, over all scopes that it tries")
    tries: int = Field(description="scopes over which it was split when it was checked")
    scopes: list[ScopeTail]
    similar: dict[str, SimilarScopes] = Field(description="column to the scopes of its values")
    image_to_image: ImpostorTail | None
    image_to_identity: ImpostorTail | None

    def scope(self, text: str) -> ScopeTail | None:
        """The calibrated scope of a filter's canonical text."""
        return next((each for each in self.scopes if each.scope == text), None)


@dataclass(frozen=True)
class ScopeThreshold:
    """The threshold of a scope."""

    similarity: float
    fpir: float
    basis: Literal["own", "similar scopes"]
    beyond: int
    """Pairs of different identities beyond it, before it was raised to that of the whole gallery; at most
    1,000."""


def threshold_for(
    thresholds: Thresholds, scope: str, column: str | None, num_identities: int, fpir: float
) -> ScopeThreshold:
    """The threshold of a scope for its share of the FPIR.

    Args:
        thresholds: of the index.
        scope: a filter's canonical text; empty: the whole gallery.
        column: where the scope is `column = value`.
        num_identities: enrolled inside the scope.
        fpir: the scope's share.

    Raises:
        InvalidSetting: the scope is not calibrated, or nothing can be promised for it.
    """
    calibrated = thresholds.scope(scope)
    if calibrated is not None and calibrated.refused and fpir <= thresholds.fpir / thresholds.tries:
        raise InvalidSetting(calibrated.refused)
    what = f"scope {scope!r}" if scope else "the whole gallery"
    own = None if calibrated is None else calibrated.tail
    pooled = None if column is None else thresholds.similar.get(column)
    if own is not None and calibrated is not None:
        similarity = own.threshold(num_identities, fpir)
        if pooled is None:
            own.promised(num_identities, fpir, what)
        if pooled is None or (calibrated.holds and own.num_beyond(similarity) >= FEWEST_BEYOND):
            return ScopeThreshold(similarity, fpir, "own", own.num_beyond(similarity))
    if pooled is None:
        by = f" or --by {column}" if column else ""
        raise InvalidSetting(
            f"A threshold needs a calibrated scope; {what} is not, or has too few of its {num_identities} "
            f'identities. Do dml calibrate INDEX with --scope "{scope}"{by}, or give a threshold yourself.'
        )
    similarity = pooled.tail.promised(num_identities, fpir, f"{what}, with the other values of {column}")
    beyond = pooled.tail.num_beyond(similarity)
    whole = None if pooled.holds else thresholds.scope(WHOLE)
    if whole is not None and whole.tail is not None:
        similarity = max(similarity, whole.tail.threshold(whole.identities, fpir))
    if own is not None:  # a scope of more similar people than the others, as far as its few pairs show
        similarity = max(similarity, own.threshold(num_identities, fpir))
    return ScopeThreshold(similarity, fpir, "similar scopes", beyond)


def column_of(filter: Filter | None) -> str | None:
    """The column of a scope `column = value`; None for any other."""
    return filter.column if isinstance(filter, Compare) and filter.operator == "=" else None


def scope_text(filter: Filter | None) -> str:
    """How a scope is called: its filter's canonical text."""
    return WHOLE if filter is None else str(filter)


def find_thresholds(store: str, index: IndexRef) -> Thresholds | None:
    """What was calibrated for an index version; None: nothing.

    Raises:
        CorruptArtifact: its file is not the one that was published.
    """
    uri = _uri(store, index)
    if not storage.is_complete(uri):
        return None
    storage.verify_opened(uri)
    return Thresholds.model_validate(storage.read_json(storage.join(uri, FILE)))


def find_thresholds_ref(store: str, index: IndexRef) -> ThresholdsRef | None:
    """Where the thresholds of an index version are, and for which FPIR; None: it was not calibrated."""
    uri = _uri(store, index)
    return ThresholdsRef(uri=uri, **storage.read_manifest(uri)["ref"]) if storage.is_complete(uri) else None


def _uri(store: str, index: IndexRef) -> str:
    return storage.join(store, FOLDER, index.version)


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

    The thresholds replace those that the index version had.

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
        InvalidSetting: a rate outside (0, 0.5], a filter or column that the items do not have.
        IncompatibleArtifact: the items have no labels, or fewer than 20 pairs of identities.
    """
    if not 0 < fpir <= 0.5:
        raise InvalidSetting(f"fpir must be in (0, 0.5]; got {fpir}. 0.01 is usual.")
    bundle = open_bundle(index)
    gallery = _Gallery(bundle, fpir / (1 + len(by) + len(scopes)), max_probes)
    with Ticker("calibrate") as ticker:
        ticker.begin("the whole gallery", "probes", max_probes)
        whole = gallery.searched(WHOLE, None, np.flatnonzero(gallery.has_label), max_probes)
        parts = list(_scopes(bundle.items.table, scopes, by, refuse_absent))
        ticker.begin("scopes", "scopes", len(parts))
        within = [gallery.searched(*part, _PROBES_OF_A_SCOPE, most_kept=_kept(len(parts))) for part in parts]
        thresholds, report = gallery.calibrated(whole, within, fpir, 1 + len(by) + len(scopes))
    fingerprint = storage.digest_of(index.fingerprint, thresholds.model_dump(mode="json"))
    ref = ThresholdsRef(
        uri=_uri(store, index),
        fingerprint=fingerprint,
        index=index,
        fpir=fpir,
        scopes=list(scopes),
        by=list(by),
    )
    _save(ref, thresholds)
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
    return calibrate(store, index, fpir=asked.fpir, scopes=asked.scopes, by=asked.by, refuse_absent=False)


def _kept(num_scopes: int) -> int:
    return max(_KEPT_OF_ALL // max(num_scopes, 1), _FEWEST_KEPT)


def _save(ref: ThresholdsRef, thresholds: Thresholds) -> None:
    with storage.staged(ref.uri) as staged:
        storage.write_json(storage.join(staged, FILE), thresholds.model_dump(mode="json"))
        if storage.is_complete(ref.uri):
            storage.remove(ref.uri)
        storage.publish(staged, ref.uri, {"ref": ref.model_dump(mode="json", exclude={"uri"})})


Part = tuple[str, str | None, NDArray[np.int64]]
"""A scope's text, its column where it is one of several values, and its rows."""


def _scopes(items: pa.Table, scopes: Sequence[str], by: Sequence[str], refuse_absent: bool) -> Iterator[Part]:
    columns = ItemColumns(items)
    named = set()
    for where in scopes:
        filter = check(where, columns, refuse_absent=refuse_absent)
        if filter is None:
            raise InvalidSetting(
                "--scope must be a filter; the whole gallery is always calibrated. Leave it out."
            )
        named.add(str(filter))
        yield (
            str(filter),
            column_of(filter),
            np.flatnonzero(matching_rows(items, filter, refuse_absent=False)),
        )
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
                yield text, name, np.sort(by_value[start:stop])


def _values(items: pa.Table, name: str) -> tuple[list[Any], NDArray[np.int64]]:
    """The values of a column, and (N,) which of them each item has; -1 where it is missing."""
    if name not in items.column_names:
        raise InvalidSetting(f"--by must name a column of the items, {items.column_names}; got {name!r}.")
    encoded = items[name].combine_chunks().dictionary_encode()
    codes = compute.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    values = encoded.dictionary.to_pylist()
    if "" in values:
        codes[codes == values.index("")] = -1
        values = values[:-1] if values[-1] == "" else values
    return values, codes


def _of_other_splits(items: pa.Table) -> NDArray[np.bool_]:
    """(N,) the items whose classes were not trained on; all where there is no other, or no split."""
    if "split" not in items.column_names:
        return np.ones(len(items), dtype=np.bool_)
    trained = compute.fill_null(compute.equal(items["split"], "train"), False)
    others: NDArray[np.bool_] = ~trained.to_numpy()
    return others if others.any() else ~others


@dataclass(frozen=True)
class _Searched:
    """A scope, searched by its own items."""

    scope: str
    column: str | None
    scores: ImpostorScores | None
    """None: fewer than two identities, or no probe."""
    identities: int
    fold_tails: Sequence[ImpostorTail] = ()
    """Of its own; none where a fold has too few pairs."""
    tail: ImpostorTail | None = None


@dataclass(frozen=True)
class _Family:
    """The scopes of one column."""

    scopes: SimilarScopes
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


class _Gallery:
    """The items of an index as probes and as enrolled.

    Args:
        bundle: the open index.
        share: of the FPIR, for each scope.
        max_probes: of the whole gallery.
    """

    def __init__(self, bundle: Bundle, share: float, max_probes: int) -> None:
        items = bundle.items.table
        if "label" not in items.column_names or items["label"].null_count == len(items):
            raise IncompatibleArtifact(
                f"Thresholds need labels, which say whose image an item is; the items of "
                f"{bundle.ref} have none. Import the vectors with labels, or give a threshold of your own."
            )
        self._take, self._share = bundle.vectors.take, share
        self._names, self.identities = _values(items, "label")
        self.has_label = self.identities >= 0
        self._may_probe = _of_other_splits(items)
        self._folds = fold_of_identities(len(self._names))
        self._index = bundle.ref

    def searched(
        self,
        scope: str,
        column: str | None,
        rows: NDArray[np.int64],
        max_probes: int,
        *,
        most_kept: int = _KEPT_OF_ALL // 2,
    ) -> _Searched:
        rows = rows[self.has_label[rows]]
        num_identities = len(np.unique(self.identities[rows]))
        probes = rows[self._may_probe[rows]]
        if num_identities < 2 or not len(probes):
            count()
            return _Searched(scope, column, None, num_identities)
        probes = probes[sample_probes(self.identities[probes], max_probes)]
        scores = impostor_scores(
            self._vectors(probes),
            self.identities[probes],
            self._vectors,
            self.identities,
            rows=rows,
            most_kept=most_kept,
        )
        count(len(probes) if scope == WHOLE else 1)
        try:
            tails = tails_without_each_fold([scores], self._folds)
            return _Searched(scope, column, scores, num_identities, tails, fit_tail([scores]))
        except InvalidData:
            return _Searched(scope, column, scores, num_identities)

    def _vectors(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        vectors = self._take(rows)
        unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        return unit

    def calibrated(
        self, whole: _Searched, within: Sequence[_Searched], fpir: float, tries: int
    ) -> tuple[Thresholds, list[CalibratedScope]]:
        if whole.scores is None or whole.tail is None or not whole.fold_tails:
            raise IncompatibleArtifact(
                f"Thresholds need impostors: 20 pairs of items of different labels that are not all copies; "
                f"{self._index} has {whole.identities} label(s). Enrol more identities."
            )
        families = {
            name: self._family(name, within) for name in {s.column for s in within} if name is not None
        }
        similar = {name: family.scopes for name, family in families.items() if family is not None}
        tails = [self._scope_tail(each, len(within)) for each in (whole, *within)]
        thresholds = Thresholds(fpir=fpir, tries=tries, scopes=tails, similar=similar, **self._pairs(whole))
        report = []
        for number, each in enumerate((whole, *within)):
            family = None if each.column is None else families.get(each.column)
            row = self._report(each, thresholds, whole, family)
            report.append(row)
            if row.refused:
                tails[number] = tails[number].model_copy(update={"refused": row.refused})
        return thresholds.model_copy(update={"scopes": tails}), report

    def _family(self, column: str, within: Sequence[_Searched]) -> _Family | None:
        """The pooled tail of a column's scopes; None for one scope, or too few pairs."""
        members = [each for each in within if each.column == column]
        parts = [each.scores for each in members if each.scores is not None]
        if len(parts) < 2:
            return None
        try:
            tail, fold_tails = fit_tail(parts), tails_without_each_fold(parts, self._folds)
        except InvalidData:
            return None
        limits = [self._borrowed(each, fold_tails) for each in members]
        searches = [
            (each.scores, limit)
            for each, limit in zip(members, limits, strict=True)
            if each.scores is not None
        ]
        checked = check_thresholds(searches, self._folds)
        holds = checked.low <= self._share and checked.high <= _SHOWN_BELOW * self._share
        return _Family(SimilarScopes(tail=tail, holds=holds), fold_tails)

    def _borrowed(self, scope: _Searched, fold_tails: Sequence[ImpostorTail]) -> list[float]:
        """Each fold's threshold of a scope by the pooled tail, not below its own estimate."""
        pooled = [tail.threshold(scope.identities, self._share) for tail in fold_tails]
        own = [tail.threshold(scope.identities, self._share) for tail in scope.fold_tails] or pooled
        return [max(pair) for pair in zip(pooled, own, strict=True)]

    def _scope_tail(self, scope: _Searched, num_scopes: int) -> ScopeTail:
        tail, holds = scope.tail, False
        if tail is not None and num_scopes > _MANY_SCOPES:
            tail = tail.model_copy(update={"largest": tail.largest[:_COUNTED_OF_MANY]})
        if scope.fold_tails and scope.scores is not None:
            limits = [tail.threshold(scope.identities, self._share) for tail in scope.fold_tails]
            holds = check_thresholds([(scope.scores, limits)], self._folds).low <= self._share
        return ScopeTail(
            scope=scope.scope,
            column=scope.column,
            identities=scope.identities,
            tail=tail,
            holds=holds,
        )

    def _report(
        self,
        scope: _Searched,
        thresholds: Thresholds,
        whole: _Searched,
        family: _Family | None,
    ) -> CalibratedScope:
        size, share = scope.identities, self._share
        row = CalibratedScope(scope=scope.scope, identities=size, share=share)
        try:
            found = threshold_for(thresholds, scope.scope, scope.column, size, share)
        except InvalidSetting as error:
            return row.model_copy(update={"refused": str(error)})
        checked, refused = None, ""
        if scope.scores is not None:
            if family is None or found.basis == "own":
                limits = [tail.threshold(size, share) for tail in scope.fold_tails]
            else:
                limits = self._borrowed(scope, family.fold_tails)
                if not family.scopes.holds:
                    of_all = [tail.threshold(whole.identities, share) for tail in whole.fold_tails]
                    limits = [max(pair) for pair in zip(limits, of_all, strict=True)]
            checked = check_thresholds([(scope.scores, limits)], self._folds)
            refused = _refusal(scope.scope, share, checked)
        return row.model_copy(
            update={
                "threshold": found.similarity,
                "basis": found.basis,
                "beyond": found.beyond,
                "checked": checked,
                "refused": refused,
            }
        )

    def _pairs(self, whole: _Searched) -> Mapping[str, ImpostorTail | None]:
        """The tails of one probe against one image, and against one identity."""
        rows = np.flatnonzero(self.has_label)
        some = rows[sample_probes(self.identities[rows], _SAMPLED_FOR_PAIRS)]
        probes = some[self._may_probe[some]]
        probes = probes[sample_probes(self.identities[probes], _PROBES_OF_A_SCOPE)]
        tails: dict[str, ImpostorTail | None] = {}
        for name, by_image in (("image_to_image", True), ("image_to_identity", False)):
            scores = impostor_scores(
                self._vectors(probes),
                self.identities[probes],
                self._vectors,
                self.identities,
                rows=some,
                by_image=by_image,
            )
            try:
                tails[name] = fit_tail([scores])
            except InvalidData:
                tails[name] = None
        return tails
