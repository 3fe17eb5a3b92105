"""What is printed is what the data says: no markup, no control characters obeyed, nothing cut."""

import json
import re
import sys
import time

import pytest

from dml.cli.output import print_json, print_table, stdout, visible
from tests.cli.conftest import BRANDS, LABELS


def test_a_long_answer_has_a_line_per_row_and_is_printed_at_once(capsys):
    rows = [{"id": f"item\n{n}", "similarity": 1 - n / 1e6, "price": n if n else None} for n in range(50_000)]
    began = time.process_time()
    print_table("answers", rows)
    assert time.process_time() - began < 5  # laid out by Rich: 17
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 50_002
    assert lines[3].split() == [r"item\n1", "1", "1"]
    assert lines[0] == "answers"


def flat(text):
    """Without the table's lines and folds."""
    return re.sub(r"[\s│┃]", "", text)


@pytest.mark.parametrize("text", [*LABELS, *BRANDS])
def test_a_label_or_attribute_is_printed_as_it_is(dml, store, query, text):
    done = dml("search", query, "--store", store, "-k", "14")
    assert done.status == 0, done.err
    assert flat(visible(text)) in flat(done.out)
    assert "\x1b" not in done.out


def test_a_long_id_is_folded_and_not_cut(dml, store, query):
    done = dml("search", query, "--store", store, "-k", "14")
    assert max(map(len, done.out.splitlines())) <= 160
    assert done.out.count("-very") + done.out.count("long") > 0
    letters = [line.split("│")[1].strip() for line in done.out.splitlines() if line.startswith("│")]
    assert "[3]" + "-very-long" * 30 in "".join(letters)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred", r"\x1b[31mred"),
        ("two\nlines\r\t", r"two\nlines\r\t"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\x9b31m", r"\x9b31m"),
        ("line\u2028line", r"line\u2028line"),
        ("\udc80", r"\udc80"),
        ("plain: café ‍ 日本　語 \\n", "plain: café ‍ 日本　語 \\n"),
    ],
)
def test_control_characters_are_shown_and_letters_of_any_alphabet_stay(text, shown):
    assert visible(text) == shown


def test_titles_columns_and_emoji_codes_are_no_markup(capsys):
    print_table("of [red]this[/red]", [{"[bold]column": ":smile: [/nothing]"}])
    printed = capsys.readouterr().out
    assert "of [red]this[/red]" in printed
    assert "[bold]column" in printed
    assert ":smile: [/nothing]" in printed


def test_an_error_shows_control_characters_of_what_was_typed(dml, store):
    done = dml("search", "x.png", "--index", "\x1b[31mred", "--store", store)
    assert done.status == 2
    assert "\x1b" not in done.err


def test_a_table_wider_than_the_screen_is_turned_where_it_has_few_lines(capsys):
    metrics = {f"metric_{number}": "0.325 [0.250, 0.400]" for number in range(9)}
    print_table("judged", [{"embedding": "raw pixels", **metrics}, {"embedding": "trained", **metrics}])
    lines = capsys.readouterr().out.splitlines()
    assert [cell.strip() for cell in lines[2].strip("┃").split("┃")] == ["embedding", "raw pixels", "trained"]
    assert len(lines) == 1 + 3 + 9 + 1
    print_table("judged", [{"id": str(number), **metrics} for number in range(20)])
    assert "metric_8" in capsys.readouterr().out


def test_an_empty_table_says_so(capsys):
    print_table("datasets", [])
    assert capsys.readouterr().out == "datasets: none\n"


def test_numbers_that_json_has_no_word_for_are_null(capsys):
    stdout.set(sys.stdout)
    print_json({"metrics": {"nmi": float("nan"), "map": 0.5}, "values": [float("inf"), 1, "NaN"]})
    strict = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert strict == {"metrics": {"nmi": None, "map": 0.5}, "values": [None, 1, "NaN"]}
