"""Thumbnails: of the pixels that a viewer shows, made once per fragment, gone with the items."""

import io

import numpy as np
import pytest
from PIL import Image

from dml import storage
from dml.data.dataset import fragments, read_images
from dml.data.thumbnails import SIDE, _folder_of, forget_thumbnails, make_thumbnails, read_thumbnails
from tests.embedding.parts import ROWS, ROWS_PER_FRAGMENT, make_dataset


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("thumbnails")
    return make_dataset(folder / "images", str(folder / "store"))


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DML_CACHE", str(tmp_path / "cache"))


def test_a_dataset_has_the_thumbnails_of_its_images_in_their_order(dataset):
    thumbnails, images = read_thumbnails(dataset), read_images(dataset, range(ROWS))
    alone = [make_thumbnails([image]) for image in images]
    np.testing.assert_array_equal(thumbnails.pixels, np.concatenate([each.pixels for each in alone]))
    assert len(thumbnails) == ROWS
    assert thumbnails.pixels.shape == (ROWS, SIDE, SIDE)
    assert thumbnails.size_bytes.tolist() == [len(image) for image in images]
    assert set(thumbnails.formats.tolist()) == {"PNG L"}
    assert thumbnails.is_grey.all()


def test_a_fragment_is_read_once(dataset, caplog):
    first = read_thumbnails(dataset)
    files = [_folder_of(fragment.name) / "thumbnails.npz" for fragment in fragments(dataset)]
    assert len(files) >= ROWS // ROWS_PER_FRAGMENT
    times = [file.stat().st_mtime_ns for file in files]
    np.testing.assert_array_equal(read_thumbnails(dataset).pixels, first.pixels)
    assert [file.stat().st_mtime_ns for file in files] == times


def test_a_damaged_copy_is_made_again(dataset):
    first = read_thumbnails(dataset)
    file = _folder_of(fragments(dataset)[0].name) / "thumbnails.npz"
    content = bytearray(file.read_bytes())
    content[-200] ^= 0xFF
    file.write_bytes(content)
    np.testing.assert_array_equal(read_thumbnails(dataset).pixels, first.pixels)


def test_forgetting_a_version_leaves_no_thumbnail_of_it(dataset, tmp_path):
    read_thumbnails(dataset)
    assert storage.list_names(str(tmp_path / "cache" / "thumbnails"))
    forget_thumbnails(dataset.uri)
    assert not storage.list_names(str(tmp_path / "cache" / "thumbnails"))


def test_grey_is_what_looks_grey_however_it_is_stored():
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8))
    color = Image.fromarray(np.random.default_rng(1).integers(0, 255, (40, 50, 3), dtype=np.uint8))
    files = [
        encoded(grey),
        encoded(grey.convert("RGB")),
        encoded(grey.convert("RGB"), "JPEG"),
        encoded(color),
        encoded(Image.new("RGB", (9, 9), "red")),
    ]
    thumbnails = make_thumbnails(files)
    assert thumbnails.is_grey.tolist() == [True, True, True, False, False]
    assert thumbnails.formats.tolist() == ["PNG L", "PNG RGB", "JPEG RGB", "PNG RGB", "PNG RGB"]


def test_a_photo_stored_on_its_side_has_the_thumbnail_of_the_upright_one():
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 32), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 8  # turn it by 90 degrees to the left
    lying = encoded(upright.transpose(Image.Transpose.ROTATE_270), exif=exif)
    thumbnails = make_thumbnails([encoded(upright), lying])
    np.testing.assert_array_equal(thumbnails.pixels[0], thumbnails.pixels[1])
