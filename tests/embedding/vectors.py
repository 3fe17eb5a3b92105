"""Files of ready vectors in every format, for the rooms above too."""

from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

ROWS, DIM = 120, 16


def random_vectors(rows: int = ROWS, dim: int = DIM, seed: int = 7) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((rows, dim)).astype(np.float32)


def unit(vectors: np.ndarray) -> np.ndarray:
    """The same in float64, of unit length."""
    vectors = vectors.astype(np.float64)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def ids_of(rows: int) -> list[str]:
    return [f"item {row}" for row in range(rows)]


def write_npy(folder: Path, vectors: np.ndarray) -> Path:
    np.save(folder / "vectors.npy", vectors)
    return folder / "vectors.npy"


def write_hdf5(folder: Path, vectors: np.ndarray) -> Path:
    import h5py

    with h5py.File(folder / "vectors.h5", "w") as file:
        file["embeddings"] = vectors
        file["other"] = np.arange(3)
    return folder / "vectors.h5"


def write_parquet(folder: Path, vectors: np.ndarray, *, kind: str = "fixed", **columns: list) -> Path:
    numbers = pa.array(vectors.ravel())
    dim = vectors.shape[1]
    if kind == "fixed":
        column = pa.FixedSizeListArray.from_arrays(numbers, dim)
    elif kind == "view":
        column = pa.array(list(vectors), pa.list_view(numbers.type))
    else:
        make = pa.LargeListArray if kind == "large" else pa.ListArray
        column = make.from_arrays(pa.array(range(0, len(numbers) + 1, dim), make_offsets(kind)), numbers)
    parquet.write_table(pa.table({**columns, "embedding": column}), folder / "vectors.parquet")
    return folder / "vectors.parquet"


def make_offsets(kind: str) -> pa.DataType:
    return pa.int64() if kind == "large" else pa.int32()


def write_ids(folder: Path, ids: list[str]) -> Path:
    path = folder / "ids.csv"
    path.write_text("id\n" + "".join(f"{id_}\n" for id_ in ids))
    return path
