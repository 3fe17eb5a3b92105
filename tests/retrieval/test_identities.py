"""Answers grouped by identity."""

import numpy as np
import pytest

from dml.config import IndexConfig
from dml.embedding.external import import_vectors
from dml.errors import InvalidSetting, MissingArtifact
from dml.retrieval.build import build_index
from dml.retrieval.identifier import Identifier
from dml.retrieval.identities import search_identities
from dml.retrieval.shards import open_index
from tests.embedding.vectors import write_parquet
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


@pytest.fixture(scope="module")
def partly_labelled(tmp_path_factory):
    """Three photos of Ada, and two items without a label, of which one's id is spelt like hers."""
    folder = tmp_path_factory.mktemp("partly")
    vectors = np.eye(5, 8, dtype=np.float32) + np.float32(0.3)
    columns = {"id": ["0", "1", "2", "ada", "4"], "label": ["ada", "ada", "ada", None, None]}
    report = import_vectors(str(folder / "store"), "some", write_parquet(folder, vectors, **columns))
    return open_index(build_index(str(folder / "store"), "some", report.embeddings, IndexConfig()))


@pytest.mark.parametrize("grouping", ["best", "mean", "all"])
def test_an_item_without_a_label_is_an_identity_by_itself(partly_labelled, grouping):
    probe = partly_labelled.vectors_of(["ada"])[0]
    hits = most_similar(partly_labelled, probe, 5, grouping=grouping)
    images = {(hit.identity, hit.images[0].id): len(hit.images) for hit in hits}
    assert list(images) == [("ada", "ada"), *list(images)[1:]]
    assert sorted(images.values()) == ([1, 1, 3] if grouping == "all" else [1, 1, 1])


def test_items_without_labels_count_as_identities_of_a_scope(partly_labelled):
    identifier = Identifier(partly_labelled, None)
    probe, fingerprint = (
        partly_labelled.vectors_of(["4"])[0],
        partly_labelled.ref.embeddings.embedder.fingerprint,
    )
    found = identifier.identify(probe, embedder=fingerprint, threshold=-1.0)
    assert found.tried[0].candidates == 3
    assert identifier.verify(probe, "4", embedder=fingerprint, threshold=0.9).same
    assert identifier.verify(probe, "ada", embedder=fingerprint, threshold=0.9).images == 3
    with pytest.raises(MissingArtifact, match=r"must be a label of index some@.*, or the id of an item"):
        identifier.verify(probe, "1", embedder=fingerprint, threshold=0.9)


@pytest.mark.parametrize("grouping", ["best", "mean", "all"])
def test_items_are_grouped_where_none_has_a_label(tmp_path, grouping):
    index = open_index(enrol(tmp_path, labelled=False, regions=2, per_region=5)[1])
    hits = most_similar(index, index.vectors_of(["image 3"])[0], 4, grouping=grouping)
    assert hits[0].identity == "image 3"
    assert len({hit.identity for hit in hits}) == 4
