"""Calibrated thresholds of an index version, read from the store: a scope and an FPIR in, its threshold out.

They are an artefact of their own, in the store's `thresholds/`, found by the index's version: calibrating
changes nothing in a published index. `dml.retrieval.calibration` makes them.
"""

import shlex
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dml import storage
from dml.errors import IncompatibleArtifact, InvalidSetting, MissingArtifact
from dml.refs import IndexRef, ThresholdsRef
from dml.retrieval.filters import Compare, Filter
from dml.retrieval.tails import MIN_PAIRS_BEYOND, ImpostorTail

_FOLDER, _FILE = "thresholds", "thresholds.json"
THRESHOLDS_FORMAT = 2
WHOLE_GALLERY = ""
"""The text of the scope that is the whole gallery."""


class ScopeTail(BaseModel):
    """The impostors inside a scope."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scope: str = Field(description="a filter; empty: the whole gallery")
    column: str | None = Field(
        description="of the filter `column = value`, whose values share a pooled tail; null: another filter"
    )
    identities: int
    tail: ImpostorTail | None = Field(description="null: too few pairs")
    meets_target: bool = Field(description="whether held-out probes met the target by this tail")
    refused: str = Field("", description="why nothing is promised for it; empty: something is")


class PooledTail(BaseModel):
    """The impostors inside all scopes of a column, pooled."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tail: ImpostorTail
    meets_target: bool = Field(
        description="whether held-out probes met the target, so that it may be below the gallery's"
    )


class Thresholds(BaseModel):
    """All tails of an index version, from which the threshold for any FPIR is computed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fpir: float = Field(description="of one identification, over all scopes that it tries")
    num_tries: int = Field(description="scopes over which it was split when it was checked")
    scopes: list[ScopeTail]
    pooled: dict[str, PooledTail] = Field(description="column to the tail of the scopes of its values")
    image_to_image: ImpostorTail | None
    image_to_identity: ImpostorTail | None

    def scope(self, text: str) -> ScopeTail | None:
        """The calibrated scope of a filter's canonical text."""
        return self._by_text.get(text)

    @cached_property
    def _by_text(self) -> dict[str, ScopeTail]:
        return {scope.scope: scope for scope in self.scopes}


@dataclass(frozen=True)
class ScopeThreshold:
    """The threshold of a scope."""

    similarity: float
    fpir: float
    basis: Literal["scope", "pooled"]
    beyond: int
    """Pairs of different identities beyond it, at most 1,000; before it was raised to the gallery's."""


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
    if calibrated is not None and calibrated.refused and fpir <= thresholds.fpir / thresholds.num_tries:
        raise InvalidSetting(calibrated.refused)
    what = f"scope {scope!r}" if scope else "the whole gallery"
    tail = None if calibrated is None else calibrated.tail
    pooled = None if column is None else thresholds.pooled.get(column)
    if tail is not None and calibrated is not None:
        similarity = tail.threshold(num_identities, fpir)
        if pooled is None:
            tail.supported_threshold(num_identities, fpir, what)
        if pooled is None or (calibrated.meets_target and tail.num_beyond(similarity) >= MIN_PAIRS_BEYOND):
            return ScopeThreshold(similarity, fpir, "scope", tail.num_beyond(similarity))
    if pooled is None and calibrated is not None and not num_identities:
        raise InvalidSetting(
            f"No item is in {what}, so it needs no threshold: `dml identify` passes it over."
        )
    if pooled is None:
        by = f" or --by {column}" if column else ""
        raise InvalidSetting(
            f"A threshold needs a calibrated scope; {what} is not, or has too few of its {num_identities} "
            f'identities. Do dml calibrate INDEX with --scope "{scope}"{by}, or give a threshold yourself.'
        )
    similarity = pooled.tail.supported_threshold(
        num_identities, fpir, f"{what}, with the other values of {column}"
    )
    beyond = pooled.tail.num_beyond(similarity)
    gallery = None if pooled.meets_target else thresholds.scope(WHOLE_GALLERY)
    if gallery is not None and gallery.tail is not None:
        similarity = max(similarity, gallery.tail.threshold(gallery.identities, fpir))
    if tail is not None:  # a scope of more similar people than the others, as far as its few pairs show
        similarity = max(similarity, tail.threshold(num_identities, fpir))
    if similarity >= 1:
        raise InvalidSetting(
            f"{what}: an FPIR of {fpir:.3g} among {num_identities} identities, by those few alone, needs a "
            f"threshold of {similarity:.3g}, which only copies reach. Enrol more of its identities and "
            "calibrate again, ask for a higher rate, or leave it out."
        )
    return ScopeThreshold(similarity, fpir, "pooled", beyond)


def column_of(filter: Filter | None) -> str | None:
    """The column of a scope `column = value`; None for any other."""
    return filter.column if isinstance(filter, Compare) and filter.operator == "=" else None


def scope_text(filter: Filter | None) -> str:
    """The name of a scope: its filter's canonical text."""
    return WHOLE_GALLERY if filter is None else str(filter)


def find_thresholds(store: str, index: IndexRef) -> Thresholds | None:
    """The thresholds of an index version; None: it was not calibrated.

    Raises:
        CorruptArtifact: its file is not the one that was published.
        IncompatibleArtifact: another version of this program made it.
    """
    uri = thresholds_uri(store, index)
    if not storage.is_complete(uri):
        return None
    storage.verify_opened(uri)
    manifest = storage.read_manifest(uri)
    format_, asked = manifest.get("format", 1), manifest.get("ref", {})
    try:
        if format_ == THRESHOLDS_FORMAT:
            return Thresholds.model_validate(storage.read_json(storage.join(uri, _FILE)))
    except ValidationError as error:
        format_ = f"a field {'.'.join(map(str, error.errors()[0]['loc']))} that is not of it"
    again = [f"--fpir {asked.get('fpir', 0.01):g}"]
    again += [f"--scope {shlex.quote(scope)}" for scope in asked.get("scopes", [])]
    again += [f"--by {shlex.quote(column)}" for column in asked.get("by", [])]
    raise IncompatibleArtifact(
        f"Thresholds must have format {THRESHOLDS_FORMAT} for this program; those of {index} have {format_}. "
        f"Calibrate again: dml calibrate {index} {' '.join(again)}."
    )


def find_thresholds_ref(store: str, index: IndexRef) -> ThresholdsRef | None:
    """Where the thresholds of an index version are, and for which FPIR; None: it was not calibrated."""
    uri = thresholds_uri(store, index)
    return ThresholdsRef(uri=uri, **storage.read_manifest(uri)["ref"]) if storage.is_complete(uri) else None


def thresholds_uri(store: str, index: IndexRef) -> str:
    """Where the thresholds of an index version are, or would be."""
    return storage.join(store, _FOLDER, index.version)


def remove_thresholds(store: str, index: IndexRef) -> None:
    """Remove the thresholds of an index version; the next version is not calibrated alike any more.

    Raises:
        MissingArtifact: it was not calibrated.
    """
    uri = thresholds_uri(store, index)
    if not storage.is_complete(uri):
        raise MissingArtifact(f"Index {index} has no thresholds to remove; it was not calibrated.")
    storage.remove(uri)


def save_thresholds(ref: ThresholdsRef, thresholds: Thresholds) -> None:
    """Publish thresholds; they replace those that the index version had."""
    with storage.staged(ref.uri) as staged:
        storage.write_json(storage.join(staged, _FILE), thresholds.model_dump(mode="json"))
        if storage.is_complete(ref.uri):
            storage.remove(ref.uri)
        storage.publish(
            staged,
            ref.uri,
            {"ref": ref.model_dump(mode="json", exclude={"uri"}), "format": THRESHOLDS_FORMAT},
        )
