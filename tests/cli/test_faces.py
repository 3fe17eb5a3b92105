"""`--faces all`: each face of a picture is searched, identified and compared by itself."""

import pytest

from tests.serving.face_pictures import make_people, party, publish

pytest.importorskip("cv2")
BOXES = [{"left": left, "top": 0, "width": 32, "height": 32} for left in (0, 64, 128)]
LIMIT = ("--threshold", "0.99999")


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("people")
    store, dataset, package = make_people(folder, *((f"person {each}", party(each)) for each in range(4)))
    publish(store, dataset, package)
    return store


@pytest.fixture
def ask(dml, store, tmp_path):
    (tmp_path / "party.png").write_bytes(party(2, 77, 1))
    (tmp_path / "wall.png").write_bytes(party())

    def asked(verb, *words, picture="party"):
        return dml(verb, str(tmp_path / f"{picture}.png"), *words, "--store", store)

    return asked


def test_each_face_is_searched_with_its_box(ask):
    faces = ask("search", "--faces", "all", "-k", "1", "--json").json["faces"]
    assert [face["box"] for face in faces] == BOXES
    assert [faces[place]["answers"][0]["label"] for place in (0, 2)] == ["person 2", "person 1"]
    grouped = ask("search", "--faces", "all", "--group-by-identity", "best", "--json").json["faces"]
    assert [face["identities"][0]["identity"] for face in grouped][::2] == ["person 2", "person 1"]
    shown = ask("search", "--faces", "all").out
    assert "face 1: 32 x 32 pixels at (0, 0), score 0." in shown


def test_each_face_is_identified_with_its_box(ask):
    faces = ask("identify", "--faces", "all", *LIMIT, "--json").json["faces"]
    assert [(face["box"], face["identity"]) for face in faces] == list(
        zip(BOXES, ["person 2", None, "person 1"], strict=True)
    )
    assert "face 2: 32 x 32 pixels at (64, 0)" in ask("identify", "--faces", "all", *LIMIT).out


def test_a_picture_shows_an_identity_where_one_of_its_faces_does(ask):
    for identity, expected in (("person 1", [False, False, True]), ("person 3", [False] * 3)):
        given = ("--identity", identity, "--faces", "all", *LIMIT)
        answer = ask("compare", *given, "--json").json
        assert (answer["same"], [face["same"] for face in answer["faces"]]) == (any(expected), expected)
    assert ask("compare", *given).out.count("different: similarity") == 3


def test_a_picture_without_a_face_has_no_answers(ask):
    for words in (("search",), ("identify", *LIMIT), ("compare", "--identity", "person 1", *LIMIT)):
        done = ask(*words, "--faces", "all", "--json", picture="wall")
        assert (done.status, done.json["faces"]) == (0, [])
    assert "no face is found" in ask("search", "--faces", "all", picture="wall").out
    assert "must show a face" in ask("search", picture="wall").err


def test_by_default_the_largest_face_is_the_query(ask):
    assert ask("identify", *LIMIT, "--json").json["identity"] == "person 2"


def test_another_word_and_another_query_than_a_picture_are_refused(ask, dml, store):
    done = ask("identify", "--faces", "both", *LIMIT)
    assert (done.status, "--faces must be main or all; got 'both'." in done.err) == (2, True)
    done = dml("search", "--id", "0.png", "--faces", "all", "--store", store)
    assert (done.status, "--faces all needs an image file" in done.err) == (2, True)
