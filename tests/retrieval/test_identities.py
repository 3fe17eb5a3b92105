"""Answers grouped by identity."""

import numpy as np
import pytest

from dml.errors import InvalidSetting
from dml.retrieval.identities import search_identities
from dml.retrieval.shards import open_index
from tests.retrieval.test_calibration import enrol, people
from tests.retrieval.test_identifier import photo


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return open_index(enrol(tmp_path_factory.mktemp("faces"), likeness=0.5, noise=0.15)[1])


def most_similar(index, probe, k, **options):
    return search_identities(index, probe, k, embedder=index.ref.embeddings.embedder.fingerprint, **options)


@pytest.mark.parametrize("grouping", ["best", "mean", "all"])
def test_answers_grouped_by_identity_are_those_of_the_plain_loop(index, grouping):
    vectors, labels, _ = people(likeness=0.5, noise=0.15)
    probe = photo(11)
    of_images = {label: np.sort(vectors[labels == label] @ probe)[::-1] for label in range(360)}
    score = {label: s.mean() if grouping == "mean" else s.max() for label, s in of_images.items()}
    first = sorted(score, key=lambda label: -score[label])[:5]
    hits = most_similar(index, probe, 5, grouping=grouping)
    assert [hit.identity for hit in hits] == [f"person {label}" for label in first]
    assert [hit.similarity for hit in hits] == pytest.approx([score[label] for label in first], abs=1e-5)
    assert {len(hit.images) for hit in hits} == {3 if grouping == "all" else 1}


def test_grouped_answers_satisfy_the_filter(index):
    hits = most_similar(index, photo(11), 4, where="region = 'region 2'", grouping="all")
    assert {image.attributes["region"] for hit in hits for image in hit.images} == {"region 2"}


def test_another_grouping_is_refused(index):
    with pytest.raises(InvalidSetting, match="grouping must be one of best, mean, all; got 'worst'"):
        most_similar(index, photo(11), 4, grouping="worst")


@pytest.mark.parametrize("k", [0, "3", 1.5, True, None])
def test_a_number_of_identities_that_is_none_is_refused(index, k):
    with pytest.raises(InvalidSetting, match="k must be a whole number"):
        most_similar(index, photo(11), k)
