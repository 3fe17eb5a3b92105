"""Detection is one step of offline embedding, enrolment and queries: no face is refused, several answer."""

import numpy as np
import pytest

from dml.embedding.embed import embed
from dml.errors import InvalidSetting
from dml.faces import NoFace
from dml.models.external import Options, import_embedder
from dml.models.package import load_package
from dml.retrieval.gallery import collect_changes
from dml.serving.searcher import Searcher
from tests.serving.face_pictures import NAME, make_people, party, publish

pytest.importorskip("cv2")
PEOPLE = [(f"person {number}", party(number)) for number in range(4)]


@pytest.fixture
def store(tmp_path):
    store, dataset, package = make_people(tmp_path, *PEOPLE)
    publish(store, dataset, package)
    return store


def test_a_picture_is_the_same_vector_offline_enrolled_and_as_a_query(store):
    searcher = Searcher.open(store, NAME)
    (id_,) = searcher.gallery.enrol("ann", images=[party(0)], ids=["ann.png"]).ids
    live = searcher.gallery.live
    (offline,), (enrolled,) = live.vectors_of(["0.png"]), live.vectors_of([id_])
    (query,) = searcher.package.embed([party(0)])
    np.testing.assert_array_equal(enrolled, query)
    np.testing.assert_array_equal(offline, query)
    assert {each.id for each in searcher.search([party(0)], k=2)[0].answers} == {"0.png", "ann.png"}


def test_a_query_and_an_enrolment_without_a_face_are_refused(store):
    searcher = Searcher.open(store, NAME)
    with pytest.raises(NoFace, match="must show a face"):
        searcher.search([party()])
    with pytest.raises(NoFace, match="must show a face"):
        searcher.gallery.enrol("nobody", images=[party(0), party()])
    assert searcher.gallery.revision == 0


def test_the_answers_of_a_face_are_reranked_items_or_identities(store):
    with pytest.raises(InvalidSetting, match="got rerank 'k-reciprocal' and grouping 'best'"):
        Searcher.open(store, NAME).search_faces(party(0), rerank="k-reciprocal", grouping="best")


def test_offline_all_images_of_a_fragment_without_a_face_are_named_and_nothing_is_made(tmp_path):
    pictures = [PEOPLE[0], ("wall", party()), PEOPLE[1], ("sky", party())]
    store, dataset, package = make_people(tmp_path, *pictures)
    with pytest.raises(NoFace, match=r"2 of 4 in .* show none: 1\.png, 3\.png\. .*dml correct"):
        embed(store, package, dataset)
    assert len(load_package(package.uri).embed([party(0)])) == 1


def test_what_is_enrolled_without_a_face_is_named_when_a_model_that_detects_follows(tmp_path):
    store, dataset, package = make_people(tmp_path, *PEOPLE)
    publish(store, dataset, import_embedder(store, f"onnx:{tmp_path / 'face.onnx'}", Options()))
    Searcher.open(store, NAME).gallery.enrol("wall", images=[party()], ids=["wall.png"])
    with pytest.raises(NoFace, match=r"1 items, such as 'wall\.png', show none"):
        collect_changes(store, NAME, embed(store, package, dataset))


def test_each_face_of_a_picture_is_identified_by_itself_with_its_box(store):
    searcher = Searcher.open(store, NAME)
    faces = searcher.identify_faces(party(2, 77, 1), threshold=0.99999)
    assert [(face.box, face.answer.status, face.answer.identity) for face in faces] == [
        ((0, 0, 32, 32), "identified", "person 2"),
        ((64, 0, 32, 32), "unknown", None),
        ((128, 0, 32, 32), "identified", "person 1"),
    ]
    assert min(face.score for face in faces) > 0.8
    assert searcher.identify_faces(party(), threshold=0.5) == []
