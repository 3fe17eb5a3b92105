"""Results of identifications, verifications and calibrations."""

from typing import Literal

from pydantic import Field

from dml.refs import ThresholdsRef
from dml.reports.faces import FaceBox
from dml.reports.result import PartialResult, Result


class TriedScope(Result):
    """A part of the gallery that an identification looked into."""

    scope: str = Field(description="a filter; empty: the whole gallery")
    share: float | None = Field(description="of the FPIR; null: the threshold was given")
    threshold: float | None = Field(description="similarity; null: nobody is in the scope")
    candidates: int = Field(description="identities at or above it, whom the hint allows")


class Identification(Result):
    """Whose image a probe is, of those enrolled, or nobody's."""

    index: str = Field(description="NAME@VERSION")
    status: Literal["identified", "unknown", "needs_hint", "undecided"] = Field(
        description='"needs_hint": several could be, and `ask` tells them apart; "undecided": nothing does'
    )
    identity: str | None = Field(None, description="the label; of items without labels the id")
    similarity: float | None = Field(None, description="of its most similar image")
    id: str | None = Field(None, description="of that image")
    scope: str | None = Field(None, description="the filter of the scope that decided; null: none did")
    ask: str | None = Field(None, description="the attribute to ask for; never a value of it")
    tried: list[TriedScope] = Field(description="in order")


class Verification(Result):
    """Whether two images show the same identity, or an image an enrolled identity."""

    index: str = Field(description="NAME@VERSION")
    same: bool
    similarity: float = Field(description="cosine; of the most similar image of an identity")
    threshold: float
    fmr: float | None = Field(description="false-match rate of the threshold; null: it was given")
    identity: str | None = Field(description="null: the other is an image")
    images: int = Field(description="with which the image was compared")


class IdentifiedFace(FaceBox, Identification):
    """Who one face of a picture is."""


class IdentifiedFaces(Result):
    """Who each face of a picture is."""

    index: str = Field(description="NAME@VERSION")
    faces: list[IdentifiedFace] = Field(description="the largest first; empty: the picture shows none")


class VerifiedFace(FaceBox, Verification):
    """Whether one face of a picture is the other image's or identity's."""


class VerifiedFaces(Result):
    """Whether a picture shows the other image's or identity's face among its faces."""

    index: str = Field(description="NAME@VERSION")
    same: bool = Field(description="whether one of the faces is")
    faces: list[VerifiedFace] = Field(description="the largest first; empty: the picture shows none")


class CheckedFpir(Result):
    """The false-positive identification rate of a threshold, on identities that did not set it."""

    fpir: float = Field(description="probes with a candidate, though none of them is enrolled")
    low: float = Field(description="of the 95 % interval, which counts identities and not images")
    high: float
    probes: int
    identities: int = Field(description="of the probes")
    enrolled: int = Field(description="identities that they were searched among, at most")

    def __str__(self) -> str:
        return f"{100 * self.fpir:.2f} % [{100 * self.low:.2f}, {100 * self.high:.2f}] of {self.probes}"


_SHOWN_SCOPES = 20


class CalibratedScope(Result):
    """A scope's threshold, and how it did on identities that took no part in setting it."""

    scope: str = Field(description="a filter; empty: the whole gallery")
    identities: int = Field(description="enrolled in it")
    share: float = Field(description="its share of the false-positive identification rate")
    threshold: float | None = Field(None, description="similarity; null: none is promised")
    basis: Literal["scope", "pooled"] | None = Field(
        None, description="which impostors: those inside the scope, or those inside all scopes of its column"
    )
    beyond: int | None = Field(
        None, description="pairs of different identities at least so similar; at most 1,000 are counted"
    )
    checked: CheckedFpir | None = None
    refused: str = Field("", description="why nothing is promised; empty: something is")


class CalibrationReport(PartialResult):
    """The thresholds of an index version: the whole gallery first, then its scopes."""

    thresholds: ThresholdsRef
    scopes: list[CalibratedScope]

    @property
    def num_promised(self) -> int:
        """Scopes with a threshold."""
        return sum(not scope.refused for scope in self.scopes)

    @property
    def shown(self) -> list[CalibratedScope]:
        """The scopes for people: all; or those that were named, and of the values of columns those with the
        most and the fewest identities."""
        num_named = 1 + len(self.thresholds.scopes)
        named, by_value = self.scopes[:num_named], self.scopes[num_named:]
        if len(by_value) <= _SHOWN_SCOPES:
            return self.scopes
        ordered = sorted(by_value, key=lambda scope: -scope.identities)
        half = _SHOWN_SCOPES // 2
        return [*named, *ordered[:half], *ordered[-half:]]

    @property
    def summary(self) -> str:
        """What holds of all scopes, where not all are shown; else empty."""
        if len(self.shown) == len(self.scopes):
            return ""
        half, num_refused = _SHOWN_SCOPES // 2, len(self.scopes) - self.num_promised
        limits = [s.threshold for s in self.scopes if not s.refused and s.threshold is not None]
        between = f" from {min(limits):.4f} to {max(limits):.4f}" if limits else ""
        return (
            f"the {half} values with the most identities and the {half} with the fewest; of all "
            f"{len(self.scopes):,} scopes {self.num_promised:,} have a threshold{between}, "
            f"{num_refused:,} have none"
        )

    def table(self) -> list[dict[str, str | int | float]]:
        """One row per scope that is shown."""
        return [
            {
                "scope": each.scope or "the whole gallery",
                "identities": each.identities,
                "threshold": "none" if each.refused or each.threshold is None else round(each.threshold, 4),
                "tail": each.basis or "",
                "pairs beyond": "" if each.beyond is None else each.beyond,
                "FPIR wanted": f"{100 * each.share:.3g} %",
                "checked": "" if each.checked is None else str(each.checked),
            }
            for each in self.shown
        ]


class EnrolmentReport(Result):
    """What an enrolment has done."""

    index: str = Field(description="NAME@VERSION")
    identity: str
    ids: list[str] = Field(description="of its items, in the order they were given")
    revision: int = Field(description="of the gallery, at which they are found")
    delta: int = Field(description="items that were enrolled or changed since the index was built")
    tombstones: int = Field(description="items of the index that were forgotten or changed since")
