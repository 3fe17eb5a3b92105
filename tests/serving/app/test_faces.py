"""Identification of every face of a picture over HTTP."""

import base64
import sys

import numpy as np
import pytest

from dml.serving.app.indexes import OpenIndexes
from dml.serving.app.settings import ServiceSettings
from tests.bright_faces import encoded
from tests.serving.app.parts import NAME as SHELVES
from tests.serving.app.parts import ask, image, post
from tests.serving.face_pictures import NAME, make_people, party, publish

pytest.importorskip("cv2")
IDENTIFY, SEARCH, VERIFY = (f"/v1/indexes/{NAME}/{verb}" for verb in ("identify", "search", "verify"))


@pytest.fixture(scope="module")
def people(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    store, dataset, package = make_people(folder, *((f"person {each}", party(each)) for each in range(4)))
    publish(store, dataset, package)
    return ServiceSettings(store=store, threads=1, recall_share=0)


def query(content: bytes):
    return {"image": {"base64": base64.b64encode(content).decode()}}


def test_each_face_of_each_picture_has_an_answer_and_a_box(people):
    pictures = [party(2, 77, 1), party(), party(3)]
    body = {"queries": [query(each) for each in pictures], "faces": "all", "threshold": 0.99999}
    answer = post(people, IDENTIFY, body).json()
    assert [[face["identity"] for face in each] for each in answer["faces"]] == [
        ["person 2", None, "person 1"],
        [],
        ["person 3"],
    ]
    face = answer["faces"][0][2]
    assert (face["box"], face["status"]) == ({"left": 128, "top": 0, "width": 32, "height": 32}, "identified")
    assert 0.8 < face["score"] <= 1
    assert answer["results"] == []


def test_each_face_is_searched_and_a_picture_without_one_has_no_answers(people):
    body = {"queries": [query(party(2, 77, 1)), query(party())], "faces": "all", "k": 2}
    body |= {"threshold": 0.99999, "group_by_identity": "best"}
    answer = post(people, SEARCH, body).json()
    (first, second, third), nobody = answer["faces"]
    assert [each["identities"][0]["identity"] for each in (first, third)] == ["person 2", "person 1"]
    assert [each["status"] for each in (first, second, third)] == ["known", "unknown", "known"]
    assert second["box"] == {"left": 64, "top": 0, "width": 32, "height": 32}
    assert (nobody, answer["results"]) == ([], [])
    alone = post(people, SEARCH, {"queries": [query(party())], "faces": "all", "explain": True}).json()
    assert (alone["faces"], alone["plan"]) == ([[]], "nothing is searched: no face is found")
    items = post(people, SEARCH, {"queries": [query(party(3))], "faces": "all", "k": 1}).json()
    assert items["faces"][0][0]["answers"][0]["id"] == "3.png"


def test_a_probe_is_somebody_where_one_of_its_faces_is(people):
    body = {"probe": query(party(2, 77, 1)), "other": {"identity": "person 1"}, "threshold": 0.99999}
    assert not post(people, VERIFY, body).json()["same"]
    answer = post(people, VERIFY, body | {"faces": "all"}).json()
    assert (answer["same"], [each["same"] for each in answer["faces"]]) == (True, [False, False, True])
    assert answer["similarity"] == answer["faces"][2]["similarity"]
    assert answer["faces"][2]["box"]["left"] == 128
    refused = post(people, VERIFY, body | {"probe": query(party()), "faces": "all"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "no_face")


def test_a_crop_of_the_size_of_a_face_is_one_face_as_it_is(people):
    crop = encoded(np.zeros((112, 112, 3), np.uint8))
    answer = post(people, SEARCH, {"queries": [query(crop)], "faces": "all", "k": 1}).json()
    assert [face["box"] for face in answer["faces"][0]] == [
        {"left": 0, "top": 0, "width": 112, "height": 112}
    ]
    main = post(people, SEARCH, {"queries": [query(crop)], "k": 1}).json()["results"][0]
    assert main["answers"] == answer["faces"][0][0]["answers"]


def test_by_default_the_main_face_is_identified_and_a_picture_without_one_refused(people):
    body = {"queries": [query(party(2, 77))], "threshold": 0.99999}
    answer = post(people, IDENTIFY, body).json()
    assert ([each["identity"] for each in answer["results"]], answer["faces"]) == (["person 2"], None)
    refused = post(people, IDENTIFY, body | {"queries": [query(party(2)), query(party())]})
    assert (refused.status_code, refused.json()["error"]["got"][:8]) == (422, "image 1:")
    assert "must show a face" in refused.text


def test_faces_are_asked_of_images_and_of_a_model_that_detects(people, settings):
    refused = post(people, IDENTIFY, {"queries": [{"id": "0.png"}], "faces": "all", "threshold": 0.5})
    assert (refused.status_code, refused.json()["error"]["got"]) == (422, "1 of 1 are not")
    body = {"queries": [image(3)], "faces": "all", "threshold": 0.5}
    refused = post(settings, f"/v1/indexes/{SHELVES}/identify", body)
    assert refused.status_code == 409
    assert "--detector" in refused.json()["error"]["do"]


def test_more_faces_than_a_request_may_show_are_refused_before_they_are_embedded(people):
    body = {"queries": [query(party(*range(6)))] * 43, "faces": "all", "threshold": 0.5}
    refused = post(people, IDENTIFY, body)
    assert (refused.status_code, refused.json()["error"]["got"]) == (422, "got 258")


def test_without_opencv_such_an_index_alone_is_unavailable_and_says_what_to_install(people, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)  # as where the extra is not installed
    indexes = OpenIndexes(people.store)
    assert indexes.refresh() == []
    assert "pip install 'dml-platform[faces]'" in indexes.unavailable[NAME]
    indexes.close()


def test_an_index_says_whether_its_model_detects_faces(people, settings):
    for served, detects in ((people, True), (settings, False)):
        listed = ask(served, lambda client: client.get("/v1/indexes")).json()["indexes"]
        assert [each["detects_faces"] for each in listed] == [detects]
