"""One rule says which text is a number, wherever text becomes one."""

import math

import pytest

from dml.numbers import is_number, read_integer, read_number

NO_NUMBERS = [
    "1_000",
    "٣",
    "१२",
    "１２",
    "²",
    "−5",
    "1,5",
    "0x10",
    "1e",
    "e5",
    ".",
    "+",
    "",
    " ",
    "inf",
    "-Infinity",
    "nan",
    "1e999",
    "--1",
    "1 2",
    "1\u00a0",
    "\u2003 1",
    "True",
]


@pytest.mark.parametrize("text", NO_NUMBERS, ids=ascii)
def test_a_text_that_is_no_number_is_refused(text):
    assert not is_number(text)
    for read in (read_integer, read_number):
        with pytest.raises(ValueError, match="must be digits 0-9"):
            read(text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("12", 12), ("-3", -3), ("+4", 4), ("007", 7), (" 5\t", 5), ("-9223372036854775808", -(2**63))],
)
def test_a_whole_number_is_digits_with_a_sign(text, number):
    assert (read_integer(text), type(read_integer(text))) == (number, int)
    assert read_number(text) == number


@pytest.mark.parametrize(
    ("text", "number"),
    [("1.5", 1.5), ("-.5", -0.5), ("5.", 5.0), ("1e3", 1e3), ("2.5E-2\n", 0.025), ("-0", -0.0)],
)
def test_a_number_has_a_point_and_an_exponent_too(text, number):
    assert math.copysign(1, read_number(text)) == math.copysign(1, number)
    assert read_number(text) == number


@pytest.mark.parametrize("text", ["9223372036854775808", "1" * 5000, "1.0", "1e3"])
def test_what_no_64_bits_hold_or_has_a_point_is_no_whole_number(text):
    with pytest.raises(ValueError, match="A whole number must be digits 0-9, of at most 64 bits"):
        read_integer(text)
