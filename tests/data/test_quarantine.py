"""Quarantine: what is counted as a row, how reasons are summed up, and a table that shows damage."""

import pytest

from dml import storage
from dml.data.quarantine import (
    count_refusals,
    read_quarantine,
    refused_rows,
    require_few,
    summarize_problems,
    write_quarantine,
)
from dml.data.sources.sample import NO_ROWS, Problem
from dml.errors import CorruptArtifact, MissingArtifact, TooManyRefused


def problem(reason: str, *, id_: str = "a", locator: str = "", detail: str = "why") -> Problem:
    return Problem(id_, "cat", locator, reason, detail)


@pytest.mark.parametrize("reason", sorted(NO_ROWS))
@pytest.mark.parametrize(
    ("others", "listed", "counted"),
    [(1, 4, (1, 3)), (2, 4, (1, 2)), (3, 5, (4, 5)), (0, 0, (1, 0))],
    ids=["few", "exactly half", "most", "none"],
)
def test_other_files_are_no_rows_unless_they_are_more_than_half(reason, others, listed, counted):
    problems = [problem("too large"), *[problem(reason)] * others]
    assert refused_rows(problems, listed) == counted


@pytest.mark.parametrize(("refused", "fits"), [(0, True), (1, True), (2, False)])
def test_exactly_the_allowed_share_is_still_allowed(refused, fits):
    problems = [problem("too large")] * refused

    def check() -> None:
        require_few(problems, 20, 0.05, source="images", table="q.parquet")

    if fits:
        check()
    else:
        with pytest.raises(TooManyRefused, match=r"At most 0\.05 .* 2 of the 20 of images are: 2 too large"):
            check()


def test_reasons_come_by_their_frequency_and_then_by_name_with_the_first_as_an_example():
    problems = [
        problem("c", id_="2"),
        problem("b", id_="3", detail="late"),
        problem("b", id_="1", detail="early"),
        problem("a", id_="4"),
    ]
    actual = [(each.reason, each.rows, each.example) for each in count_refusals(problems)]
    assert actual == [("b", 2, "1: early"), ("a", 1, "4: why"), ("c", 1, "2: why")]
    assert summarize_problems(problems) == "2 b (1: early); 1 a (4: why); 1 c (2: why)"


@pytest.mark.parametrize(
    ("locator", "shown"),
    [
        ("", "a"),
        ("images/a#1?.png", "images/a#1?.png"),
        ("https://host/a.png?signature=secret", "https://host/a.png"),
        ("caf\udce9.png", "caf\\udce9.png"),
    ],
)
def test_an_example_says_where_it_is_and_no_secret(locator, shown):
    (refusal,) = count_refusals([problem("x", locator=locator)])
    assert refusal.example == f"{shown}: why"


def test_the_table_holds_every_problem_in_an_order_of_its_own_and_shows_damage(tmp_path):
    uri = str(tmp_path / "q.parquet")
    with pytest.raises(MissingArtifact):
        read_quarantine(uri)
    problems = [*[problem("b")] * 3, problem("a", locator="images/17.png")]
    write_quarantine(uri, problems[::-1])
    assert read_quarantine(uri) == problems
    content = storage.read_bytes(uri)
    place = content.index(b"images/17.png")  # on its page, before the statistics in the footer
    storage.write_bytes(uri, content[:place] + b"images/71.png" + content[place + 13 :])
    with pytest.raises(CorruptArtifact, match="ingest the source again"):
        read_quarantine(uri)
