"""ISO times in columns of text: `2026-01-01`, `2026-01-01T12:30`, `2026-01-01 12:30:05.5Z`."""

import re

import pyarrow as pa
import pyarrow.compute as pc

_KINDS = tuple(pa.timestamp(unit, zone) for unit in ("us", "ns") for zone in (None, "UTC"))
"""Microseconds reach from year 1 to 9999; pandas writes nanoseconds, which reach from 1677 to 2262."""
TIME = r"^\d{4}-\d\d-\d\d([T ]\d\d(:?\d\d(:?\d\d(\.\d{1,9})?)?)?(Z|[+-]\d\d(:?\d\d)?)?)?$"
"""A text that is a time, for RE2 and for `re`, but for the days that a month does not have."""
_DAY = re.compile(r"\d{4}-\d\d-\d\d")


def times_of(texts: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The times that a column of text holds: timestamps, missing where the text is.

    Their type has the zone UTC where the texts name zones, and none where they name none.

    Returns:
        None: some text is no time, or some name a zone and others do not.
    """
    filled = pc.if_else(pc.equal(texts, ""), pa.scalar(None, texts.type), texts)
    for kind in _KINDS:
        try:
            return pc.cast(filled, kind)
        except pa.ArrowInvalid:
            continue
    return None


def time_of(text: str, kind: pa.TimestampType) -> pa.Scalar | None:
    """A time to compare with those of a column; without a zone it is in the column's.

    Args:
        text: the time.
        kind: the type of the column's times, of `times_of`.

    Returns:
        None: the text is no time, names a zone where the column's times have none, or is finer than they are.
    """
    midnight = f"{text}T00:00" if _DAY.fullmatch(text) else text
    for spelt in (midnight, f"{midnight}Z") if kind.tz else (midnight,):
        try:
            return pa.scalar(spelt).cast(kind)
        except pa.ArrowInvalid:
            continue
    return _clamped(text, kind) if kind.unit == "ns" else None


def _clamped(text: str, kind: pa.TimestampType) -> pa.Scalar | None:
    """Before all or after all nanoseconds that there are: the first or the last of them."""
    time = time_of(text, pa.timestamp("us", kind.tz))
    if time is None:
        return None
    return pa.scalar(-(2**63) + 1 if time.value < 0 else 2**63 - 1, pa.int64()).cast(kind)
