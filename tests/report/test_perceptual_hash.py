"""pHash: as the formula says, near for the same picture in another form, far for another picture."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from dml.data.thumbnails import make_thumbnails
from dml.report.perceptual_hash import perceptual_hashes, structure_similarity


def picture(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Soft coloured spots: a photograph's spectrum, more or less."""
    pixels = np.random.default_rng(seed).integers(0, 255, (12, 16, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def distance(first: np.ndarray, second: np.ndarray) -> int:
    return int(np.bitwise_count(first ^ second).sum())


def plain_hash(thumbnail: np.ndarray) -> list[bool]:
    """The DCT-II by its definition, in loops."""
    side = len(thumbnail)
    values = [
        sum(
            float(thumbnail[y, x])
            * np.cos(np.pi * (y + 0.5) * v / side)
            * np.cos(np.pi * (x + 0.5) * u / side)
            for y in range(side)
            for x in range(side)
        )
        for v in range(1, 9)
        for u in range(1, 9)
    ]
    return [value > np.median(values) for value in values]


def test_bits_are_those_of_the_plain_loop():
    thumbnails = np.random.default_rng(0).integers(0, 255, (3, 32, 32), dtype=np.uint8)
    bits = np.unpackbits(perceptual_hashes(thumbnails), axis=1).astype(bool)
    for row, thumbnail in enumerate(thumbnails):
        assert bits[row].tolist() == plain_hash(thumbnail)


def test_many_are_hashed_as_one_is():
    thumbnails = np.random.default_rng(0).integers(0, 255, (5000, 32, 32), dtype=np.uint8)
    actual = perceptual_hashes(thumbnails)
    for row in (0, 4095, 4096, 4999):
        np.testing.assert_array_equal(actual[row], perceptual_hashes(thumbnails[row : row + 1])[0])


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(
    "change",
    [
        lambda image: encoded(image, "JPEG", quality=50),
        lambda image: encoded(image.resize((48, 36), Image.Resampling.BILINEAR)),
        lambda image: encoded(image.resize((480, 360), Image.Resampling.BICUBIC)),
        lambda image: encoded(image.point(lambda value: value * 0.7)),
        lambda image: encoded(image.point(lambda value: 60 + value * 0.7)),
        lambda image: encoded(image.convert("L")),
        lambda image: encoded(image.convert("P", palette=Image.Palette.ADAPTIVE), "GIF"),
        lambda image: encoded(image, "WEBP", quality=60),
    ],
    ids=["jpeg", "half", "five-fold", "darker", "brighter", "grey", "gif", "webp"],
)
def test_the_same_picture_in_another_form_is_near(seed, change):
    image = picture(seed)
    thumbnails = make_thumbnails([encoded(image), change(image)]).pixels
    assert distance(*perceptual_hashes(thumbnails)) <= 6
    assert structure_similarity(thumbnails[:1], thumbnails[1:])[0] >= 0.97


def test_other_pictures_are_far():
    thumbnails = make_thumbnails([encoded(picture(seed)) for seed in range(60)]).pixels
    hashes = perceptual_hashes(thumbnails)
    distances = [distance(hashes[a], hashes[b]) for a in range(60) for b in range(a)]
    assert min(distances) > 10
    assert np.mean(distances) == pytest.approx(32, abs=1.5)


@pytest.mark.parametrize("grey", [0, 7, 128, 255])
def test_a_blank_image_has_no_bits_whatever_its_brightness(grey):
    assert not perceptual_hashes(np.full((1, 32, 32), grey, np.uint8)).any()


def test_no_images_have_no_hashes():
    assert perceptual_hashes(np.empty((0, 32, 32), np.uint8)).shape == (0, 8)


def test_structure_is_the_plain_formula():
    rng = np.random.default_rng(0)
    first = rng.integers(0, 255, (6, 32, 32), dtype=np.uint8)
    second = np.where(rng.random((6, 32, 32)) < 0.5, first, rng.integers(0, 255, (6, 32, 32))).astype(
        np.uint8
    )
    c3 = (0.03 * 255) ** 2 / 2
    expected = [
        (np.mean((x - x.mean()) * (y - y.mean())) + c3) / (x.std() * y.std() + c3)
        for x, y in zip(first.astype(float), second.astype(float), strict=True)
    ]
    np.testing.assert_allclose(structure_similarity(first, second), expected, rtol=1e-5)


def test_two_blank_images_are_alike_and_a_blank_one_is_far_from_a_picture():
    blank = np.full((1, 32, 32), 255, np.uint8)
    drawing = blank.copy()
    drawing[0, 8:24, 8:24] = 0
    assert structure_similarity(blank, np.full((1, 32, 32), 200, np.uint8))[0] == pytest.approx(1)
    assert distance(*perceptual_hashes(np.concatenate([blank, drawing]))) > 20


@given(st.integers(0, 2**32 - 1), st.floats(0.3, 1.0), st.integers(0, 70))
def test_brightness_and_contrast_do_not_matter(seed, contrast, shift):
    thumbnail = np.random.default_rng(seed).integers(0, 180, (1, 32, 32)).astype(np.float64)
    changed = (thumbnail * contrast + shift).round().astype(np.uint8)
    thumbnail = thumbnail.astype(np.uint8)
    assert structure_similarity(thumbnail, changed)[0] > 0.99
    assert distance(perceptual_hashes(thumbnail)[0], perceptual_hashes(changed)[0]) <= 6
