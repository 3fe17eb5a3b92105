"""`dml models import` tries a network and says what it concluded; only with --yes is anything registered."""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper
from PIL import Image

from tests.bright_faces import write_detector
from tests.models.test_onnx import model_of, network


@pytest.fixture
def face(tmp_path):
    return str(network(tmp_path / "face.onnx"))


def test_a_trial_shows_a_picture_and_neighbours_and_registers_nothing(dml, store, face, tmp_path):
    done = dml("models", "import", face, "--dataset", "labels", "--store", store)
    assert done.status == 0, done.err
    assert "nothing was registered" in done.out
    assert "five landmarks" in done.out
    with Image.open(tmp_path / "preprocessed.png") as picture:
        assert picture.size == (112, 112)
    assert not (Path(store) / "mlflow.db").exists()


def test_a_trial_in_json_holds_the_neighbours_of_ten_images(dml, store, face):
    printed = dml("models", "import", face, "--dataset", "labels", "--store", store, "--json").json
    assert (printed["source"], printed["dim"], printed["model"]) == ("onnx:face.onnx", 8, None)
    assert len(printed["neighbors"]) == 10
    assert all(each["id"] != each["nearest"] for each in printed["neighbors"])


def test_without_a_dataset_it_says_what_it_concluded_alone(dml, store, face):
    done = dml("models", "import", face, "--store", store)
    assert "--dataset NAME" in done.out
    assert "embeddings of 8 dimensions" in done.out


def test_without_a_dataset_a_network_that_registering_would_refuse_is_refused(dml, store, tmp_path):
    flat = model_of(
        tmp_path / "batch.onnx",
        [helper.make_node("Reshape", ["flat", "shape"], ["y"])],
        constants={"shape": np.array([1, 3])},
    )
    done = dml("models", "import", flat, "--store", store)
    assert (done.status, "must take any number of images" in done.err) == (2, True)


def test_a_picture_that_cannot_be_written_is_one_line(dml, store, face, tmp_path):
    done = dml("models", "import", face, "--dataset", "labels", "--picture", str(tmp_path), "--store", store)
    assert done.status == 2
    assert "--picture must be a PNG file to write" in done.err


def test_a_picture_replaces_no_file_of_another_kind(dml, store, face):
    content = Path(face).read_bytes()
    done = dml("models", "import", face, "--dataset", "labels", "--picture", face, "--store", store)
    assert (done.status, "its name does not end in .png" in done.err) == (2, True)
    assert Path(face).read_bytes() == content


def test_a_file_of_an_unknown_kind_is_told_what_there_is(dml, store):
    done = dml("models", "import", "face.tflite", "--store", store)
    assert (done.status, "An embedder must be one of" in done.err) == (2, True)


def test_a_face_detector_is_said_and_a_dataset_without_faces_refused(dml, store, face, tmp_path):
    pytest.importorskip("cv2")
    given = (face, "--detector", str(write_detector(tmp_path / "yunet.onnx")), "--store", store)
    done = dml("models", "import", *given)
    assert (done.status, "the largest face is detected by yunet.onnx" in done.out) == (0, True)
    done = dml("models", "import", *given, "--dataset", "labels")
    assert (done.status, "14 of the 14 that were tried show none: " in done.err) == (2, True)
    done = dml("index", "labels", "--detector", given[2], "--store", store)
    assert (done.status, "--detector belongs to an --embedder" in done.err) == (2, True)


@pytest.mark.slow
def test_with_yes_it_is_a_model_that_is_used_by_its_name(dml, tmp_path, face):
    store = str(tmp_path / "store")
    printed = dml("models", "import", face, "--yes", "--store", store, "--json").json
    assert (printed["model"]["name"], printed["model"]["version"], printed["model"]["alias"]) == (
        "face",
        1,
        None,
    )
    listed = dml("models", "--store", store, "--json").json["models"]
    assert [model["package"]["source"] for model in listed] == ["onnx:face.onnx"]
