"""One rule says what a label may be, wherever it enters."""

import pytest

from dml.errors import InvalidSetting
from dml.labels import checked_label

UNUSABLE = {
    "two\nlines": r"got U\+000A",
    "two\r\nlines": r"got U\+000D",
    "a\tb": r"got U\+0009",
    "red\x1b[31m": r"got U\+001B",
    "a\x7fb": r"got U\+007F",
    "a\x85b": r"got U\+0085",
    "a\x9bb": r"got U\+009B",
    "a\u2028b": r"got U\+2028",
    "a\u2029b": r"got U\+2029",
    "a\0b": "in Unicode without NUL",
    "half \ud83d": "in Unicode without NUL",
    "b" * 1001: "at most 1000 characters; got 1001",
    "\U0001f600" * 1025: "at most 4096 bytes",
    "": "a text that is not empty",
    " \t\n": "a character that is no space",
    "\u200b\ufeff": "a character that is no space",
}


@pytest.mark.parametrize(("label", "message"), UNUSABLE.items(), ids=ascii)
def test_a_label_that_no_line_can_show_is_refused(label, message):
    with pytest.raises(InvalidSetting, match=f"A label must .*{message}"):
        checked_label("A label", label)


@pytest.mark.parametrize(
    ("label", "kept"),
    [
        (" red shoe\n", "red shoe"),
        ("cafe\u0301", "caf\u00e9"),
        ("\ufeff\u65e5\u672c\u200b", "\u65e5\u672c"),
        ("b" * 1000, "b" * 1000),
    ],
)
def test_a_label_is_kept_without_outer_space_in_form_nfc(label, kept):
    assert checked_label("A label", label) == kept
