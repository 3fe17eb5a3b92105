"""Faces in pictures: detected, aligned, cropped; several are several answers, none is no error."""

import io
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from dml.errors import InvalidData, InvalidSetting, MissingArtifact
from dml.faces import LANDMARKS, OpenCVDetector, WholePicture, similarity_transform
from dml.models.external import Options, import_embedder
from dml.models.package import load_package
from dml.preprocessing import UnreadableImage
from tests.bright_faces import EYES_AND_MOUTH, encoded, picture, write_detector

pytest.importorskip("onnx")
pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return write_detector(tmp_path_factory.mktemp("faces") / "bright.onnx")


def test_each_face_of_a_picture_is_a_region_with_its_box_and_an_aligned_crop(model):
    regions = OpenCVDetector(model).regions(encoded(picture((1, 1), (2, 4))))
    assert [region.box for region in regions] == [(32, 32, 32, 32), (128, 64, 32, 32)]
    for region in regions:
        centre = np.array(region.box[:2]) + 16
        np.testing.assert_allclose(region.landmarks, centre + 32 * EYES_AND_MOUTH, atol=1e-3)
        assert region.score == pytest.approx(1, abs=1e-3)
        assert region.crop.shape == (112, 112, 3)
        assert region.crop[4:-4, 4:-4].min() > 250, "the bright cell fills it"
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(region.encoded()))), region.crop)


def test_a_picture_without_a_face_has_no_regions(model):
    assert OpenCVDetector(model).regions(encoded(picture())) == []


def test_the_fingerprint_follows_the_model_file_and_the_settings(model, tmp_path):
    (tmp_path / "copy.onnx").write_bytes(model.read_bytes())
    first = OpenCVDetector(model).fingerprint
    assert OpenCVDetector(tmp_path / "copy.onnx").fingerprint == first
    assert OpenCVDetector(model, score=0.5).fingerprint != first
    assert OpenCVDetector(model, side=160).fingerprint != first


def test_what_is_no_detector_is_refused(model, tmp_path):
    with pytest.raises(MissingArtifact, match="Nothing is downloaded: bring one"):
        OpenCVDetector(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InvalidSetting, match="must be an ONNX face detector"):
        OpenCVDetector(tmp_path / "text.onnx")
    with pytest.raises(InvalidSetting, match=r"score must be in \(0, 1\)"):
        OpenCVDetector(model, score=1.5)
    with pytest.raises(UnreadableImage):
        OpenCVDetector(model).regions(b"no image")


def test_a_large_picture_is_detected_in_smaller_and_cropped_as_it_is(model):
    large = np.kron(picture((1, 1)), np.ones((8, 8, 1), np.uint8))
    large[320:336, 320:336] = 60
    (region,) = OpenCVDetector(model, longest=192).regions_in(large)
    assert region.box == (256, 256, 256, 256)
    assert (region.crop < 130).any(), "a spot that is lost in the smaller picture's 2 pixels"
    assert region.landmarks[0] == pytest.approx(384 + 256 * EYES_AND_MOUTH[0], abs=0.1)


def test_threads_share_a_detector(model):
    detector = OpenCVDetector(model)
    pictures = [picture((1, 1), (2, 4))[:, : 160 + 32 * (number % 2)] for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(detector.regions_in, pictures))
    assert [[region.box for region in each] for each in found] == [
        [region.box for region in OpenCVDetector(model).regions_in(pixels)] for pixels in pictures
    ]


def test_a_whole_picture_is_its_only_region():
    pixels = picture((0, 0))
    (region,) = WholePicture().regions(encoded(pixels))
    assert region.box == (0, 0, 192, 128)
    np.testing.assert_array_equal(region.crop, pixels)


@pytest.mark.parametrize("degrees", [0, 30, 180, -75])
def test_landmarks_that_are_turned_scaled_and_shifted_are_brought_back(degrees):
    angle = np.radians(degrees)
    turn = 2.5 * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    points = LANDMARKS @ turn.T + [40, -7]
    transform = similarity_transform(points, LANDMARKS)
    np.testing.assert_allclose(points @ transform[:, :2].T + transform[:, 2], LANDMARKS, atol=1e-9)


def test_a_mirrored_face_is_turned_and_not_mirrored():
    transform = similarity_transform(LANDMARKS * [-1, 1], LANDMARKS)
    assert np.linalg.det(transform[:, :2]) > 0


def test_a_package_that_detects_embeds_a_picture_as_its_largest_face(model, tmp_path, monkeypatch):
    (tmp_path / "bright_faces.py").write_text(
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from dml.faces import OpenCVDetector, main_region\n"
        f"detector = OpenCVDetector(Path({str(model)!r}))\n"
        "def embed(images):\n"
        "    crops = [main_region(detector, image).crop for image in images]\n"
        "    return np.stack([crop[::28, ::28].ravel() + 1.0 for crop in crops])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    package = import_embedder(str(tmp_path / "store"), "python:bright_faces:embed", Options(license="CC0"))
    loaded = load_package(package.uri)
    party = picture((1, 1), (2, 4))
    party[40:50, 40:50] = 200
    regions = OpenCVDetector(model).regions(encoded(party))
    whole, *crops = loaded.embed([encoded(party), *(region.encoded() for region in regions)])
    np.testing.assert_array_equal(whole, crops[0])
    assert len(crops) == 2
    with pytest.raises(InvalidData, match="none is found"):
        loaded.embed([encoded(picture())])
