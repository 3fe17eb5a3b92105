"""docs/filters.md: what it shows is read, and its errors are those that are printed."""

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest

from dml.errors import InvalidFilter
from dml.retrieval.filters import from_json, matching_rows, parse

PAGE = (Path(__file__).parents[3] / "docs" / "filters.md").read_text()
FENCED = re.compile(r"^```(\w*)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
BLOCKS = [block for language, block in FENCED.findall(PAGE) if not language]
PROSE = FENCED.sub("", PAGE)
CONDITIONS = PROSE[PROSE.index("| condition |") : PROSE.index("Join conditions")]
VALUES = [
    code
    for code in re.findall(r"`([^`]+)`", PROSE[PROSE.index("## Values") : PROSE.index("## Errors")])
    if "=" in code[1:-1]
]
ITEMS = pa.table(
    {
        "script": ["Greek", "Latin", "Old Norse"],
        "age": [20, 30, 40],
        "suffix": ["0123", "1234", None],
        "seen": ["2026-01-01", "2026-01-02", None],
    }
)


@pytest.mark.parametrize(
    "text",
    [*re.findall(r"`([^`]+)`", "".join(re.findall(r"^\| `.*? \|", CONDITIONS, re.MULTILINE))), *VALUES],
)
def test_every_condition_of_the_page_is_read(text):
    assert parse(str(parse(text))) == parse(text)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.rstrip().endswith("^")])
def test_every_error_of_the_page_is_what_its_filter_gives(block):
    text = block.splitlines()[1].removeprefix("  ")
    with pytest.raises(InvalidFilter) as refused:
        matching_rows(ITEMS, text)
    assert str(refused.value) == block.rstrip("\n")


def test_the_json_of_the_page_is_the_text_of_the_page():
    (tree,) = (json.loads(block) for block in BLOCKS if block.startswith("{"))
    assert from_json(tree) == parse(
        "region = 'east' and age between 20 and 40 and suffix in ('1234', '9876') "
        "and within(location, 30.2, 120.1, 5 km) and (nickname is null or not vip)"
    )
