"""Ready vectors of every format and type of number, and files that are none."""

import os
import pickle
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dml.embedding.vector_files import Unchanged, open_vectors, read_hdf5_text, read_vector, to_unit_length
from dml.errors import InvalidData, InvalidSetting, MissingArtifact
from tests.embedding.vectors import random_vectors, unit, write_hdf5, write_npy, write_parquet

WRITERS = {
    "npy": write_npy,
    "hdf5": write_hdf5,
    "fixed": write_parquet,
    "list": partial(write_parquet, kind="list"),
    "large": partial(write_parquet, kind="large"),
    "view": partial(write_parquet, kind="view"),
    "npy by column": lambda folder, vectors: write_npy(folder, np.asfortranarray(vectors)),
}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int64", ">f4"])
@pytest.mark.parametrize("form", WRITERS)
def test_blocks_of_every_format_and_type_are_the_rows_in_order(tmp_path, form, dtype):
    if dtype == ">f4" and form not in ("npy", "npy by column", "hdf5"):
        pytest.skip("Arrow has one byte order")
    vectors = (random_vectors(50, 8) * 50).astype(dtype)
    file = open_vectors(WRITERS[form](tmp_path, vectors))
    blocks = list(file.blocks(7))
    assert (file.num_rows, file.dim, len(blocks)) == (50, 8, 8)
    np.testing.assert_array_equal(np.vstack([block.vectors for block in blocks]), vectors)
    assert not any(block.problems for block in blocks)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "uint8", "int64"])
def test_unit_length_equals_division_in_float64(dtype):
    vectors = (random_vectors(50, 8) * 50).astype(dtype)
    actual, lengths = to_unit_length(vectors)
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, unit(vectors), atol=2e-7)
    np.testing.assert_allclose(lengths, np.linalg.norm(vectors.astype(np.float64), axis=1), rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-30, 1e30, 1e-300, 1e300])
def test_numbers_whose_squares_overflow_or_vanish_have_a_direction(scale):
    dtype = np.float64 if not 1e-38 < scale < 1e38 else np.float32
    vectors = (random_vectors(5, 8).astype(np.float64) * scale).astype(dtype)
    np.testing.assert_allclose(to_unit_length(vectors)[0], unit(random_vectors(5, 8)), atol=3e-7)


@pytest.mark.parametrize("dtype", ["<f4", ">f4"])
def test_float32_of_unit_length_keeps_its_bits(dtype):
    vectors = unit(random_vectors()).astype(dtype)
    np.testing.assert_array_equal(to_unit_length(vectors)[0], vectors)


@pytest.mark.parametrize("form", ["npy", "npy by column", "list"])
def test_a_file_that_is_cut_short_while_it_is_read_is_refused(tmp_path, form):
    file = open_vectors(WRITERS[form](tmp_path, random_vectors(200_000, 16)))
    blocks = file.blocks(20_000)
    next(blocks)
    os.truncate(file.path, 100_000)
    with pytest.raises(InvalidData, match=r"must be (whole|a whole Parquet table)"):
        list(blocks)


def appended(path):
    with path.open("ab") as file:
        file.write(b"more")


def replaced(path):
    path.with_suffix(".new").write_bytes(path.read_bytes())
    path.with_suffix(".new").rename(path)


@pytest.mark.parametrize("change", [appended, replaced, Path.unlink, lambda path: path.write_bytes(b"x")])
def test_a_file_that_was_written_replaced_or_removed_has_changed(tmp_path, change):
    paths = [tmp_path / "vectors.npy", tmp_path / "ids.txt"]
    for path in paths:
        path.write_bytes(b"some")
    files = Unchanged(paths)
    files.require()
    change(paths[1])
    with pytest.raises(InvalidData, match=r"must not change while it is read; .*ids\.txt did"):
        files.require()


def test_vectors_without_a_direction_are_recognised_by_their_length():
    lengths = to_unit_length(np.array([[0, 0], [np.nan, 1], [np.inf, 0], [-np.inf, np.nan], [0, 2]]))[1]
    assert lengths[0] == 0
    assert not np.isfinite(lengths[1:4]).any()
    assert lengths[4] == 2


def test_lists_that_are_missing_or_of_another_length_are_reported(tmp_path):
    rows = [[1.0, 2.0], None, [3.0], [4.0, None], [5.0, 6.0, 7.0], [8.0, 9.0]]
    parquet.write_table(pa.table({"v": rows}), tmp_path / "v.parquet")
    file = open_vectors(tmp_path / "v.parquet")
    (block,) = file.blocks(10)
    assert file.dim == 2
    assert {row: reason for row, (reason, _) in block.problems.items()} == {
        1: "missing vector",
        2: "wrong length",
        4: "wrong length",
    }
    np.testing.assert_array_equal(block.vectors[[0, 5]], [[1, 2], [8, 9]])
    assert np.isnan(block.vectors[3, 1])


@pytest.mark.parametrize(
    "make", [lambda kind: kind, lambda kind: pa.fixed_shape_tensor(kind.value_type, [2])]
)
@pytest.mark.parametrize("number", [pa.float32(), pa.float16(), pa.uint8()])
def test_a_missing_list_of_fixed_length_is_one_bad_row(tmp_path, number, make):
    """Arrow reads no such column: apache/arrow's "Expected all lists to be of size=2"."""
    kind = pa.list_(number, 2)
    column = pa.array([[1, 2], None, [8, 9], None], kind)
    if (extension := make(kind)) is not kind:
        column = pa.ExtensionArray.from_storage(extension, column)
    parquet.write_table(pa.table({"id": ["a", "b", "c", "d"], "v": column}), tmp_path / "v.parquet")
    file = open_vectors(tmp_path / "v.parquet")
    blocks = list(file.blocks(2))
    assert (file.num_rows, file.dim) == (4, 2)
    assert [{row: reason for row, (reason, _) in block.problems.items()} for block in blocks] == [
        {1: "missing vector"}
    ] * 2
    np.testing.assert_array_equal([block.vectors[0] for block in blocks], [[1, 2], [8, 9]])


def _pickled_array(path):
    np.save(path, np.array([{"a": 1}, None], dtype=object), allow_pickle=True)


def _pickle(path):
    path.write_bytes(pickle.dumps([1]))


def _longer_than_the_file(path):
    np.save(path, random_vectors())
    path.write_bytes(path.read_bytes()[:-100])


def _huge_shape(path):
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999, 99999999), }"
    path.write_bytes(b"\x93NUMPY\x01\x00" + len(header + b"\n").to_bytes(2, "little") + header + b"\n")


def _saved(array):
    return lambda path: np.save(path, array)


@pytest.mark.parametrize(
    "write",
    [
        _pickled_array,
        _pickle,
        _longer_than_the_file,
        _huge_shape,
        lambda path: path.write_bytes(b""),
        _saved(np.zeros(4)),
        _saved(np.zeros((2, 2, 2))),
        _saved(np.zeros((0, 4), np.float32)),
        _saved(np.zeros((4, 0), np.float32)),
        _saved(np.zeros((2, 2), np.complex64)),
        _saved(np.array([["a"]])),
        _saved(np.zeros((2, 2), bool)),
        _saved(np.zeros(3, [("a", np.float32)])),
    ],
)
def test_a_numpy_file_of_anything_else_is_refused_and_never_unpickled(tmp_path, write):
    write(tmp_path / "v.npy")
    with pytest.raises(InvalidData, match=r"v\.npy must"):
        open_vectors(tmp_path / "v.npy")


@pytest.mark.parametrize("name", ["v.parquet", "v.h5"])
def test_a_damaged_file_is_refused(tmp_path, name):
    (tmp_path / name).write_bytes(b"nothing of the kind")
    with pytest.raises(InvalidData, match="must be a whole"):
        open_vectors(tmp_path / name)


@pytest.mark.parametrize(
    "columns",
    [{"id": [1]}, {"a": [[1.0]], "b": [[1.0]]}, {"v": [["text"]]}, {"v": [[[1.0]]]}, {"v": [[]]}],
    ids=str,
)
def test_a_parquet_table_without_one_column_of_vectors_is_refused(tmp_path, columns):
    parquet.write_table(pa.table(columns), tmp_path / "v.parquet")
    with pytest.raises(InvalidData):
        open_vectors(tmp_path / "v.parquet")


def test_hdf5_without_one_table_of_numbers_is_refused(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["a"], file["b"] = np.zeros((2, 2)), np.zeros((2, 2))
        file["gone"] = h5py.SoftLink("/nowhere")
    with pytest.raises(InvalidData, match="one column of vectors"):
        open_vectors(tmp_path / "v.h5")


@pytest.mark.parametrize(
    "ids",
    [np.array([b"\xff"]), np.array([0.5]), np.zeros(1, [("a", int)])],
    ids=["bytes", "float", "compound"],
)
def test_hdf5_ids_of_another_type_are_refused(tmp_path, ids):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["id"] = ids
    with pytest.raises(InvalidData, match="Ids must be text"):
        read_hdf5_text(tmp_path / "v.h5", ("id",))


def test_an_hdf5_group_called_as_ids_are_is_passed_over(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_group("id")
        file["ids"] = np.arange(2)
    assert read_hdf5_text(tmp_path / "v.h5", ("id", "ids")) == ["0", "1"]


def test_an_hdf5_block_that_fails_its_checksum_is_refused(tmp_path):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file.create_dataset("embedding", data=np.ones((40, 600)), chunks=(4, 600), fletcher32=True)
    content = bytearray((tmp_path / "v.h5").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "v.h5").write_bytes(content)
    with pytest.raises(InvalidData, match="must be a whole HDF5 file"):
        list(open_vectors(tmp_path / "v.h5").blocks(8))


def test_a_length_beyond_float64_is_still_a_direction():
    unit, lengths = to_unit_length(np.full((1, 4), 1.7e308))
    np.testing.assert_allclose(unit, 0.5)
    assert np.isfinite(lengths).all()


def test_other_endings_and_absent_files_are_refused(tmp_path):
    (tmp_path / "v.pkl").write_bytes(b"")
    with pytest.raises(InvalidSetting, match=r"\.npy"):
        open_vectors(tmp_path / "v.pkl")
    with pytest.raises(MissingArtifact, match="there is none"):
        open_vectors(tmp_path / "absent.npy")
    with pytest.raises(MissingArtifact, match="it is a folder"):
        open_vectors(tmp_path)


@pytest.mark.parametrize(
    ("array", "must"),
    [
        (np.zeros(4), "not all zero"),
        (np.ones((2, 4)), "must hold one vector"),
        (np.array([1, np.nan]), "finite numbers"),
    ],
    ids=["zero", "two", "no number"],
)
def test_a_query_is_one_vector_with_a_direction(tmp_path, array, must):
    np.save(tmp_path / "q.npy", array)
    with pytest.raises(InvalidData, match=must):
        read_vector(tmp_path / "q.npy")


@pytest.mark.parametrize("path", [Path("s3://bucket/a/v.npy"), Path("https://host/v.parquet")])
def test_an_address_elsewhere_says_that_it_must_be_copied(path):
    with pytest.raises(MissingArtifact, match=r"got (s3://bucket/a/v.npy|https://host/v.parquet). Copy it"):
        open_vectors(path)


@pytest.mark.parametrize("shape", [(6, 1), (6, 2), ()])
def test_ids_that_are_no_list_are_refused_and_not_replaced_by_row_numbers(tmp_path, shape):
    with h5py.File(tmp_path / "v.h5", "w") as file:
        file["embedding"] = np.eye(6, 4)
        file["id"] = np.zeros(shape, np.int64)
    with pytest.raises(InvalidData, match=r"Ids must have one axis, \(N,\); those of .*v.h5, 'id', are \("):
        read_hdf5_text(tmp_path / "v.h5", ("id", "ids"))
