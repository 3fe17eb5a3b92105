"""The attribute to ask for, and whether a hint fits."""

import pytest

from dml.retrieval.hints import matches_hint, separating_attribute


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
    ],
    ids=str,
)
def test_a_hint_fits_where_one_image_has_its_value_as_text_or_by_its_type(values, wanted, fits):
    assert matches_hint({"attribute": frozenset(values)}, {"attribute": wanted}) is fits
