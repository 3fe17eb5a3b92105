"""Open-set identification: an open index and its thresholds in, one identity, "unknown" or a question out.

Scopes are tried in order, the likeliest and smallest first: those who used this device, then the region, then
everybody. Each accepts only above its own threshold for its share of the false-positive rate, since several
tries add up (Bonferroni). Where several identities are above it, the answer names the attribute that tells
them apart best, and never a value of it: that would say who is enrolled.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dml.errors import InvalidSetting, MissingArtifact, did_you_mean
from dml.reports import Identification, TriedScope, Verification
from dml.retrieval.arguments import checked_error_rate, checked_list, checked_threshold
from dml.retrieval.filters import Compare, Filter, IsNull, Not, Where, check
from dml.retrieval.hints import check_hint, matches_hint, separating_attribute
from dml.retrieval.identities import FIRST_K, IdentityAnswers, group_by_identity
from dml.retrieval.search import Index
from dml.retrieval.thresholds import Thresholds, column_of, scope_text, threshold_for

_MAX_CANDIDATES = 4_096
"""Identities; more would be listed in memory for a question that no hint answers."""
_USUAL_FMR = 0.001
_MAX_SCOPES_CACHED = 1_000


@dataclass(frozen=True)
class _Scope:
    """A part of the gallery that was checked against the index."""

    text: str
    filter: Filter | None
    """None: the whole gallery."""
    num_identities: int
    """0: no item is in it."""


class Identifier:
    """An open index with its thresholds; can be shared between threads.

    Args:
        index: open.
        thresholds: of that version; None: it was not calibrated.
    """

    def __init__(self, index: Index, thresholds: Thresholds | None) -> None:
        self.index, self.thresholds = index, thresholds
        self._columns = index.columns
        self._scopes: dict[str, _Scope] = {}

    def identify(
        self,
        probe: NDArray[np.float32],
        *,
        embedder: str,
        scopes: Sequence[Where] = ("",),
        hint: Mapping[str, Any] | None = None,
        fpir: float | None = None,
        threshold: float | None = None,
        never_ask: Sequence[str] = (),
        margin: float = math.inf,
    ) -> Identification:
        """Find out whose image this is.

        Args:
            probe: (D,) float32, unit length.
            embedder: fingerprint of what embedded it.
            scopes: filters, tried in order; an empty text is the whole gallery.
            hint: attribute to value, known of the probe: candidates that have another are left out.
            fpir: share of the probes of nobody enrolled that get an identity all the same, over all scopes;
                None: what the index was calibrated for.
            threshold: similarity for every scope instead of calibrated ones.
            never_ask: attributes that the answer must not ask for.
            margin: a candidate further below the best one than this is none; by default every identity above
                the threshold is one.

        Raises:
            MissingArtifact: the index was not calibrated, and there is no threshold.
            InvalidSetting: a scope that is not calibrated or nothing is promised for, a filter, hint or
                attribute that the items do not have, or more than 4,096 identities above the threshold.
        """
        scopes = checked_list("scopes", scopes, "\"region = 'east'\"")
        if not scopes:
            raise InvalidSetting('scopes must name a part of the gallery; got none. "" is all of it.')
        never_ask = checked_list("never_ask", never_ask, '"phone_suffix"')
        threshold = checked_threshold(threshold, fpir=fpir)
        hint = self._checked_hint(hint or {})
        self._require_attributes(never_ask, "never_ask")
        share = None if threshold is not None else self._share(fpir, len(scopes))
        opened = [self._scope(where) for where in scopes]
        limits = [threshold if share is None else self._threshold(scope, share) for scope in opened]
        tried: list[TriedScope] = []
        for scope, limit in zip(opened, limits, strict=True):
            candidates = [] if limit is None else self._candidates(probe, embedder, scope, limit)
            candidates = [
                candidate
                for candidate in candidates
                if candidate.similarity >= candidates[0].similarity - margin
                and matches_hint({name: candidate.values(name) for name in hint}, hint)
            ]
            tried.append(
                TriedScope(scope=scope.text, share=share, threshold=limit, candidates=len(candidates))
            )
            if candidates:
                return self._decide(candidates, tried, {*never_ask, *hint})
        return Identification(index=str(self.index.ref), status="unknown", tried=tried)

    def threshold(self, where: Where = "", *, fpir: float | None = None) -> float | None:
        """The similarity from which an answer in one part of the gallery is accepted.

        Args:
            where: the part, a filter; an empty text is the whole gallery.
            fpir: as of `identify`.

        Returns:
            None: nobody is in that part.

        Raises:
            MissingArtifact: the index was not calibrated.
            InvalidSetting: the part is not calibrated, or nothing can be promised for it.
        """
        share = self._share(fpir, 1)
        return self._threshold(self._scope(where), share)

    def _decide(
        self, candidates: Sequence[IdentityAnswers], tried: list[TriedScope], never_ask: set[str]
    ) -> Identification:
        """Identified where one candidate is left; else the attribute to ask for, if one tells them apart."""
        index = str(self.index.ref)
        if len(candidates) == 1:
            (only,) = candidates
            return Identification(
                index=index,
                status="identified",
                identity=only.identity,
                similarity=only.similarity,
                id=only.answers[0].id,
                scope=tried[-1].scope,
                tried=tried,
            )
        ask = separating_attribute(
            [
                {name: candidate.values(name) for name in self._attributes if name not in never_ask}
                for candidate in candidates
            ]
        )
        status: Literal["undecided", "needs_hint"] = "undecided" if ask is None else "needs_hint"
        return Identification(index=index, status=status, ask=ask, scope=tried[-1].scope, tried=tried)

    def verify(
        self,
        probe: NDArray[np.float32],
        other: NDArray[np.float32] | str,
        *,
        embedder: str,
        fmr: float | None = None,
        threshold: float | None = None,
    ) -> Verification:
        """Decide whether two images show the same identity, or one image an enrolled identity.

        Args:
            probe: (D,) float32, unit length.
            other: another such vector, or an identity: then the most similar of all its images counts.
            embedder: fingerprint of what embedded both.
            fmr: false-match rate: share of the impostors who are taken for the other; None: 0.001.
            threshold: similarity instead of a calibrated one.

        Raises:
            MissingArtifact: no such identity; or the index was not calibrated, and there is no threshold.
            InvalidSetting: too few pairs to promise this rate.
        """
        if isinstance(other, str):
            similarities = self._similarities(probe, other, embedder)
            tail = None if self.thresholds is None else self.thresholds.image_to_identity
        else:
            self.index.search(np.stack([probe, other]), 1, embedder=embedder)  # which refuses other vectors
            similarities = [float(probe @ other)]
            tail = None if self.thresholds is None else self.thresholds.image_to_image
        limit = checked_threshold(threshold, fmr=fmr)
        if limit is None:
            self._require_thresholds("Comparing")
            fmr = checked_error_rate("fmr", _USUAL_FMR if fmr is None else fmr, usual=_USUAL_FMR)
            if tail is None:
                raise InvalidSetting(
                    f"A false-match rate needs 20 impostor pairs; index {self.index.ref} has fewer. Enrol "
                    "more identities and calibrate again, or give a threshold."
                )
            limit = tail.supported_threshold(1, fmr, f"index {self.index.ref}")
        best = max(similarities)
        return Verification(
            index=str(self.index.ref),
            same=best >= limit,
            similarity=best,
            threshold=limit,
            fmr=None if threshold is not None else fmr,
            identity=other if isinstance(other, str) else None,
            images=len(similarities),
        )

    def _candidates(
        self, probe: NDArray[np.float32], embedder: str, scope: _Scope, threshold: float
    ) -> list[IdentityAnswers]:
        """The identities in a scope that reach its threshold, the most similar first."""
        if not scope.num_identities:
            return []
        k = FIRST_K
        while True:
            result = self.index.search(probe[None], k, embedder=embedder, where=scope.filter)
            answers = [answer for answer in result.answers[0] if answer.similarity >= threshold]
            candidates = list(group_by_identity(answers).values())
            if len(candidates) > _MAX_CANDIDATES:
                raise InvalidSetting(
                    f"At most {_MAX_CANDIDATES} identities can be told apart; more than that of "
                    f"{scope.text or 'the whole gallery'} are at least {threshold:.4g} similar to the probe. "
                    "Accept from a higher similarity, or name a smaller scope."
                )
            if len(answers) < k:
                return candidates
            k *= 4

    def _similarities(self, probe: NDArray[np.float32], identity: str, embedder: str) -> list[float]:
        """The similarities to each image of an identity."""
        labels = self._columns.get("label")
        where: list[Filter] = []
        if labels is not None and labels.has([identity])[0]:
            where = [Compare(column="label", operator="=", value=identity)]
        elif self._columns["id"].has([identity])[0]:  # without a label an item is an identity by itself
            where = [Compare(column="id", operator="=", value=identity)]
            where += [] if labels is None else [IsNull(column="label")]
        rows = self.index.num_rows
        result = self.index.search(probe[None], rows, embedder=embedder, where=where) if where else None
        if result is None or not result.answers[0]:
            near, _ = self._columns["id" if labels is None else "label"].near(identity)
            raise MissingArtifact(
                f"An identity must be a label of index {self.index.ref}, or the id of an item without one; "
                f"{identity!r} is not.{did_you_mean(identity, map(str, near))}"
            )
        return [answer.similarity for answer in result.answers[0]]

    def _scope(self, where: Where) -> _Scope:
        filter = None if where == "" else check(where, self._columns, refuse_absent=False)
        text = scope_text(filter)
        cached = self._scopes if len(self._scopes) < _MAX_SCOPES_CACHED else {}
        if text not in cached:
            scope = _Scope(text, filter, self.index.num_identities(filter))
            self._scopes = {**cached, text: scope}  # a new dict: other threads may read the former one
            return scope
        return cached[text]

    def _threshold(self, scope: _Scope, share: float) -> float | None:
        """The calibrated threshold of a scope; None: no item is in it, so it needs none."""
        assert self.thresholds is not None
        if not scope.num_identities:
            return None
        column = column_of(scope.filter)
        return threshold_for(self.thresholds, scope.text, column, scope.num_identities, share).similarity

    def _share(self, fpir: float | None, num_scopes: int) -> float:
        thresholds = self._require_thresholds("Identifying")
        fpir = thresholds.fpir if fpir is None else checked_error_rate("fpir", fpir, usual=0.01)
        return fpir / num_scopes

    def _require_thresholds(self, what: str) -> Thresholds:
        if self.thresholds is None:
            remedy = f"Do: dml calibrate {self.index.ref.name}, or give a threshold."
            if "label" not in self._columns or not self.index.count(Not(filter=IsNull(column="label"))):
                remedy = "Its items have no labels to calibrate them with: give a threshold."
            raise MissingArtifact(
                f"{what} needs calibrated thresholds; index {self.index.ref} has none. {remedy}"
            )
        return self.thresholds

    def _checked_hint(self, hint: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(hint, Mapping):
            raise InvalidSetting(
                f'hint must be attribute to value; got {type(hint).__name__}. Pass {{"region": "east"}}.'
            )
        self._require_attributes(list(hint), "hint")
        for name, wanted in hint.items():
            check_hint(name, wanted, self._columns[name].kind)
        return dict(hint)

    def _require_attributes(self, names: Sequence[str], what: str) -> None:
        for name in names:
            if name not in self._attributes:
                raise InvalidSetting(
                    f"{what} must name attributes of the items, {self._attributes}; got {name!r}."
                    f"{did_you_mean(name, self._attributes)}"
                )

    @cached_property
    def _attributes(self) -> list[str]:
        return list(self.index.ref.embeddings.items.attributes)
