"""MNIST and what is packed like it: pairs of idx files, gzipped or not; images become PNG files.

Source: LeCun, Cortes and Burges, yann.lecun.com/exdb/mnist. The halves `train` and `t10k` share their
classes, so here they are an attribute; classes 0-4 train and 5-9 test by default.
"""

import gzip
import io
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dml.config import ClassSplit
from dml.data.sources.files import Files, Tree
from dml.data.sources.sample import Listing, Problem, Sample
from dml.errors import InvalidData

_FILE = re.compile(r"(?:.*/)?(?P<part>[^/]+)-(?P<what>images|labels)[-.]idx[13]-ubyte(?:\.gz)?")
_UINT8 = 0x08


@dataclass(frozen=True)
class MnistSource:
    """One class per digit; attribute `part`, "train" or "t10k"."""

    files: Files

    def list(self) -> Listing:
        found: dict[str, dict[str, str]] = {}
        for path in self.files.tree().files:
            if match := _FILE.fullmatch(path):
                found.setdefault(match["part"], {})[match["what"]] = path
        samples, problems = [], []
        for part, paths in sorted(found.items()):
            if len(paths) < 2:
                detail = f"only the {next(iter(paths))} file is there"
                problems.append(Problem(part, "", part, "missing file", detail))
                continue
            labels = _read_idx(self.files, paths["labels"])
            num_images = len(_read_idx(self.files, paths["images"]))
            if len(labels) != num_images:
                raise InvalidData(
                    f"{paths['images']} and {paths['labels']} must be equally long; got {num_images} and "
                    f"{len(labels)}. Download them again."
                )
            samples += [
                Sample(f"{part}/{row:06d}", f"{paths['images']}#{row}", str(label), None, {"part": part})
                for row, label in enumerate(labels)
            ]
        return Listing(samples, ClassSplit(), problems)

    def read(self, locator: str) -> bytes:
        path, _, row = locator.rpartition("#")
        encoded = io.BytesIO()
        Image.fromarray(_read_idx(self.files, path)[int(row)]).save(encoded, "PNG")
        return encoded.getvalue()


def recognise(tree: Tree) -> bool:
    return any(_FILE.fullmatch(path) for path in tree.files)


@lru_cache(maxsize=4)
def _read_idx(files: Files, path: str) -> NDArray[np.uint8]:
    """The array in an idx file: two zero bytes, type, number of dimensions, their sizes, then the values."""
    content = files.read(path)
    if path.endswith(".gz"):
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise InvalidData(f"{path} must unzip; it does not: {error}. Download it again.") from error
    if content[:3] != bytes((0, 0, _UINT8)):
        raise InvalidData(f"{path} must be an idx file of bytes; it begins with {content[:4].hex()}.")
    dimensions = content[3]
    start = 4 + 4 * dimensions
    shape = tuple(int(size) for size in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) != start + int(np.prod(shape)):
        raise InvalidData(
            f"{path} must hold {shape} values after its header; got {len(content) - start} bytes. "
            "Download it again."
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
