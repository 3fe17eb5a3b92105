"""Who is this, or nobody: an open index and its thresholds in, one identity, "unknown" or a question out.

Scopes are tried in order, the likeliest and smallest first: those who used this device, then the region, then
everybody. Each accepts only above its own threshold for its share of the false-positive rate, since several
tries add up (Bonferroni). Where several identities are above it, the answer names the attribute that tells
them apart best, and never a value of it: that would say who is enrolled.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from dml.errors import InvalidSetting, MissingArtifact, did_you_mean
from dml.reports import Identification, IdentityHit, ImageHit, TriedScope, Verification
from dml.retrieval.filters import Compare, Filter, In, Where, check, matching_rows
from dml.retrieval.search import Answer, Index
from dml.retrieval.thresholds import Thresholds, column_of, scope_text, threshold_for

GROUPINGS = ("best", "mean", "all")
_FIRST_ANSWERS, _MOST_ANSWERS = 16, 4_096
_IDENTITIES_AT_LEAST = 64
_SCOPES_REMEMBERED = 1_000


@dataclass(frozen=True)
class _Candidate:
    """An identity, with those of its images that were found, the most similar first."""

    identity: str
    answers: list[Answer]

    @property
    def similarity(self) -> float:
        return self.answers[0].similarity

    def values(self, attribute: str) -> frozenset[Any]:
        """What its images have there; missing values are none."""
        found = (answer.attributes.get(attribute) for answer in self.answers)
        return frozenset(value for value in found if value not in (None, ""))


@dataclass(frozen=True)
class _Scope:
    text: str
    filter: Filter | None
    identities: int
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
                attribute that the items do not have.
        """
        scopes = _checked_list("scopes", scopes, "\"region = 'east'\"")
        if not scopes:
            raise InvalidSetting('scopes must name a part of the gallery; got none. "" is all of it.')
        never_ask = _checked_list("never_ask", never_ask, '"phone_suffix"')
        threshold = None if threshold is None else _checked_threshold(threshold)
        hint = self._checked_hint(hint or {})
        self._require_attributes(never_ask, "never_ask")
        share = None if threshold is not None else self._share(fpir, len(scopes))
        read = [self._scope(where) for where in scopes]
        limits = [threshold if share is None else self._threshold(scope, share) for scope in read]
        tried: list[TriedScope] = []
        for scope, limit in zip(read, limits, strict=True):
            found = self._candidates(probe, embedder, scope, limit) if limit is not None else []
            found = [each for each in found if each.similarity >= found[0].similarity - margin]
            found = [each for each in found if _fits(each, hint)]
            tried.append(TriedScope(scope=scope.text, share=share, threshold=limit, candidates=len(found)))
            if found:
                return self._decided(found, tried, {*never_ask, *hint})
        return Identification(index=str(self.index.ref), status="unknown", tried=tried)

    def _decided(
        self, candidates: Sequence[_Candidate], tried: list[TriedScope], not_asked: set[str]
    ) -> Identification:
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
                {name: each.values(name) for name in self._attributes if name not in not_asked}
                for each in candidates
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
        fmr: float = 0.001,
        threshold: float | None = None,
    ) -> Verification:
        """Decide whether two images show the same identity, or one image an enrolled identity.

        Args:
            probe: (D,) float32, unit length.
            other: another such vector, or an identity: then the most similar of all its images counts.
            embedder: fingerprint of what embedded both.
            fmr: false-match rate: share of the impostors who are taken for the other.
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
        limit = None if threshold is None else _checked_threshold(threshold)
        if limit is None:
            self._require_thresholds("Comparing")
            fmr = _checked_rate("fmr", fmr, usual=0.001)
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

    def by_identity(
        self,
        probe: NDArray[np.float32],
        k: int,
        *,
        embedder: str,
        where: Where = None,
        grouping: str = "best",
        exclude_id: str | None = None,
    ) -> list[IdentityHit]:
        """The k most similar identities.

        Args:
            probe: (D,) float32, unit length.
            k: identities.
            embedder: fingerprint of what embedded it.
            where: a filter that their images must satisfy.
            grouping: "best": an identity is as similar as its most similar image, which alone is listed;
                "mean": as the mean of its images, of the identities whose best image is among the 64 first or
                four times k; "all": as its most similar image, and all its images are listed.
            exclude_id: an item that is no answer, such as the probe itself.
        """
        k = _checked_count(k)
        if grouping not in GROUPINGS:
            raise InvalidSetting(f"grouping must be one of {', '.join(GROUPINGS)}; got {grouping!r}.")
        wanted = k if grouping != "mean" else max(4 * k, _IDENTITIES_AT_LEAST)
        excluded = None if exclude_id is None else [exclude_id]
        size, groups = max(4 * wanted, _FIRST_ANSWERS), {}
        while True:
            result = self.index.search(
                probe[None], size, embedder=embedder, where=where, exclude_ids=excluded
            )
            groups = _by_identity(result.answers[0])
            if len(groups) >= wanted or len(result.answers[0]) < size:
                break
            size *= 4
        chosen = list(groups)[:wanted]
        if grouping != "best" and chosen and self._has_labels:
            members = In(column="label", values=tuple(chosen))
            within = [members, *_several(where)]
            found = self.index.search(
                probe[None],
                self.index.ref.rows,
                embedder=embedder,
                where=within,
                exclude_ids=excluded,
            )
            groups = _by_identity(found.answers[0])
        hits = [_hit(groups[identity], grouping) for identity in chosen]
        return sorted(hits, key=lambda hit: -hit.similarity)[:k]

    def _candidates(
        self, probe: NDArray[np.float32], embedder: str, scope: _Scope, threshold: float
    ) -> list[_Candidate]:
        """The identities in a scope that reach its threshold, the most similar first."""
        if not scope.identities:
            return []
        size = _FIRST_ANSWERS
        while True:
            result = self.index.search(probe[None], size, embedder=embedder, where=scope.filter)
            answers = [answer for answer in result.answers[0] if answer.similarity >= threshold]
            if len(answers) < size or size >= _MOST_ANSWERS:
                return list(_by_identity(answers).values())
            size *= 4

    def _similarities(self, probe: NDArray[np.float32], identity: str, embedder: str) -> list[float]:
        """To each image of an identity."""
        if not self._has_labels:
            return [float(probe @ self.index.vectors_of([identity])[0])]
        if not self._columns["label"].has([identity])[0]:
            near, _ = self._columns["label"].near(identity)
            raise MissingArtifact(
                f"An identity must be a label of index {self.index.ref}; {identity!r} is not."
                f"{did_you_mean(identity, map(str, near))}"
            )
        where = Compare(column="label", operator="=", value=identity)
        found = self.index.search(probe[None], self.index.ref.rows, embedder=embedder, where=where)
        return [answer.similarity for answer in found.answers[0]]

    def _scope(self, where: Where) -> _Scope:
        filter = None if where == "" else check(where, self._columns, refuse_absent=False)
        text = scope_text(filter)
        known = self._scopes if len(self._scopes) < _SCOPES_REMEMBERED else {}
        if text not in known:
            rows = (
                slice(None)
                if filter is None
                else matching_rows(self.index.items, filter, refuse_absent=False)
            )
            scope = _Scope(text, filter, len(np.unique(self._identities[rows])))
            self._scopes = {**known, text: scope}  # a new one: other threads may read the former
            return scope
        return known[text]

    def _threshold(self, scope: _Scope, share: float) -> float | None:
        """None: nobody is in the scope, so that it needs none."""
        assert self.thresholds is not None
        if not scope.identities:
            return None
        column = column_of(scope.filter)
        return threshold_for(self.thresholds, scope.text, column, scope.identities, share).similarity

    def _share(self, fpir: float | None, num_scopes: int) -> float:
        thresholds = self._require_thresholds("Identifying")
        fpir = thresholds.fpir if fpir is None else _checked_rate("fpir", fpir, usual=0.01)
        return fpir / num_scopes

    def _require_thresholds(self, what: str) -> Thresholds:
        if self.thresholds is None:
            raise MissingArtifact(
                f"{what} needs calibrated thresholds; index {self.index.ref} has none. Do: dml calibrate "
                f"{self.index.ref.name}, or give a threshold."
            )
        return self.thresholds

    def _checked_hint(self, hint: Mapping[str, Any]) -> dict[str, Any]:
        if not isinstance(hint, Mapping):
            raise InvalidSetting(
                f'hint must be attribute to value; got {type(hint).__name__}. Pass {{"region": "east"}}.'
            )
        self._require_attributes(list(hint), "hint")
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

    @property
    def _has_labels(self) -> bool:
        return "label" in self.index.items.column_names

    @cached_property
    def _identities(self) -> NDArray[np.int64]:
        """(N,) the identity of each item, numbered."""
        if not self._has_labels:
            return np.arange(self.index.ref.rows)
        encoded = self.index.items["label"].combine_chunks().dictionary_encode()
        identities: NDArray[np.int64] = encoded.indices.fill_null(-1).to_numpy().astype(np.int64)
        return identities


def _checked_list(name: str, values: object, example: str) -> list[Any]:
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidSetting(f"{name} must be a list; got {values!r}. Pass [{example}].")
    return list(values)


def _checked_count(k: object) -> int:
    if isinstance(k, bool) or not isinstance(k, Integral) or k < 1:
        raise InvalidSetting(f"k must be a whole number, 1 or more; got {k!r}.")
    return int(k)


def _checked_rate(name: str, value: object, *, usual: float) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= 0.5:
        raise InvalidSetting(f"{name} must be a number in (0, 0.5]; got {value!r}. {usual} is usual.")
    return float(value)


def _checked_threshold(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, Real) or not -1 <= float(value) <= 1:
        raise InvalidSetting(f"threshold must be a cosine, in [-1, 1]; got {value!r}. Pass 0.6, for example.")
    return float(value)


def separating_attribute(candidates: Sequence[Mapping[str, frozenset[Any]]]) -> str | None:
    """The attribute whose values tell the candidates apart best: that of the highest entropy.

    Args:
        candidates: of each its attributes and what they are.

    Returns:
        None where no attribute that all of them have differs. The first of equally good ones.

    Example:
        >>> suffix, region = "phone_suffix", "region"
        >>> separating_attribute([
        ...     {region: frozenset(["east"]), suffix: frozenset(["1234"])},
        ...     {region: frozenset(["east"]), suffix: frozenset(["9876"])},
        ... ])
        'phone_suffix'
    """
    best, name_of_best = 0.0, None
    for name in candidates[0]:
        values = [each[name] for each in candidates]
        if not all(values):
            continue
        shares = [count / len(values) for count in Counter(values).values()]
        entropy = -sum(share * math.log(share) for share in shares)
        if entropy > best + 1e-12:
            best, name_of_best = entropy, name
    return name_of_best


def _fits(candidate: _Candidate, hint: Mapping[str, Any]) -> bool:
    """Whether it has, in one image or another, each value of the hint."""
    return all(
        any(_alike(value, wanted) for value in candidate.values(name)) for name, wanted in hint.items()
    )


def _alike(value: Any, wanted: Any) -> bool:
    """Whether a value is the one wanted, which may be written as text."""
    if isinstance(value, bool):
        return str(value).lower() == str(wanted).strip().lower()
    if isinstance(value, int | float):
        try:
            return float(value) == float(wanted)
        except (TypeError, ValueError):
            return False
    return str(value).strip() == str(wanted).strip()


def _by_identity(answers: Sequence[Answer]) -> dict[str, _Candidate]:
    """Candidates in the order of their best answer; an item without a label is an identity of its own."""
    groups: dict[str, _Candidate] = {}
    for answer in answers:
        identity = answer.id if answer.label is None else answer.label
        groups.setdefault(identity, _Candidate(identity, [])).answers.append(answer)
    return groups


def _several(where: Where) -> list[Any]:
    if where is None:
        return []
    return list(where) if isinstance(where, Sequence) and not isinstance(where, str) else [where]


def _hit(candidate: _Candidate, grouping: str) -> IdentityHit:
    similarities = [answer.similarity for answer in candidate.answers]
    listed = candidate.answers if grouping == "all" else candidate.answers[:1]
    similarity = sum(similarities) / len(similarities) if grouping == "mean" else similarities[0]
    return IdentityHit(
        identity=candidate.identity,
        similarity=round(similarity, 6),
        images=[
            ImageHit(id=answer.id, similarity=round(answer.similarity, 6), attributes=answer.attributes)
            for answer in listed
        ],
    )
