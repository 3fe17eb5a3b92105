"""MNIST and datasets in its format: pairs of idx files, gzipped or not; images become PNG files.

Source: LeCun, Cortes and Burges, yann.lecun.com/exdb/mnist. The files `train` and `t10k` share their
classes, so they become the attribute `part`, "train" and "test"; the split is by classes.
"""

import gzip
import io
import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dml.config import ClassSplit
from dml.data.sources.files import Files, FilesSource, Tree
from dml.data.sources.sample import MAX_BYTES, Listing, Problem, Sample, Stamp
from dml.errors import InvalidData

_FILE = re.compile(
    r"(?P<folder>.*/)?(?P<part>[^/]+)-(?P<what>images|labels)[-.]idx[13]-ubyte(?P<packed>\.gz)?", re.DOTALL
)
_PARTS = {"t10k": "test"}
_UINT8, _MOST_DIMENSIONS = 0x08, 4
_MOST_BYTES = 4 << 30


@dataclass(frozen=True)
class MnistSource(FilesSource):
    """One class per digit; attribute `part`: "train", "test" or another prefix of the files' names."""

    def listing(self, tree: Tree) -> Listing:
        pairs: dict[tuple[str, str], dict[str, str]] = {}
        for path in tree.files:
            if match := _FILE.fullmatch(path):
                pair = pairs.setdefault((match["folder"] or "", match["part"]), {})
                pair.setdefault(match["what"], path)  # unpacked before .gz, which sorts later
        several = len({folder for folder, _ in pairs}) > 1
        samples, problems = [], []
        for (folder, prefix), paths in sorted(pairs.items()):
            name = folder + prefix if several else prefix
            if len(paths) < 2:
                detail = f"only the {next(iter(paths))} file exists"
                problems.append(Problem(name, "", name, "missing file", detail))
                continue
            labels = _read_idx(self.files, paths["labels"])
            num_images = len(_read_idx(self.files, paths["images"]))
            if len(labels) != num_images:
                raise InvalidData(
                    f"{paths['images']} and {paths['labels']} must be equally long; got {num_images} and "
                    f"{len(labels)}. Download them again."
                )
            attributes = {"part": _PARTS.get(prefix, prefix)}
            samples += [
                Sample(f"{name}/{row:06d}", f"{paths['images']}#{row}", str(label), None, attributes)
                for row, label in enumerate(labels)
            ]
        return Listing(samples, ClassSplit(), problems)

    def stamps(self, locators: Sequence[str]) -> Sequence[Stamp | None]:
        paths = sorted({locator.rpartition("#")[0] for locator in locators})
        stamp_of = dict(zip(paths, self.files.stamps(paths), strict=True))
        return [stamp_of[locator.rpartition("#")[0]] for locator in locators]

    def read(self, locator: str, max_bytes: int = MAX_BYTES) -> bytes:
        path, _, row = locator.rpartition("#")
        encoded = io.BytesIO()
        Image.fromarray(_read_idx(self.files, path)[int(row)]).save(encoded, "PNG")
        return encoded.getvalue()


def recognize(tree: Tree) -> bool:
    return any(_FILE.fullmatch(path) for path in tree.files)


@lru_cache(maxsize=4)
def _read_idx(files: Files, path: str) -> NDArray[np.uint8]:
    """The array in an idx file: two zero bytes, type, number of dimensions, their sizes, then the values."""
    content = files.read_list(path, _MOST_BYTES)
    try:
        with (
            gzip.GzipFile(fileobj=io.BytesIO(content))
            if path.endswith(".gz")
            else io.BytesIO(content) as file
        ):
            header = file.read(4)
            if header[:3] != bytes((0, 0, _UINT8)) or not 0 < header[3] <= _MOST_DIMENSIONS:
                raise InvalidData(f"{path} must be an idx file of bytes; it begins with {header.hex()}.")
            shape = tuple(int(size) for size in np.frombuffer(file.read(4 * header[3]), dtype=">u4"))
            size = math.prod(shape)
            if len(shape) < header[3] or size > _MOST_BYTES:
                raise InvalidData(f"{path} must hold at most {_MOST_BYTES} values; its header says {shape}.")
            values = file.read(size + 1)  # no more than the header's size, also if the file is larger
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidData(f"{path} must unzip; it does not: {error}. Download it again.") from error
    if len(values) != size:
        got = f"{len(values)} bytes" if len(values) < size else "more"
        raise InvalidData(f"{path} must hold {shape} values after its header; got {got}. Download it again.")
    return np.frombuffer(values, dtype=np.uint8).reshape(shape)
