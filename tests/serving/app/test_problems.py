"""What a client is told of an error, and what it is not."""

import pytest

from dml.errors import GalleryUnavailable, StorageUnavailable
from dml.serving.app.problems import refusal_of

DOWN = StorageUnavailable(
    "S3 at http://10.0.0.7:9000 must answer for bucket 'photos'; it does not. Start it."
)


def of_gallery() -> GalleryUnavailable:
    error = GalleryUnavailable(f"{DOWN} Nothing was written.")
    error.__cause__ = DOWN
    return error


@pytest.mark.parametrize("error", [DOWN, of_gallery()], ids=["store", "gallery"])
def test_a_client_is_told_that_the_store_does_not_answer_and_not_where_it_is(error):
    refused = refusal_of(error, hide="s3://photos/store")
    told = f"{refused.must} {refused.got} {refused.do}"
    assert (refused.status, refused.code, refused.retry_after) == (503, "unavailable", 5)
    assert "10.0.0.7" not in told
    assert "photos" not in told
    assert "The store must answer" in told
    assert ("Nothing was written" in told) == (error is not DOWN)
