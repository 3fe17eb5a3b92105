"""Sections shared by several pages: a gallery with its table, and verification."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dml.metrics.verification import OperatingPoint, RocCurve
from dml.report import style
from dml.report.gallery import GalleryRow, draw_gallery, gallery_html
from dml.report.page import Picture, Section

VERIFICATION = "Same or not: similarities and thresholds"


@dataclass(frozen=True)
class GalleryText:
    """Texts of a gallery section, with and without queries."""

    title: str
    text: str
    if_empty: str


def gallery_section(
    name: str,
    words: GalleryText,
    queries: Sequence[int],
    rows_of: Callable[[Sequence[int]], Sequence[GalleryRow]],
    shown: str,
    table: Iterable[Mapping[str, Any]],
) -> Section:
    """A picture of queries and their answers, and a table line for each.

    Args:
        name: of the picture.
        words: what to say.
        queries: to show; where there are none the section is `words.if_empty` alone.
        rows_of: the gallery's rows for them.
        shown: what a row of it is.
        table: a line per query, in the gallery's order; or none.
    """
    if not queries:
        return Section(words.title, words.if_empty)
    caption = f"{words.title}: {shown}; ✓ green is right, ✗ red is wrong"
    lines = [{"query": number, **row} for number, row in enumerate(table, start=1)]
    rows = rows_of(queries)
    picture = Picture(name, draw_gallery(rows), caption)
    return Section(words.title, words.text, [picture], lines, html=gallery_html(rows))


def no_pairs() -> Section:
    """The section of a split without genuine or without impostor pairs."""
    return Section(
        VERIFICATION, "Verification needs genuine and impostor pairs; this split does not have both."
    )


def every_pair(curve: RocCurve) -> str:
    """A text that says which pairs are counted."""
    return (
        f"All {int(curve.genuine[-1] + curve.impostor[-1]):,} pairs of different items. A pair is accepted "
        "where its similarity is at least the threshold; a rate's threshold is the lowest that keeps it."
    )


def threshold_row(rate: float, point: OperatingPoint | None, num_impostor: int) -> dict[str, Any]:
    """A false-accept rate's line of a table; without a point, why there is none."""
    if point is None:
        why = f"none: the most similar of {num_impostor:,} negative pairs is already too many"
        return {"false accepts": style.rate_text(rate), "threshold": why}
    low, high = point.true_accept_interval.low, point.true_accept_interval.high
    return {
        "false accepts": style.rate_text(rate),
        "threshold": point.threshold,
        "true accepts": f"{point.true_accept_rate:.3f} [{low:.3f}, {high:.3f}]",
        "false accepts it really gives": f"{point.false_accept_rate:.2g}",
    }
