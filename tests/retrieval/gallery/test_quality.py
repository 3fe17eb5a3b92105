"""The quality gate: what is wrong with an image is named, and the identity that it duplicates."""

import io
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from dml.config import IndexConfig
from dml.embedding.embed import embed
from dml.errors import DmlError, InvalidData, InvalidSetting
from dml.faces import NoFace, OpenCVDetector
from dml.preprocessing import UnreadableImage
from dml.retrieval.build import build_index
from dml.retrieval.gallery import Gallery
from dml.retrieval.gallery.quality import check_norms, check_quality, measure
from dml.retrieval.index import publish_index
from tests.bright_faces import picture, write_detector
from tests.retrieval.gallery.people import ROWS, items_of, publish, vectors_of


def encoded(picture: Image.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def face(side: int = 128, *, ground: int = 128, ink: int = 20) -> Image.Image:
    """A drawn face."""
    picture = Image.new("L", (256, 256), ground)
    draw = ImageDraw.Draw(picture)
    draw.ellipse((48, 30, 208, 230), outline=ink, width=5)
    for x in (98, 158):
        draw.ellipse((x - 14, 96, x + 14, 112), fill=ink)
    draw.arc((90, 130, 166, 190), 20, 160, fill=ink, width=6)
    return picture.resize((side, side), Image.Resampling.LANCZOS)


GOOD = encoded(face())


@pytest.mark.parametrize("quality", ["off", "standard", "strict"])
def test_a_clear_picture_passes_every_level(quality):
    check_quality(quality, [GOOD])
    check_norms(quality, np.array([3.0], np.float32))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (face(24), r"32 pixels on its shorter side; got 24\. Enrol a better one"),
        (face().filter(ImageFilter.GaussianBlur(12)), "be sharp, the variance of its Laplacian 20 or more"),
        (face(ground=6, ink=0), "brighter than 15 of 255"),
        (face(ground=255, ink=255), "darker than 252 of 255 in the mean; got 255"),
    ],
    ids=["small", "blurred", "dark", "bright"],
)
def test_what_is_wrong_with_a_picture_is_named(picture, message):
    with pytest.raises(InvalidData, match=message):
        check_quality("standard", [encoded(picture)])
    with pytest.raises(InvalidData, match="Image 2 must"):
        check_quality("strict", [GOOD, encoded(picture)])
    check_quality("off", [encoded(picture)])


def test_strict_asks_for_more_than_standard():
    small = encoded(face(48))
    check_quality("standard", [small])
    with pytest.raises(InvalidData, match="64 pixels"):
        check_quality("strict", [small])


@pytest.mark.parametrize("norm", [0.0, float("nan")])
def test_an_embedding_without_length_is_refused(norm):
    with pytest.raises(InvalidData, match="embedding longer than 0"):
        check_norms("standard", np.array([norm], np.float32))


def test_no_image_and_no_level_are_refused():
    with pytest.raises(UnreadableImage):
        check_quality("standard", [b"no image"])
    with pytest.raises(InvalidSetting, match="off, standard or strict; got 'best'"):
        check_quality("best", [GOOD])


def test_sharpness_falls_with_blur_and_hardly_depends_on_the_size():
    sharp = [measure(encoded(face().filter(ImageFilter.GaussianBlur(r)))).sharpness for r in (0, 1, 2, 4)]
    assert sharp == sorted(sharp, reverse=True)
    middle, large = (measure(encoded(face(side))) for side in (512, 2048))
    assert large.sharpness == pytest.approx(middle.sharpness, rel=0.3)
    assert (middle.side, large.side) == (512, 2048)


@pytest.fixture
def gallery(tmp_path):
    publish(str(tmp_path / "store"), tmp_path, "people", items_of(ROWS), vectors_of(ROWS, 1))
    with closing(Gallery.open(str(tmp_path / "store"), "people")) as opened:
        yield opened


def axis(*components: float) -> np.ndarray:
    vector = np.zeros((1, 8), np.float32)
    vector[0, : len(components)] = components
    return vector / np.linalg.norm(vector)


def test_strict_names_the_identity_that_an_image_duplicates(gallery):
    gallery.enrol("bob", vectors=axis(1, 0.05))
    with pytest.raises(InvalidData, match=r"must resemble 'bobby' more than .* it resembles 'bob' \("):
        gallery.enrol("bobby", vectors=axis(1, 0.06), quality="strict")
    gallery.enrol("bob", vectors=axis(1, 0.06), quality="strict")
    gallery.enrol("bobby", vectors=axis(1, 0.06), quality="standard")


def test_strict_compares_with_the_own_images_that_are_enrolled_or_come_along(gallery):
    gallery.enrol("bob", vectors=axis(1, 0.05))
    with pytest.raises(InvalidData, match="Image 1 must resemble 'eve'"):
        gallery.enrol("eve", vectors=np.concatenate([axis(1, 0.2), axis(0, 0, 1)]), quality="strict")
    gallery.enrol("eve", vectors=np.concatenate([axis(1, 0.4), axis(1, 0.41)]), quality="strict")
    assert gallery.enrol("eve", vectors=axis(1, 0.42), quality="strict").ids


def test_of_two_who_enrol_duplicates_at_once_in_one_transaction_one_is_refused(tmp_path):
    publish(str(tmp_path / "store"), tmp_path, "people", items_of(ROWS), vectors_of(ROWS, 1))
    committed, go_on = threading.Event(), threading.Event()

    def after_commit():
        committed.set()
        go_on.wait(20)

    with (
        closing(Gallery.open(str(tmp_path / "store"), "people", after_commit=after_commit)) as gallery,
        ThreadPoolExecutor(3) as threads,
    ):
        first = threads.submit(gallery.enrol, "somebody", vectors=axis(0, 1))
        assert committed.wait(20)
        both = [
            threads.submit(outcome, gallery, name, axis(1, 0.05 + number / 100))
            for number, name in enumerate(("bob", "bobby"))
        ]
        time.sleep(0.5)  # both have compared with what is enrolled, and wait for the same transaction
        go_on.set()
        first.result()
        assert sorted(type(each.result()).__name__ for each in both) == ["Enrolment", "InvalidData"]
        assert gallery.size.delta == 2


def test_of_two_processes_that_enrol_duplicates_at_once_one_is_refused(tmp_path):
    store = str(tmp_path / "store")
    publish(store, tmp_path, "people", items_of(ROWS), vectors_of(ROWS, 1))
    with (
        closing(Gallery.open(store, "people")) as one,
        closing(Gallery.open(store, "people")) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        for number in range(8):  # each of a direction that nobody has
            vector = np.roll(axis(1, 0.05, 0.02), number)
            start = threading.Barrier(2)
            both = [
                threads.submit(outcome, gallery, name, vector, start)
                for gallery, name in ((one, f"bob {number}"), (other, f"bobby {number}"))
            ]
            assert sorted(type(each.result()).__name__ for each in both) == ["Enrolment", "InvalidData"]
        one.refresh()
        assert one.size.delta == 8


def outcome(gallery, identity, vectors, start=None):
    """What a strict enrolment returns or raises, when all are at the start."""
    if start is not None:
        start.wait()
    try:
        return gallery.enrol(identity, vectors=vectors, quality="strict")
    except DmlError as error:
        return error


def test_where_the_model_detects_faces_the_face_is_measured_and_not_the_picture_around_it(tmp_path):
    pytest.importorskip("cv2")
    detector = OpenCVDetector(write_detector(tmp_path / "yunet.onnx"))
    drawn = np.array(face(32, ground=255, ink=60).convert("RGB"))

    def party(shown):
        pixels = np.full((128, 192, 3), 200, np.uint8)  # of which the detector sees no face
        pixels[:, 112:] = np.random.default_rng(0).integers(0, 60, (128, 80, 3))  # sharp, but dark
        pixels[32:64, 32:64] = shown
        return encoded(Image.fromarray(pixels))

    clear, blurred = party(drawn), party(np.full_like(drawn, 225))
    assert measure(clear).side == 128
    assert measure(clear, detector).side == 32
    assert measure(clear, detector).brightness > 190 > 140 > measure(clear).brightness
    check_quality("standard", [clear], detector)
    check_quality("standard", [blurred])
    with pytest.raises(InvalidData, match="The face of the image must be sharp"):
        check_quality("standard", [blurred], detector)
    with pytest.raises(
        InvalidData, match=r"The face of image 2 must have 64 pixels on its shorter side; got 32"
    ):
        check_quality("strict", [encoded(face(112)), clear], detector)
    with pytest.raises(NoFace, match="none is found"):
        check_quality("standard", [encoded(Image.fromarray(picture()))], detector)


def test_images_are_measured_when_they_are_enrolled(store, package, dataset):
    publish_index(store, build_index(store, "gate", embed(store, package, dataset), IndexConfig()))
    with closing(Gallery.open(store, "gate")) as gallery:
        with pytest.raises(InvalidData, match="be sharp"):
            gallery.enrol("eve", images=[encoded(Image.new("L", (128, 128), 99))], quality="standard")
        assert len(gallery.enrol("eve", images=[GOOD], quality="standard").ids) == 1
