"""The attribute to ask for, and whether a hint fits."""

import pytest

from dml.errors import InvalidSetting
from dml.retrieval.hints import check_hint, matches_hint, separating_attribute


def test_an_attribute_that_some_candidate_lacks_or_all_share_is_not_asked():
    def of(**values):
        return {name: frozenset([value] if value else []) for name, value in values.items()}

    candidates = [of(a="x", b="y", c="1"), of(a="x", b=None, c="2"), of(a="x", b="z", c="2")]
    assert separating_attribute(candidates) == "c"
    assert separating_attribute(candidates[1:]) is None


@pytest.mark.parametrize(
    ("values", "wanted", "fits"),
    [
        (["east", "west"], " west ", True),
        ([7], "7.0", True),
        ([7], "seven", False),
        ([True], "TRUE", True),
        ([], "east", False),
        ([2**53], str(2**53 + 1), False),
        ([2**53 + 1], str(2**53 + 1), True),
        ([0.1], "0.1", True),
    ],
    ids=str,
)
def test_a_hint_fits_where_one_image_has_its_value_as_text_or_by_its_type(values, wanted, fits):
    assert matches_hint({"attribute": frozenset(values)}, {"attribute": wanted}) is fits


@pytest.mark.parametrize(
    ("wanted", "kind", "what"),
    [
        ("seven", "integer", "a number"),
        ("nan", "number", "a number"),
        ("1", "boolean", "true or false"),
        (" ", "text", "a value"),
    ],
)
def test_a_hint_that_no_item_can_have_is_refused(wanted, kind, what):
    with pytest.raises(InvalidSetting, match=f"The hint age must be {what}; got"):
        check_hint("age", wanted, kind)
