"""Quarantine: the samples that cannot become rows, counted by reason, written to a table, limited in number.

`STORE/quarantine/NAME.parquet` is the table of a dataset's latest ingest, successful or not. A published
version also contains its table, as `quarantine.parquet`.
"""

import io
from collections.abc import Sequence

import pyarrow as pa
from pyarrow import parquet

from dml import storage
from dml.data.schema import QUARANTINE_SCHEMA
from dml.data.sources.access import without_query
from dml.data.sources.sample import NO_ROWS, Problem
from dml.errors import TooManyRefused
from dml.reports import Refusal

QUARANTINE = "quarantine.parquet"


def latest_quarantine(store: str, name: str) -> str:
    """The URI of the quarantine table of a dataset's latest ingest."""
    return storage.join(store, "quarantine", f"{name}.parquet")


def write_quarantine(uri: str, problems: Sequence[Problem]) -> None:
    """Write the table of problems, sorted."""
    rows = [
        {name: _as_utf8(value) for name, value in problem._asdict().items()} for problem in sorted(problems)
    ]
    table = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows, schema=QUARANTINE_SCHEMA), table, write_page_checksum=True)
    storage.write_bytes(uri, table.getvalue())


def read_quarantine(uri: str) -> list[Problem]:
    """Read the table; raises MissingArtifact if there is none, CorruptArtifact if it is damaged."""
    content = io.BytesIO(storage.read_bytes(uri))
    with storage.reading(uri, "Restore it from a copy, or ingest the source again."):
        table = parquet.read_table(content, page_checksum_verification=True)
    return [Problem(**row) for row in table.to_pylist()]


def count_refusals(problems: Sequence[Problem]) -> list[Refusal]:
    """Each reason with its count and one example, the most frequent first."""
    by_reason: dict[str, list[Problem]] = {}
    for problem in sorted(problems):
        by_reason.setdefault(problem.reason, []).append(problem)
    counted = sorted(by_reason.items(), key=lambda item: (-len(item[1]), item[0]))
    return [Refusal(reason=reason, rows=len(same), example=example_of(same[0])) for reason, same in counted]


def example_of(problem: Problem) -> str:
    """Where it is, and what is wrong with it."""
    return _as_utf8(f"{_shown(problem)}: {problem.detail}")


def _as_utf8(text: str) -> str:
    """The text with bytes that are not UTF-8 escaped; a path on Linux can contain any bytes."""
    return text.encode(errors="backslashreplace").decode()


def _shown(problem: Problem) -> str:
    """The problem's locator or id; a URL without its query, which may be signed."""
    location = problem.locator or problem.id
    return without_query(location) if "://" in location else location


def refused_rows(problems: Sequence[Problem], num_listed: int) -> tuple[int, int]:
    """The number of refused rows of a source, and the number of its rows.

    Other files, empty folders and the like do not count as rows, unless they are the majority: then the
    source is not a source of images.

    Args:
        problems: the refused entries.
        num_listed: all entries that the source lists, including problems.
    """
    others = sum(problem.reason in NO_ROWS for problem in problems)
    if 2 * others > num_listed:
        others = 0
    return len(problems) - others, num_listed - others


def require_few(
    problems: Sequence[Problem], num_listed: int, most: float, *, source: str, table: str
) -> None:
    """Raise TooManyRefused if more than the fraction `most` of a source's rows is refused."""
    refused, rows = refused_rows(problems, num_listed)
    if refused and refused / rows > most:
        raise TooManyRefused(
            f"At most {most:.4g} of a source's rows may be refused (max_quarantined); "
            f"{refused} of the {rows} of {source} are: {summarize_problems(problems)}. "
            f"All of them are listed in {table}. Repair the source, or allow it: --set max_quarantined=1."
        )


def summarize_problems(problems: Sequence[Problem]) -> str:
    return "; ".join(f"{r.rows} {r.reason} ({r.example})" for r in count_refusals(problems))
