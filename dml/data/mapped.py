"""A dataset's images in a local memory-mapped file, copied once per machine."""

import shutil
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml import storage
from dml.data.dataset import StoredFragment, fragments, opened_fragment
from dml.data.schema import IMAGE
from dml.errors import InvalidSetting
from dml.refs import DatasetRef


class MappedDataset:
    """A dataset's images in a local memory-mapped file; reading one takes microseconds, without a copy."""

    def __init__(self, ref: DatasetRef, path: Path) -> None:
        self.ref, self._path = ref, path
        source = pa.memory_map(str(path))
        reader = pa.ipc.open_file(source)
        batches = [reader.get_batch(number).column(IMAGE) for number in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *map(len, batches)])
        self._offsets = [np.frombuffer(b.buffers()[1], dtype=np.int32)[: len(b) + 1] for b in batches]
        self._bytes = [memoryview(batch.buffers()[2]) for batch in batches]

    def __reduce__(self) -> tuple[type[Self], tuple[DatasetRef, Path]]:
        """Another process maps the same file."""
        return type(self), (self.ref, self._path)

    def __len__(self) -> int:
        return int(self._starts[-1])

    def image(self, position: int) -> memoryview:
        """A view of the image file's bytes; valid while this object exists."""
        if not 0 <= position < len(self):
            raise ValueError(f"position must be in [0, {len(self)}); got {position}.")
        number = int(np.searchsorted(self._starts, position, side="right")) - 1
        row = int(position) - int(self._starts[number])
        begin, end = self._offsets[number][row : row + 2]
        return self._bytes[number][begin:end]

    def images(self, positions: Sequence[int] | NDArray[np.int64]) -> list[memoryview]:
        """Views of several image files' bytes, in the order of `positions`."""
        return [self.image(int(position)) for position in positions]


def open_mapped(ref: DatasetRef) -> MappedDataset:
    """A dataset's images, memory-mapped; copied to `storage.cache_dir()` once per machine and fingerprint.

    A damaged copy is replaced: its bytes are hashed like those of every artefact.

    Raises:
        InvalidSetting: the disk of the cache is too small.
    """
    target = storage.cache_dir() / "rows" / ref.fingerprint / "images.arrow"
    is_copied = storage.is_intact(str(target.parent))
    if not is_copied or storage.read_manifest(str(target.parent)).get("order") != ref.order:
        _copy_images(ref, target)
        storage.seal(str(target.parent), {"copy_of": ref.uri, "order": ref.order})
    return MappedDataset(ref, target)


def _copy_images(ref: DatasetRef, target: Path) -> None:
    """Write to a temporary file, then rename it: concurrent processes write equal files, readers see one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    manifest = storage.read_manifest(ref.uri)
    files = [*manifest["files"].values(), *manifest.get("shared", {}).values()]
    needed = sum(file["size_bytes"] for file in files)
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise InvalidSetting(
            f"Reading {ref} by position needs {needed >> 20} MiB in {target.parent}; "
            f"{free >> 20} MiB are free. Make room, or set DML_CACHE to a folder on a larger disk."
        )
    temporary = target.with_name(f".{uuid.uuid4().hex}.arrow")
    try:
        schema = pa.schema([pa.field(IMAGE, pa.binary(), nullable=False)])
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            for fragment in fragments(ref):
                for batch in _image_batches(fragment):
                    writer.write_batch(batch)
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)


def _image_batches(fragment: StoredFragment) -> Iterator[pa.RecordBatch]:
    rows, start = fragment.file_rows(), 0
    with opened_fragment(fragment.uri) as file:
        for group in range(file.num_row_groups):
            images = file.read_row_group(group, columns=[IMAGE])
            stop = start + len(images)
            kept = rows[(rows >= start) & (rows < stop)] - start
            yield from (images if len(kept) == len(images) else images.take(kept)).to_batches()
            start = stop
