"""A package with a face detector embeds the face that it finds, and is another package than without."""

import numpy as np
import pytest

from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidData, InvalidSetting, MissingArtifact
from dml.faces import NoFace, OpenCVDetector
from dml.models.external import Options, import_embedder, read_embedder
from dml.models.package import DETECTOR, load_package, requirements_of
from tests.bright_faces import encoded, picture, write_detector
from tests.models.test_onnx import network

pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faces")
    network(folder / "face.onnx")
    write_detector(folder / "yunet.onnx")
    return folder


def imported(folder, store, faces="yunet.onnx"):
    options = Options(detector=folder / faces if faces else None)
    return import_embedder(str(store), f"onnx:{folder / 'face.onnx'}", options)


@pytest.fixture(scope="module")
def package(folder):
    return load_package(imported(folder, folder / "store").uri)


def party():
    """Two faces, the larger one with a shade of its own."""
    pixels = picture((1, 1), (2, 4))
    pixels[36:44, 36:44] = (200, 180, 240)
    return pixels


def test_a_picture_is_embedded_as_its_face_aligned_and_cropped(folder, package):
    detector = OpenCVDetector(folder / "yunet.onnx")
    regions = detector.regions_in(party())
    without = load_package(imported(folder, folder / "store", faces=None).uri)
    expected = without.embed([region.encoded() for region in regions])
    np.testing.assert_array_equal(package.embed([encoded(party())]), expected[:1])
    assert not np.allclose(without.embed([encoded(party())]), expected[:1], atol=1e-3)
    np.testing.assert_array_equal(package.embed([encoded(party())], num_threads=4), expected[:1])


def test_each_face_of_a_picture_is_prepared_by_itself(package):
    faces = package.prepare_faces(encoded(party()))
    assert [region.box for region, _ in faces] == [(32, 32, 32, 32), (128, 64, 32, 32)]
    vectors = package.runtime.embed([prepared for _, prepared in faces]).numpy()
    np.testing.assert_array_equal(vectors, package.embed([region.encoded() for region, _ in faces]))
    assert package.prepare_faces(encoded(picture())) == []


def test_a_picture_without_a_face_is_refused(package):
    with pytest.raises(NoFace, match="none is found"):
        package.embed([encoded(party()), encoded(picture())])


def test_the_detector_and_nothing_else_makes_it_another_package(folder, package, tmp_path):
    assert imported(folder, tmp_path / "again").fingerprint == package.ref.fingerprint
    assert imported(folder, tmp_path / "none", faces=None).fingerprint != package.ref.fingerprint
    (folder / "other.onnx").write_bytes(write_detector(tmp_path / "d.onnx").read_bytes() + b"\x1a\x00")
    assert imported(folder, tmp_path / "other", faces="other.onnx").fingerprint != package.ref.fingerprint
    assert "opencv-python-headless" in requirements_of(package.ref)


def test_a_detector_that_was_changed_by_a_byte_is_refused(folder, tmp_path):
    ref = imported(folder, tmp_path / "store")
    file = tmp_path / "store" / "packages" / ref.version / DETECTOR
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(CorruptArtifact):
        load_package(ref.uri)


def test_a_detector_that_was_taken_out_of_the_description_is_missed(folder, tmp_path):
    ref = imported(folder, tmp_path / "store")
    description = tmp_path / "store" / "packages" / ref.version / "package.json"
    description.write_text(description.read_text().replace('"detector": {', '"detected": {'))
    with pytest.raises(CorruptArtifact):
        load_package(ref.uri)


def test_it_is_said_what_is_detected_and_by_what(folder):
    said = "\n".join(
        read_embedder(f"onnx:{folder / 'face.onnx'}", Options(detector=folder / "yunet.onnx")).notes
    )
    assert "the largest face is detected by yunet.onnx" in said
    assert "an image without a face is refused" in said
    assert "not done here" not in said


def test_what_is_no_detector_is_refused_before_anything_is_published(folder, tmp_path):
    with pytest.raises(MissingArtifact, match="Nothing is downloaded"):
        imported(folder, tmp_path / "store", faces="none.onnx")
    with pytest.raises(InvalidSetting, match="must be an ONNX face detector"):
        imported(folder, tmp_path / "store", faces="face.onnx")
    assert not (tmp_path / "store").exists()


def test_every_face_is_asked_only_of_a_model_that_detects(folder, tmp_path):
    plain = load_package(imported(folder, tmp_path / "store", faces=None).uri)
    with pytest.raises(IncompatibleArtifact, match="--detector"):
        plain.prepare_faces(encoded(party()))


def test_a_function_is_given_the_crop(folder, tmp_path, monkeypatch):
    (tmp_path / "sides_of.py").write_text(
        "import numpy as np\ndef embed(images):\n"
        "    return np.array([[*image.shape[:2], image.mean()] for image in images])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ref = import_embedder(
        str(tmp_path / "store"), "python:sides_of:embed", Options(detector=folder / "yunet.onnx")
    )
    (vector,) = load_package(ref.uri).embed([encoded(party())], unit_length=False)
    assert vector[:2].tolist() == [112, 112]


def test_the_pyfunc_model_detects_and_names_the_row_without_a_face(package):
    pandas = pytest.importorskip("pandas")
    from dml.registry.pyfunc import EmbeddingModel

    model = EmbeddingModel(package)
    images = [encoded(party())]
    np.testing.assert_array_equal(model.predict(pandas.DataFrame({"image": images})), package.embed(images))
    with pytest.raises(InvalidData, match="Row 1: A picture must show a face"):
        model.predict(pandas.DataFrame({"image": [*images, encoded(picture())]}))
