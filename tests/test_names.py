"""Valid and invalid names of datasets, models and indexes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dml.errors import InvalidSetting
from dml.names import check_name, is_version, split_version, suggest_name, versioned


@pytest.mark.parametrize("name", ["shop", "cub200-2011", "a.b_c-d", "x", "d-2024"])
def test_a_valid_name_is_returned_unchanged(name):
    assert check_name(name) == name
    assert split_version(name) == (name, None)
    assert versioned(name, None) == name
    assert versioned(name, "0123456789ab") == f"{name}@0123456789ab"
    assert split_version(versioned(name, "0123456789ab")) == (name, "0123456789ab")


@pytest.mark.parametrize(
    "text", ["shop@", "shop@..", "shop@../../x", "shop@a/b", "shop@a@b", "shop@.x", "shop@A"]
)
def test_an_invalid_version_is_refused(text):
    with pytest.raises(InvalidSetting, match="A version must be"):
        split_version(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("My Shop (2)", "my-shop-2"),
        ("2024", "d-2024"),
        ("../..", None),
        ("", None),
        ("Omniglot_v1", "omniglot_v1"),
    ],
)
def test_a_text_suggests_a_name(text, name):
    assert suggest_name(text) == name


def test_a_name_and_a_version_have_at_most_a_hundred_characters():
    assert check_name("a" * 100) == "a" * 100
    with pytest.raises(InvalidSetting, match="at most 100 in all"):
        check_name("a" * 101)
    assert is_version("a" * 100)
    assert not is_version("a" * 101)


@given(st.text(max_size=150))
def test_a_suggested_name_is_valid(text):
    suggested = suggest_name(text)
    assert suggested is None or check_name(suggested) == suggested


@given(st.text(max_size=20))
def test_no_name_leaves_its_folder(text):
    try:
        name = check_name(text)
    except InvalidSetting:
        return
    assert "/" not in name
    assert not name.startswith(".")
