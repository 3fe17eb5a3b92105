"""What a look at a dataset needs of every image without decoding it again: a thumbnail, its format, its size.

A fragment's are made once per machine, in `storage.cache_dir()`: versions that share fragments share them.
"""

import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dml import storage
from dml.data.dataset import fragments, read_fragment_images
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
    """Of N images, in the order of their positions."""

    pixels: NDArray[np.uint8]
    """(N, SIDE, SIDE): brightness."""
    is_grey: NDArray[np.bool_]
    """(N,) whether red, green and blue are alike all over the image, however it is stored."""
    formats: NDArray[np.str_]
    """(N,) of the files: format and colour mode, as `JPEG RGB`."""
    size_bytes: NDArray[np.int64]
    """(N,) of the files."""

    def __len__(self) -> int:
        return len(self.pixels)


def read_thumbnails(ref: DatasetRef) -> Thumbnails:
    """Thumbnails of every image of a dataset; memory: 1 KiB per image.

    Raises:
        CorruptArtifact: a fragment is damaged.
    """
    parts = []
    sizes = [entry["rows"] for entry in storage.read_manifest(ref.uri)["fragments"]]
    with Ticker("thumbnails") as ticker:
        ticker.begin("reading", "images", sum(sizes))
        for uri, rows in zip(fragments(ref), sizes, strict=True):
            parts.append(_of_fragment(uri, rows, ticker))
    return Thumbnails(
        np.concatenate([part.pixels for part in parts]),
        np.concatenate([part.is_grey for part in parts]),
        np.concatenate([part.formats for part in parts]),
        np.concatenate([part.size_bytes for part in parts]),
    )


def forget_thumbnails(uri: str) -> None:
    """Remove from this machine the thumbnails of a dataset version's fragments, as they lie in its folder."""
    for name in storage.list_names(uri):
        if name.startswith("fragment-"):
            storage.delete(str(_folder_of(name)))


def make_thumbnails(images: Sequence[bytes]) -> Thumbnails:
    """Thumbnails of image files.

    Args:
        images: the files' bytes, at least one.

    Raises:
        UnreadableImage: as `decode`.
    """
    with ThreadPoolExecutor(_DECODING_THREADS) as pool:
        return _of_images(list(pool.map(_thumbnail, images)), images)


def _of_images(colours: Sequence[NDArray[np.uint8]], images: Sequence[bytes]) -> Thumbnails:
    rgb = np.stack(colours)
    spread = rgb.max(-1) - rgb.min(-1)
    return Thumbnails(
        np.stack([np.asarray(Image.fromarray(each).convert("L")) for each in rgb]),
        (spread <= _GREY_TOLERANCE).all((1, 2)),
        np.array([image_format(image) for image in images]),
        np.array([len(image) for image in images], dtype=np.int64),
    )


def _thumbnail(content: bytes) -> NDArray[np.uint8]:
    """(SIDE, SIDE, 3)."""
    image = decode(content, "RGB")
    small = image.resize((SIDE, SIDE), Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
    return np.asarray(small)


def _folder_of(fragment: str) -> Path:
    """Where a fragment's thumbnails lie; its name says what it holds."""
    return storage.cache_dir() / "thumbnails" / storage.digest_of(_CODE_VERSION, fragment)[:32]


def _of_fragment(uri: str, rows: int, ticker: Ticker) -> Thumbnails:
    folder = _folder_of(uri.rpartition("/")[2])
    if not storage.is_intact(str(folder)):
        _write(folder, _decoded(uri, rows, ticker))
    else:
        ticker.count(rows)
    with np.load(folder / _FILE, allow_pickle=False) as arrays:
        return Thumbnails(**arrays)


def _decoded(uri: str, rows: int, ticker: Ticker) -> Mapping[str, NDArray[np.generic]]:
    parts = []
    for images in _groups(uri, rows):
        parts.append(vars(make_thumbnails(images)))
        ticker.count(len(images))
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _groups(uri: str, rows: int) -> Iterator[list[bytes]]:
    """The images of a whole fragment, a row group's at a time."""
    return read_fragment_images(uri, np.arange(rows))


def _write(folder: Path, arrays: Mapping[str, NDArray[np.generic]]) -> None:
    """Aside, then renamed: processes that race write the same bytes, and readers see a whole file."""
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".{uuid.uuid4().hex}.npz"
    try:
        np.savez(aside, **arrays)  # type: ignore[arg-type]
        aside.rename(folder / _FILE)
    finally:
        aside.unlink(missing_ok=True)
    storage.seal(str(folder), {})
