"""From an image file to a tensor: any kind of file, upright, opaque, to the bit where nothing is to do."""

import io
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from dml.config import PreprocessingConfig
from dml.errors import InvalidData
from dml.preprocessing import (
    SIGNATURE_BYTES,
    AmbiguousPixels,
    OversizedImage,
    UnreadableImage,
    decode,
    has_signature,
    image_size,
    preprocess,
    preprocess_batch,
    resize_and_crop,
)
from tests.data.pictures import huge_png, picture

PLAIN = PreprocessingConfig(resize=12, crop=12, mean=(0, 0, 0), std=(1, 1, 1))


def encoded(image: Image.Image, form: str = "PNG", **options) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 5, y * 7, x + y], -1).astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
@pytest.mark.parametrize("color", ["RGB", "L"])
def test_every_mode_becomes_the_configured_one(mode, color):
    form = "TIFF" if mode in ("CMYK", "I", "F") else "PNG"
    source = (
        gradient().convert("L").convert("I").convert("I;16") if mode == "I;16" else gradient().convert(mode)
    )
    image = decode(encoded(source, form), color)
    assert image.mode == color
    assert image.size == (40, 30)


def test_sixteen_bits_become_eight_and_keep_their_order():
    values = np.arange(0, 65_536, 64, dtype=np.uint16).reshape(32, 32)
    got = np.asarray(decode(encoded(Image.fromarray(values)), "L"))
    np.testing.assert_array_equal(got, (values >> 8).astype(np.uint8))


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 0.5, 0.25]], np.float64), [0, 128, 64]),
        (np.array([[0, 127.6, 255]], np.float32), [0, 128, 255]),
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
        (np.array([[0, 256, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 255, 65535]], np.uint16), [0, 0, 255]),
        (np.array([[0, 100, 4095]], np.uint16), [0, 0, 15]),
    ],
    ids=[
        "unit floats",
        "unit doubles",
        "floats of 8 bits",
        "ints of 8 bits",
        "ints of 16 bits",
        "16 bits",
        "12 bits",
    ],
)
def test_grey_values_of_a_tiff_are_scaled_to_eight_bits(values, wanted):
    image = Image.fromarray(values.astype(np.float32) if values.dtype == np.float64 else values)
    assert np.asarray(decode(encoded(image, "TIFF"), "L")).tolist() == [wanted]


@pytest.mark.parametrize(
    "values",
    [
        np.array([[-0.1, 0.5]], np.float32),
        np.array([[0, 256]], np.float32),
        np.array([[0, 1e5]], np.float32),
        np.array([[0, np.nan]], np.float32),
        np.array([[0, np.inf]], np.float32),
        np.array([[-1, 5]], np.int32),
        np.array([[0, 65536]], np.int32),
    ],
    ids=repr,
)
def test_grey_values_that_may_mean_more_than_one_thing_are_refused(values):
    with pytest.raises(AmbiguousPixels, match="Scale them"):
        decode(encoded(Image.fromarray(values), "TIFF"), "RGB")


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF", "AVIF"])
def test_of_several_frames_the_first_is_taken(form):
    frames = [Image.new("RGB", (8, 6), color) for color in ("white", "black", "red")]
    image = decode(encoded(frames[0], form, save_all=True, append_images=frames[1:]), "RGB")
    assert (image.size, image.getpixel((3, 3))) == ((8, 6), (255, 255, 255))


@pytest.mark.parametrize("form", ["EPS", "PDF", "ICO", "TGA", "PCX", "SGI", "DDS"])
def test_only_the_formats_of_pictures_are_decoded(form):
    with pytest.raises(UnreadableImage, match="An image must be JPEG"):
        decode(encoded(gradient(), form), "RGB")


def test_transparency_is_laid_on_white_in_strips_as_in_one():
    values = np.random.default_rng(0).integers(0, 256, (700, 5, 4), dtype=np.uint8)
    image = Image.fromarray(values)
    whole = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    np.testing.assert_array_equal(np.asarray(decode(encoded(image), "RGB")), np.asarray(whole))
    np.testing.assert_array_equal(np.asarray(decode(encoded(image), "L")), np.asarray(whole.convert("L")))


def test_transparency_is_laid_on_white():
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0, 255))
    got = np.asarray(decode(encoded(image), "RGB"))
    assert got[0, 0].tolist() == [255, 0, 0]
    assert got[1, 1].tolist() == [255, 255, 255]
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    got = np.asarray(decode(encoded(palette, transparency=0), "RGB"))
    assert got[0].tolist() == [[255, 255, 255], [40, 50, 60]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_image_is_turned_upright(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode(encoded(gradient(), exif=exif), "RGB")
    assert image.size == ((30, 40) if orientation >= 5 else (40, 30))
    if orientation == 3:
        np.testing.assert_array_equal(np.asarray(image), np.asarray(gradient())[::-1, ::-1])


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_a_truncated_file_never_decodes_to_half_an_image(form):
    content = picture(size=(64, 64), form=form)
    for share in (0.3, 0.6, 0.9):
        with pytest.raises(InvalidData):
            decode(content[: int(len(content) * share)], "RGB")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", bytes(1000)])
def test_what_is_no_image_is_refused(content):
    with pytest.raises(InvalidData, match="An image must"):
        decode(content, "RGB")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "a web page or SVG"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "a document"),
    ],
)
def test_what_is_often_met_in_an_images_place_is_named(content, what):
    with pytest.raises(UnreadableImage, match=what):
        decode(content, "RGB")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "AVIF", "JPEG2000", "PPM"])
def test_every_format_has_a_signature(form):
    assert has_signature(encoded(gradient(), form)[:SIGNATURE_BYTES])
    assert not has_signature(b"x" + encoded(gradient(), form)[: SIGNATURE_BYTES - 1])


def test_an_image_whose_header_is_damaged_is_not_said_to_be_of_another_format():
    chunk = b"iCCP" + b"a\0\0" + zlib.compress(bytes(2_000_000))
    whole = picture()
    bomb = whole[:33] + struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    for content in (whole[:30], bomb + whole[33:]):
        with pytest.raises(UnreadableImage, match=r"begin as an image, .*PNG.*do not go on as one\. Get"):
            image_size(content)


def test_random_damage_is_refused_or_decodes_but_never_escapes():
    chance = np.random.default_rng(0)
    for form in ("PNG", "JPEG", "GIF", "TIFF", "WEBP"):
        for _ in range(40):
            content = bytearray(picture(size=(24, 24), form=form))
            for place in chance.integers(0, len(content), 3):
                content[place] = chance.integers(256)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                try:
                    assert decode(bytes(content), "RGB").mode == "RGB"
                except InvalidData:
                    continue


@pytest.mark.parametrize("side", [8_001, 12_000, 30_000])
def test_a_decompression_bomb_is_refused_from_its_header(side):
    content = huge_png(side)
    for refused in (image_size, lambda c: decode(c, "RGB"), lambda c: preprocess(c, PLAIN)):
        with pytest.raises(OversizedImage, match=r"at most 64000000 pixels; got \d.*\. Resize it"):
            refused(content)


MEMORY = """
import resource, sys
from dml.config import PreprocessingConfig
from dml.preprocessing import preprocess
from tests.data.pictures import huge_png
content = huge_png(int(sys.argv[1]))
if sys.argv[2] == "transparent":
    import io
    from PIL import Image
    content = io.BytesIO()
    Image.new("P", (int(sys.argv[1]),) * 2).save(content, "PNG", transparency=0)
    content = content.getvalue()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    preprocess(content, PreprocessingConfig())
except Exception as error:
    assert type(error).__name__ == "OversizedImage", error
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "kind", "at_most_mib"),
    [(13_000, "opaque", 10), (8_000, "opaque", 400), (8_000, "transparent", 400)],
)
def test_a_query_of_few_bytes_takes_little_memory(side, kind, at_most_mib):
    command = [sys.executable, "-c", MEMORY, str(side), kind]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert int(done.stdout) < at_most_mib


def test_a_limit_of_pixels_can_be_lower_and_is_a_limit():
    content = picture(size=(30, 20))
    assert image_size(content, max_pixels=600) == (30, 20)
    assert decode(content, "L", max_pixels=600).size == (30, 20)
    with pytest.raises(OversizedImage, match="30 x 20"):
        decode(content, "L", max_pixels=599)


def test_an_image_of_the_final_size_is_not_touched():
    image = gradient(12, 12)
    tensor = preprocess(encoded(image), PLAIN)
    want = torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
    torch.testing.assert_close(tensor, want, rtol=0, atol=0)
    wide = preprocess(encoded(gradient(17, 12)), PLAIN)
    torch.testing.assert_close(
        wide, torch.from_numpy(np.array(gradient(17, 12)))[:, 2:14].permute(2, 0, 1) / 255, rtol=0, atol=0
    )


@pytest.mark.parametrize("size", [(100, 100), (97, 64), (31, 200), (20, 20), (1, 500), (3000, 2)])
def test_resize_and_crop_equals_resizing_all_of_it_and_cropping(size):
    config = PreprocessingConfig(resize=32, crop=28)
    coarse = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize(size)
    got = resize_and_crop(image, config)
    scale = 32 / min(size)
    whole = image.resize((round(size[0] * scale), round(size[1] * scale)), Image.Resampling.BILINEAR)
    left, top = (whole.width - 28) // 2, (whole.height - 28) // 2
    want = whole.crop((left, top, left + 28, top + 28))
    assert got.size == (28, 28)
    difference = np.abs(np.asarray(got, dtype=int) - np.asarray(want, dtype=int))
    assert difference.mean() < 4, "sides are rounded to whole pixels there, and not here"


@pytest.mark.parametrize("size", [(128, 64), (60, 300), (50, 50)])
def test_a_person_is_squashed_to_a_rectangle_as_plain_resizing_does(size):
    config = PreprocessingConfig(resize=64, crop=64, height=128, crop_mode="squash")
    image = gradient(*size)
    got = preprocess(encoded(image), config)
    assert got.shape == (3, 128, 64)
    plain = np.asarray(image.resize((64, 128), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    want = (torch.from_numpy(plain) - torch.tensor(config.mean)) / torch.tensor(config.std)
    torch.testing.assert_close(got, want.permute(2, 0, 1), rtol=0, atol=1e-5)


def test_a_height_of_what_stays_as_large_as_it_is_is_refused():
    with pytest.raises(ValueError, match="got 128 with crop_mode 'none'"):
        PreprocessingConfig(resize=64, crop=64, height=128, crop_mode="none")


@pytest.mark.parametrize("size", [(128, 64), (64, 128), (32, 32)])
@pytest.mark.parametrize(("mode", "height"), [("border", 64), ("border", 32), ("center", 32), ("squash", 32)])
def test_every_crop_of_timm_is_followed_also_of_sizes_that_are_no_square(size, mode, height):
    from timm.data import create_transform

    config = PreprocessingConfig(resize=64, crop=64, height=height, crop_mode=mode)
    image = gradient(*size)
    settings = {"mean": config.mean, "std": config.std, "interpolation": "bilinear", "crop_pct": 1.0}
    want = create_transform((3, height, 64), crop_mode=mode, **settings)(image)
    got = preprocess(encoded(image), config)
    assert got.shape == (3, height, 64)
    assert (got - want).abs().max() < 2.1 / 255 / min(config.std)  # borders are whole numbers there, too


def test_a_very_long_strip_costs_no_more_memory_than_its_crop():
    strip = Image.new("L", (1_000_000, 2))
    config = PreprocessingConfig(color="L", resize=256, crop=224, mean=(0.5,), std=(0.5,))
    assert preprocess(encoded(strip), config).shape == (1, 224, 224)


def test_pixels_are_normalised_by_channel():
    config = PreprocessingConfig(resize=4, crop=4, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    tensor = preprocess(encoded(Image.new("RGB", (4, 4), (255, 0, 255))), config)
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    assert tensor[:, 0, 0].tolist() == [1.0, -1.0, 0.5]


def test_a_batch_is_its_images_in_order_also_from_views():
    contents = [picture(seed) for seed in range(3)]
    batch = preprocess_batch([memoryview(content) for content in contents], PLAIN)
    assert batch.shape == (3, 3, 12, 12)
    for row, content in zip(batch, contents, strict=True):
        torch.testing.assert_close(row, preprocess(content, PLAIN), rtol=0, atol=0)
