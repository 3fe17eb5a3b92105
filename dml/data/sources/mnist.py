"""MNIST's idx files (LeCun et al. 1998), gzipped or not; each digit becomes a PNG, which loses nothing."""

import gzip
import io
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dml.config import ClassSplit
from dml.data.sources.files import Files
from dml.data.sources.sample import Listing, Sample
from dml.errors import InvalidData

PARTS = ("train", "t10k")


@dataclass(frozen=True)
class MnistSource:
    """Digits 0-4 train, 5-9 test by default; the official halves are the attribute `part`."""

    files: Files

    def scan(self) -> Listing:
        samples = []
        for part in PARTS:
            labels = _read_part(self.files, part, "labels-idx1")
            if labels is not None:
                for row, digit in enumerate(labels):
                    name = f"{part}/{row:05d}"
                    samples.append(Sample(name, name, str(digit), attributes={"part": part}))
        return Listing(samples, ClassSplit())

    def read(self, locator: str) -> bytes:
        part, row = locator.split("/")
        images = _read_part(self.files, part, "images-idx3")
        if images is None or int(row) >= len(images):
            raise InvalidData(
                f"MNIST's {part} images must include number {row}; the file is missing or shorter."
            )
        out = io.BytesIO()
        Image.fromarray(images[int(row)]).save(out, "PNG")
        return out.getvalue()


@lru_cache(maxsize=4)
def _read_part(files: Files, part: str, kind: str) -> NDArray[np.uint8] | None:
    """One of the four files, whole and kept, since its rows are read one by one; None if it is missing."""
    names = [name for name in files.names() if name.rsplit("/", 1)[-1].startswith(f"{part}-{kind}")]
    return _read_idx(files, names[0]) if names else None


def _read_idx(files: Files, name: str) -> NDArray[np.uint8]:
    """An idx file of bytes: two zeros, 8, the number of dimensions, the big-endian sizes, the values."""
    content = files.read(name)
    content = gzip.decompress(content) if name.endswith(".gz") else content
    if content[:3] != b"\0\0\x08":
        raise InvalidData(
            f"{name} must be an idx file of bytes (it starts 00 00 08); got {content[:3].hex(' ')}."
        )
    dimensions = content[3]
    sizes = np.frombuffer(content, ">u4", dimensions, 4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * dimensions)
    if values.size != sizes.prod():
        raise InvalidData(f"{name} must hold {sizes.prod()} values as its head says; it holds {values.size}.")
    return values.reshape(sizes)
