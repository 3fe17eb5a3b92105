"""Thumbnails, formats and sizes of a dataset's images, so that a report does not decode every image again.

They are made once per fragment and machine, in `storage.cache_dir()`, also if versions share the fragment.
"""

import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dml import storage
from dml.data.dataset import StoredFragment, fragments, fragments_in, read_fragment_images
from dml.preprocessing import decode, image_format
from dml.progress import Ticker
from dml.refs import DatasetRef

SIDE = 32
"""Pixels of a thumbnail's width and height; the image's proportions are not kept."""
_CODE_VERSION = 1  # raise it when the same image would give another thumbnail
_FILE = "thumbnails.npz"
_DECODING_THREADS = 8
_GREY_TOLERANCE = 4  # of 255, between the channels of what JPEG has stored as colour
_REDUCING_GAP = 3.0  # Pillow: "almost indistinguishable" from resizing the whole, and several times faster


@dataclass(frozen=True)
class Thumbnails:
    """Thumbnails and file properties of N images, in the order of their positions."""

    pixels: NDArray[np.uint8]
    """(N, SIDE, SIDE) brightness."""
    is_grey: NDArray[np.bool_]
    """(N,) whether every pixel has equal red, green and blue, in any file format."""
    formats: NDArray[np.str_]
    """(N,) format and colour mode of the files, such as `JPEG RGB`."""
    size_bytes: NDArray[np.int64]
    """(N,) sizes of the files."""

    def __len__(self) -> int:
        return len(self.pixels)


def read_thumbnails(ref: DatasetRef) -> Thumbnails:
    """Thumbnails of every image of a dataset; memory: 1 KiB per image.

    Raises:
        CorruptArtifact: a fragment is damaged.
    """
    with Ticker("thumbnails") as ticker:
        ticker.begin("reading", "images", ref.rows)
        parts = [_read_fragment_thumbnails(fragment, ticker) for fragment in fragments(ref)]
    return Thumbnails(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.is_grey for part in parts]),
        np.concatenate([part.formats for part in parts]),
        np.concatenate([part.size_bytes for part in parts]),
    )


def forget_thumbnails(uri: str) -> None:
    """Remove from this machine the thumbnails of a dataset version's fragments."""
    for fragment in fragments_in(uri, storage.read_manifest(uri)):
        forget_fragment_thumbnails(fragment)


def forget_fragment_thumbnails(fragment: StoredFragment) -> None:
    """Remove from this machine the thumbnails of a fragment."""
    storage.delete(str(_folder_of(fragment.name)))


def make_thumbnails(images: Sequence[bytes]) -> Thumbnails:
    """Thumbnails of image files.

    Args:
        images: the files' bytes, at least one.

    Raises:
        UnreadableImage: as `decode`.
    """
    with ThreadPoolExecutor(_DECODING_THREADS) as pool:
        return _from_pixels(list(pool.map(_thumbnail, images)), images)


def _from_pixels(thumbnails: Sequence[NDArray[np.uint8]], images: Sequence[bytes]) -> Thumbnails:
    rgb = np.stack(thumbnails)
    spread = rgb.max(-1) - rgb.min(-1)
    return Thumbnails(
        np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in rgb]),
        (spread <= _GREY_TOLERANCE).all((1, 2)),
        np.array([image_format(image) for image in images]),
        np.array([len(image) for image in images], dtype=np.int64),
    )


def _thumbnail(content: bytes) -> NDArray[np.uint8]:
    """(SIDE, SIDE, 3) RGB."""
    image = decode(content, "RGB")
    small = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    return np.asarray(small)


def _folder_of(fragment: str) -> Path:
    """The folder of a fragment's thumbnails; a fragment's name contains the digest of its content."""
    return storage.cache_dir() / "thumbnails" / storage.digest_of(_CODE_VERSION, fragment)[:32]


def _read_fragment_thumbnails(fragment: StoredFragment, ticker: Ticker) -> Thumbnails:
    """Those of the fragment's rows; the cache has those of all rows of the file."""
    folder = _folder_of(fragment.name)
    if not storage.is_intact(str(folder)):
        whole = StoredFragment(fragment.uri, fragment.rows + len(fragment.deleted))
        _write_cache(folder, _decode_fragment(whole, ticker))
    else:
        ticker.count(fragment.rows)
    with np.load(folder / _FILE, allow_pickle=False) as arrays:
        return Thumbnails(**{name: values[fragment.file_rows()] for name, values in arrays.items()})


def _decode_fragment(fragment: StoredFragment, ticker: Ticker) -> Mapping[str, NDArray[np.generic]]:
    parts = []
    for images in read_fragment_images(fragment, np.arange(fragment.rows)):
        parts.append(vars(make_thumbnails(images)))
        ticker.count(len(images))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _write_cache(folder: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Write a temporary file and rename it, so that readers never see a partial file."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{uuid.uuid4().hex}.npz"
    try:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
        temporary.rename(folder / _FILE)
    finally:
        temporary.unlink(missing_ok=True)
    storage.seal(str(folder), {})
