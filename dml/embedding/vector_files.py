"""Files of vectors, read in blocks: NumPy arrays, Parquet tables and HDF5 files, of any numeric type.

A block is read, used and let go, so a file may be larger than memory. Nothing is ever unpickled.
"""

import os
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet

from dml.data.items import require_unique_names
from dml.errors import InvalidData, InvalidSetting, MissingArtifact

VECTOR_COLUMNS = ("embedding", "embeddings", "vector", "vectors")
"""What a column of vectors is called, where a file has several columns that it could be."""
MISSING, WRONG_LENGTH = "missing vector", "wrong length"
NOT_FINITE, ZERO = "not a finite number", "zero vector"


@dataclass(frozen=True)
class Block:
    """Consecutive rows of a file."""

    vectors: NDArray[Any]
    """(n, D) numbers; zeros where `problems` has the row."""
    problems: dict[int, tuple[str, str]]
    """Row of the block to reason and detail, of those that have no vector of D numbers."""


class VectorFile(ABC):
    """(N, D) numbers in a file."""

    endings: ClassVar[tuple[str, ...]]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.num_rows, self.dim = self._shape()
        if self.num_rows < 1 or self.dim < 1:
            raise InvalidData(
                f"{path} must have one vector of one number or more; it has {self.num_rows} of {self.dim}."
            )

    @abstractmethod
    def _shape(self) -> tuple[int, int]:
        """N and D; raises InvalidData if it is not a matrix of numbers."""

    @abstractmethod
    def blocks(self, num_rows: int) -> Iterator[Block]:
        """All rows in their order, `num_rows` at a time, the last block shorter."""


class NpyFile(VectorFile):
    """A NumPy array."""

    endings = (".npy",)

    def _shape(self) -> tuple[int, int]:
        array = self._array()
        return require_numbers(array, self.path)

    def _array(self) -> NDArray[Any]:
        return open_npy(self.path)

    def blocks(self, num_rows: int) -> Iterator[Block]:
        array = self._array()
        kind, (num_all, dim), offset = array.dtype, array.shape, array.offset  # type: ignore[attr-defined]
        by_column = array.flags.f_contiguous and not array.flags.c_contiguous
        del array
        # Read, not mapped: a file that is cut short meanwhile would end the process by SIGBUS.
        with self.path.open("rb", buffering=0) as file:
            for start in range(0, num_all, num_rows):
                rows = min(num_rows, num_all - start)
                block = np.empty((rows, dim), kind, order="F" if by_column else "C")
                runs = block.T if by_column else block.reshape(1, -1)
                first = offset + (start if by_column else start * dim) * kind.itemsize
                for number, run in enumerate(runs):
                    self._fill(run, file, first + number * num_all * kind.itemsize)
                yield Block(block, {})

    def _fill(self, run: NDArray[Any], file: FileIO, position: int) -> None:
        """Read consecutive numbers from a position of the file."""
        file.seek(position)
        left = run.view(np.uint8).data
        while left:
            count = file.readinto(left)
            if not count:
                raise InvalidData(f"{self.path} must be whole; it ends before its last row. Write it again.")
            left = left[count:]


class Hdf5File(VectorFile):
    """A data set of an HDF5 file: the only one with two axes, or the one with a usual name."""

    endings = (".h5", ".hdf5")

    def _shape(self) -> tuple[int, int]:
        with _opened_hdf5(self.path) as file:
            self._name = self._choose(file)
            return require_numbers(file[self._name], self.path)

    def _choose(self, file: Any) -> str:
        import h5py

        tables = [
            name for name in file if isinstance(each := file.get(name), h5py.Dataset) and each.ndim == 2
        ]
        return _choose(tables, list(file), self.path)

    def blocks(self, num_rows: int) -> Iterator[Block]:
        with _opened_hdf5(self.path) as file:
            for start in range(0, self.num_rows, num_rows):
                yield Block(_read_hdf5(file[self._name], slice(start, start + num_rows), self.path), {})


class ParquetFile(VectorFile):
    """A column of lists in a Parquet table, read a few pages at a time."""

    endings = (".parquet", ".pq")

    def _shape(self) -> tuple[int, int]:
        with open_parquet(self.path) as file:
            schema = file.schema_arrow
            require_unique_names(schema.names, self.path)
            lists = [field.name for field in schema if is_vector(field.type)]
            self.column = _choose(lists, schema.names, self.path)
            self.other_columns = [name for name in schema.names if name != self.column]
            kind = _storage(schema.field(self.column).type)
            if not _is_number(kind.value_type):
                raise InvalidData(
                    f"Vectors must be numbers; column {self.column!r} of {self.path} holds {kind.value_type}."
                )
            size = kind.list_size if pa.types.is_fixed_size_list(kind) else self._usual_length(file)
            self._as_written = pa.types.is_list(kind) or pa.types.is_large_list(kind)
            return file.metadata.num_rows, size

    def _usual_length(self, file: parquet.ParquetFile) -> int:
        """The most frequent length of the first rows."""
        for batch in file.iter_batches(columns=[self.column]):
            lengths = compute.list_value_length(_storage_of(batch.column(0))).drop_null()
            if len(lengths):
                return int(compute.mode(lengths)[0]["mode"].as_py())
        return 0

    def blocks(self, num_rows: int) -> Iterator[Block]:
        with open_parquet(self.path, as_written=self._as_written) as file:
            try:
                for batch in file.iter_batches(batch_size=num_rows, columns=[self.column]):
                    yield self._block(_storage_of(batch.column(0)))
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(self.path, error) from error

    def _block(self, column: pa.Array) -> Block:
        lengths = compute.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
        usable = lengths == self.dim
        problems = {
            int(row): (MISSING, "no list of numbers")
            if lengths[row] < 0
            else (WRONG_LENGTH, f"{lengths[row]} numbers, where others have {self.dim}")
            for row in np.flatnonzero(~usable)
        }
        kept = column.filter(pa.array(usable)) if problems else column
        numbers = kept.flatten().to_numpy(zero_copy_only=False).reshape(-1, self.dim)
        if not problems:
            return Block(numbers, {})
        vectors = np.zeros((len(column), self.dim), dtype=numbers.dtype)
        vectors[usable] = numbers
        return Block(vectors, problems)


_KINDS: tuple[type[VectorFile], ...] = (NpyFile, ParquetFile, Hdf5File)


def open_vectors(path: Path) -> VectorFile:
    """The vectors of a file, by its ending: .npy, .parquet or .h5.

    Raises:
        MissingArtifact: there is no such file.
        InvalidSetting: another ending.
        InvalidData: it holds something else than (N, D) numbers, or is damaged.
    """
    require_file(path)
    for kind in _KINDS:
        if path.suffix.lower() in kind.endings:
            return kind(path)
    endings = [ending for kind in _KINDS for ending in kind.endings]
    raise InvalidSetting(f"Vectors must be in a file that ends in one of {endings}; got {path}. Convert it.")


def read_vector(path: Path) -> NDArray[np.float32]:
    """The one vector of a .npy file, (1, D) of unit length; raises as `open_vectors`."""
    unit = read_unit_vectors(path)
    if len(unit) != 1:
        raise InvalidData(f"{path} must hold one vector of finite numbers; it holds {len(unit)}.")
    return unit


def read_unit_vectors(path: Path) -> NDArray[np.float32]:
    """The vectors of a .npy file, (M, D) of unit length; raises as `open_vectors`."""
    require_file(path)
    array = np.atleast_2d(open_npy(path))
    require_numbers(array, path)
    unit, lengths = to_unit_length(np.array(array))
    if not len(unit) or not (np.isfinite(lengths) & (lengths > 0)).all():
        raise InvalidData(
            f"{path} must hold vectors of finite numbers, not all zero; it holds {len(unit)}, of lengths "
            f"{lengths[:3]}."
        )
    return unit


def to_unit_length(block: NDArray[Any]) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Numbers of any type as float32 of unit length.

    Args:
        block: (n, D).

    Returns:
        (n, D), and the (n,) lengths that the vectors had: 0, NaN or infinite where a row is of no use. What
        has unit length to float32's precision already keeps its bits.
    """
    numbers = block.astype(np.float64 if block.dtype.itemsize > 4 or block.dtype.kind in "iu" else np.float32)
    largest = np.abs(numbers).max(axis=1)
    usable = np.isfinite(largest) & (largest > 0)
    # Divided by the largest number first: squares of numbers beyond 1e19 are infinite in float32.
    scale = np.where(usable, largest, 1)
    scaled = numbers / scale[:, None]
    lengths = np.sqrt(np.einsum("nd,nd->n", scaled, scaled, dtype=np.float64))
    with np.errstate(over="ignore"):  # a length beyond float64's range; the row has a direction
        measured = np.where(usable, lengths * scale.astype(np.float64), largest)
    measured = np.where(usable, np.minimum(measured, np.finfo(np.float64).max), largest)
    unit = (scaled / np.where(usable, lengths, 1).astype(numbers.dtype)[:, None]).astype(np.float32)
    kept = (np.abs(measured - 1) < _FLOAT32_STEP) & (block.dtype.newbyteorder("=") == np.float32)
    unit[kept] = block[kept]
    return unit, measured


_FLOAT32_STEP = 1e-6


def require_file(path: Path) -> None:
    """Raise MissingArtifact for anything but a readable regular file."""
    if (address := re.match(r"(\w+):/+(?=.)", str(path))) is not None:  # a path has one slash of the two left
        uri = f"{address[1]}://{str(path)[address.end() :]}"
        raise MissingArtifact(
            f"Vectors, ids and attributes must be files on this machine, which are read in parts; got {uri}. "
            f"Copy it first, such as by aws s3 cp {uri} ."
        )
    if not path.is_file():
        what = "it is a folder" if path.is_dir() else "there is none"
        raise MissingArtifact(f"{path} must be a file on this machine; {what}. Check the path.")
    try:
        path.open("rb").close()
    except OSError as error:
        raise MissingArtifact(f"{path} must be readable; {error.strerror}. Check its rights.") from error


class Unchanged:
    """Files as they are now, to be compared with them when they have been read."""

    def __init__(self, paths: Sequence[Path]) -> None:
        for path in paths:
            require_file(path)
        self._stamps = {path: _stamp(path) for path in paths}

    def require(self) -> None:
        """Raise InvalidData for a file that was written, replaced or removed since."""
        for path, stamp in self._stamps.items():
            if _stamp(path) != stamp:
                raise InvalidData(
                    f"A file must not change while it is read; {path} did. Nothing was published. Wait until "
                    "it is written, and import it again."
                )


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except FileNotFoundError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def open_npy(path: Path) -> NDArray[Any]:
    """A NumPy array, memory-mapped; raises InvalidData if it contains pickled objects or is damaged."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)  # NumPy's, of a header whose sizes overflow
            array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, OSError, EOFError, OverflowError, TypeError, RuntimeWarning) as error:
        raise InvalidData(
            f"{path} must be a whole NumPy array of numbers or text: {str(error).rstrip('.')}. Arrays of "
            "Python objects are pickled, and never read: save it as numbers, with np.save."
        ) from error
    return array


def require_numbers(array: Any, path: Path) -> tuple[int, int]:
    """The two sizes of an array of real numbers; raises InvalidData for another."""
    if array.ndim != 2 or array.dtype.kind not in "fiu":
        raise InvalidData(
            f"{path} must hold (N, D) numbers, a row for each vector; it holds {array.dtype} of shape "
            f"{tuple(array.shape)}."
        )
    return int(array.shape[0]), int(array.shape[1])


def open_parquet(path: Path, *, as_written: bool = True) -> parquet.ParquetFile:
    """A Parquet file, read a page at a time.

    Args:
        path: the file.
        as_written: in the Arrow types that its writer had; False: in those of Parquet, which has lists of any
            length alone. Arrow refuses a whole column of lists of fixed length in which one row has none.

    Raises:
        InvalidData: it is damaged.
    """
    try:
        metadata = None if as_written else _without_arrow_schema(path)
        # Not mapped: a file that is cut short while it is read would end the process by SIGBUS.
        return parquet.ParquetFile(path, metadata=metadata, buffer_size=_BUFFER_BYTES, pre_buffer=False)
    except (OSError, pa.ArrowException) as error:
        raise _unreadable(path, error) from error


def _without_arrow_schema(path: Path) -> parquet.FileMetaData:
    """A file's metadata without the entry of its writer's Arrow types."""
    with path.open("rb") as stream:
        stream.seek(-_PARQUET_TAIL_BYTES, os.SEEK_END)
        tail = stream.read()
        length = int.from_bytes(tail[:4], "little")
        stream.seek(-_PARQUET_TAIL_BYTES - length, os.SEEK_END)
        footer = stream.read(length)
    renamed = footer.replace(_ARROW_SCHEMA, _ARROW_SCHEMA.lower())
    return parquet.read_metadata(pa.BufferReader(_PARQUET_MARK + renamed + tail))


_PARQUET_MARK, _PARQUET_TAIL_BYTES = b"PAR1", 8
"""A file begins with the mark, and ends with the length of its metadata, in 4 bytes, and the mark."""
_ARROW_SCHEMA = b"ARROW:schema"
_BUFFER_BYTES = 1 << 20
"""Of a column that are read at a time; without it, Arrow reads a column of a whole row group."""


def read_columns(path: Path, columns: list[str]) -> pa.Table:
    """Whole columns of a Parquet file."""
    with open_parquet(path) as file:
        try:
            return file.read(columns=columns)
        except (OSError, pa.ArrowException) as error:
            raise _unreadable(path, error) from error


def read_hdf5_text(path: Path, names: tuple[str, ...]) -> list[str] | None:
    """The first of these data sets of one axis, text or whole numbers, as text; None: the file has none.

    Raises:
        InvalidData: it holds something else, or is damaged.
    """
    import h5py

    with _opened_hdf5(path) as file:
        for name in names:
            column = file.get(name)
            if not isinstance(column, h5py.Dataset) or (column.ndim != 1 and len(file) == 1):
                continue  # the only data set is that of the vectors
            if column.ndim != 1:
                raise InvalidData(
                    f"Ids must have one axis, (N,); those of {path}, {name!r}, are {column.shape}. Write "
                    "them as one list, or rename the data set."
                )
            if column.dtype.kind not in "SOiu":
                raise InvalidData(
                    f"Ids must be text or whole numbers; those of {path}, {name!r}, are {column.dtype}."
                )
            values = _read_hdf5(column, slice(None), path)
            try:
                return [value.decode() if isinstance(value, bytes) else str(value) for value in values]
            except UnicodeDecodeError as error:
                raise InvalidData(
                    f"Ids must be text in UTF-8; {error.object!r} of {path}, {name!r}, is not. Write "
                    "it again."
                ) from error
    return None


def _read_hdf5(table: Any, rows: slice, path: Path) -> NDArray[Any]:
    try:
        read: NDArray[Any] = table[rows]
    except OSError as error:
        raise _not_hdf5(path, error) from error
    return read


def is_vector(kind: pa.DataType) -> bool:
    """Whether a column's values are lists."""
    kind = _storage(kind)
    types = pa.types
    tests = (
        *(types.is_list, types.is_large_list, types.is_fixed_size_list),
        *(types.is_list_view, types.is_large_list_view),
    )
    return any(test(kind) for test in tests)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _storage(kind: pa.DataType) -> pa.DataType:
    return kind.storage_type if isinstance(kind, pa.BaseExtensionType) else kind


def _storage_of(column: pa.Array) -> pa.Array:
    return column.storage if isinstance(column, pa.ExtensionArray) else column


def _choose(candidates: list[str], names: list[str], path: Path) -> str:
    called_so = [name for name in VECTOR_COLUMNS if name in candidates]
    if called_so or len(candidates) == 1:
        return (called_so or candidates)[0]
    raise InvalidData(
        f"{path} must have one column of vectors, or one called {VECTOR_COLUMNS[0]!r}; it has "
        f"{candidates or 'none'} among {names[:30]}. Rename the one that is meant."
    )


def _opened_hdf5(path: Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise _not_hdf5(path, error) from error


def _not_hdf5(path: Path, error: OSError) -> InvalidData:
    return InvalidData(f"{path} must be a whole HDF5 file: {error}. Write it again.")


def _unreadable(path: Path, error: Exception) -> InvalidData:
    return InvalidData(
        f"{path} must be a whole Parquet table: {str(error).splitlines()[0].rstrip('.')}. Write it again."
    )
