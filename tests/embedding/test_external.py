"""Vectors that something else made become an embeddings table of items without images."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from dml import storage
from dml.data.dataset import read_rows
from dml.data.forgotten import add_forgotten
from dml.data.quarantine import read_quarantine
from dml.embedding.external import import_vectors
from dml.embedding.imported import find_vectors, list_vectors, rollback_vectors
from dml.embedding.imported_table import ImportedTable
from dml.embedding.table import read_embeddings
from dml.errors import (
    CorruptArtifact,
    ForgottenMeanwhile,
    InvalidData,
    InvalidSetting,
    MissingArtifact,
    TooManyRefused,
)
from tests.embedding.vectors import (
    DIM,
    ROWS,
    ids_of,
    random_vectors,
    unit,
    write_hdf5,
    write_ids,
    write_npy,
    write_parquet,
)

BLOCK_BYTES = 50 * 4 * DIM
"""Three parts of `ROWS` rows."""


@pytest.fixture
def new_store(tmp_path):
    return str(tmp_path / "store")


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8"])
@pytest.mark.parametrize("write", [write_npy, write_hdf5, write_parquet], ids=lambda f: f.__name__)
def test_every_format_and_type_comes_back_as_unit_vectors_with_its_ids(tmp_path, new_store, write, dtype):
    vectors = (random_vectors() * 30).astype(dtype)
    report = import_vectors(
        new_store,
        "clip",
        write(tmp_path, vectors),
        ids=write_ids(tmp_path, ids_of(ROWS)),
        block_bytes=BLOCK_BYTES,
    )
    table = read_embeddings(find_vectors(new_store, "clip"))
    assert table.ids.to_pylist() == ids_of(ROWS)
    np.testing.assert_allclose(table.vectors, unit(vectors), atol=2e-7)
    assert (report.normalized, report.refused, report.embeddings.rows) == (ROWS, [], ROWS)


def test_one_table_holds_vectors_ids_labels_and_attributes(tmp_path, new_store):
    labels = [f" kind {row % 3} " for row in range(ROWS)]
    path = write_parquet(
        tmp_path, random_vectors(), id=list(range(ROWS)), label=labels, price=[float(r) for r in range(ROWS)]
    )
    report = import_vectors(new_store, "clip", path, block_bytes=BLOCK_BYTES)
    items = report.embeddings.items
    assert (items.rows, items.classes, items.attributes) == (ROWS, 3, {"price": "double"})
    rows = read_rows(items).to_pylist()
    assert rows[50] == {"id": "50", "label": "kind 2", "price": 50.0, "position": 50}


def test_without_ids_an_item_is_called_by_its_row(tmp_path, new_store):
    report = import_vectors(new_store, "clip", write_npy(tmp_path, random_vectors()))
    assert read_rows(report.embeddings.items)["id"].to_pylist() == [str(row) for row in range(ROWS)]


def test_attributes_are_matched_by_id_in_any_order_and_others_are_reported(tmp_path, new_store):
    lines = [f"item {row},{row:03d},{row}" for row in reversed(range(10, ROWS + 5))]
    (tmp_path / "items.csv").write_text("id,code,number\n" + "\n".join(lines) + "\n")
    report = import_vectors(
        new_store,
        "clip",
        write_npy(tmp_path, random_vectors()),
        ids=write_ids(tmp_path, ids_of(ROWS)),
        attributes=tmp_path / "items.csv",
    )
    rows = read_rows(report.embeddings.items).to_pylist()
    assert rows[42] == {"id": "item 42", "label": None, "code": "042", "number": 42, "position": 42}
    assert rows[3]["code"] is None
    assert [note.split(" of ")[0] for note in report.notes] == ["10", "5 rows"]


def test_columns_that_no_attribute_can_be_are_left_out_and_reported(tmp_path, new_store):
    columns = {"id": ids_of(ROWS), "sha256": ["x"] * ROWS, "tags": [["a"]] * ROWS, "split": ["test"] * ROWS}
    parquet.write_table(pa.table(columns), tmp_path / "items.parquet")
    vectors = write_npy(tmp_path, random_vectors())
    report = import_vectors(new_store, "clip", vectors, attributes=tmp_path / "items.parquet")
    assert report.embeddings.items.attributes == {"split": "string"}
    assert ["sha256" in report.notes[0], "tags" in report.notes[1]] == [True, True]


def test_rows_of_no_use_are_quarantined_with_their_reasons_and_the_others_published(tmp_path, new_store):
    vectors = random_vectors(1000)
    vectors[10], vectors[20, 3], vectors[30, 3] = 0, np.nan, np.inf
    ids = ids_of(1000)
    ids[40], ids[50], ids[51] = "item 7", "", " "
    parquet.write_table(pa.table({"id": ids}), tmp_path / "ids.parquet")
    report = import_vectors(
        new_store, "clip", write_npy(tmp_path, vectors), ids=tmp_path / "ids.parquet", block_bytes=BLOCK_BYTES
    )
    problems = read_quarantine(storage.join(report.embeddings.uri, "quarantine.parquet"))
    assert {problem.locator.rpartition("#")[2]: problem.reason for problem in problems} == {
        "10": "zero vector",
        "20": "not a finite number",
        "30": "not a finite number",
        "40": "repeated id",
        "50": "missing id",
        "51": "missing id",
    }
    table = read_embeddings(report.embeddings)
    kept = np.delete(vectors, [10, 20, 30, 40, 50, 51], axis=0)
    np.testing.assert_allclose(table.vectors, unit(kept), atol=2e-7)
    assert (report.embeddings.rows, sum(refusal.rows for refusal in report.refused)) == (994, 6)


def test_too_many_bad_rows_fail_and_nothing_is_published(tmp_path, new_store):
    vectors = random_vectors()
    vectors[:7] = np.nan  # 5.8 %
    with pytest.raises(TooManyRefused, match=r"7 or more of the 120 .*not a finite number"):
        import_vectors(new_store, "clip", write_npy(tmp_path, vectors))
    with pytest.raises(MissingArtifact):
        find_vectors(new_store, "clip")
    assert not storage.list_folders(storage.join(new_store, "vectors", "clip"))
    assert len(read_quarantine(f"{new_store}/quarantine/clip.parquet")) == 7
    report = import_vectors(new_store, "clip", tmp_path / "vectors.npy", max_quarantined=0.1)
    assert report.embeddings.rows == ROWS - 7


def test_a_file_of_bad_rows_alone_fails_also_where_all_may_be_refused(tmp_path, new_store):
    vectors = write_npy(tmp_path, np.zeros((4, 4), np.float32))
    with pytest.raises(InvalidData, match="none of 4 can: 4 zero vector"):
        import_vectors(new_store, "clip", vectors, max_quarantined=1)


@pytest.mark.parametrize("number", [ROWS - 1, ROWS + 1])
def test_another_number_of_ids_than_of_vectors_is_refused(tmp_path, new_store, number):
    with pytest.raises(InvalidData, match=rf"120 vectors, and there are {number} ids"):
        import_vectors(
            new_store, "clip", write_npy(tmp_path, random_vectors()), ids=write_ids(tmp_path, ids_of(number))
        )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("price\n1\n2\n", "2 rows for 120 vectors"),
        ("id,price\nitem 1,1\nitem 1,2\n" * 60, None),
        ('id,price\n"item 1,1\n', None),
        ("id,unit price\nitem 1,1\n", "letters, digits"),
        ("id,price:money\nitem 1,1\n", "money"),
    ],
)
def test_attributes_that_cannot_be_matched_or_read_are_refused(tmp_path, new_store, text, message):
    (tmp_path / "items.csv").write_text(text)
    vectors, ids = write_npy(tmp_path, random_vectors()), write_ids(tmp_path, ids_of(ROWS))
    with pytest.raises(InvalidData, match=message):
        import_vectors(new_store, "clip", vectors, ids=ids, attributes=tmp_path / "items.csv")


@pytest.mark.parametrize(
    ("name", "usable"), [("unit price", "unit_price"), ("2nd", "column_2nd"), ("%", "column")]
)
def test_a_column_of_an_unusable_name_is_named_with_a_usable_one(tmp_path, new_store, name, usable):
    vectors = write_parquet(tmp_path, random_vectors(), **{name: ids_of(ROWS), "a-b": ids_of(ROWS)})
    with pytest.raises(InvalidData) as refused:
        import_vectors(new_store, "clip", vectors)
    said = str(refused.value)
    assert f"got {name!r} and 1 more. Rename it in the file, as {usable}, or leave it out" in said
    assert f"table.rename_columns({{{name!r}: {usable!r}}})" in said


def test_ids_of_their_own_rename_the_rows_of_one_table_and_leave_the_attributes_where_they_are(
    tmp_path, new_store
):
    vectors = write_parquet(tmp_path, random_vectors(), id=ids_of(ROWS), price=list(range(ROWS)))
    report = import_vectors(new_store, "clip", vectors, ids=write_ids(tmp_path, ids_of(ROWS)[::-1]))
    assert read_rows(report.embeddings.items).select(["id", "price"]).to_pylist()[:2] == [
        {"id": "item 119", "price": 0},
        {"id": "item 118", "price": 1},
    ]
    assert report.notes == []


def test_columns_that_nobody_reads_are_named(tmp_path, new_store):
    vectors = write_parquet(tmp_path, random_vectors(), id=ids_of(ROWS), label=["a"] * ROWS)
    lines = [f"{id_};b;{row}" for row, id_ in enumerate(ids_of(ROWS))]
    (tmp_path / "ids.csv").write_text("\n".join(["id;label;price", *lines]))
    (tmp_path / "items.csv").write_text("\n".join(["id;color", *(f"{id_};red" for id_ in ids_of(ROWS))]))
    report = import_vectors(
        new_store, "clip", vectors, ids=tmp_path / "ids.csv", attributes=tmp_path / "items.csv"
    )
    assert report.notes == [
        f"columns ['label', 'price'] of {tmp_path / 'ids.csv'} are left out: --ids takes `id` alone; add "
        f"--attributes {tmp_path / 'ids.csv'}",
        f"columns ['label'] of {vectors} are left out: the attributes are those of {tmp_path / 'items.csv'}",
    ]
    both = import_vectors(
        new_store, "clip", vectors, ids=tmp_path / "ids.csv", attributes=tmp_path / "ids.csv"
    )
    assert set(both.embeddings.items.attributes) == {"price"}
    assert both.embeddings.items.classes == 1


def test_a_line_of_a_text_file_is_one_id_whatever_separators_it_has(tmp_path, new_store):
    ids = [f"a\u2028b\x0c{row}" for row in range(ROWS)]
    (tmp_path / "ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    report = import_vectors(
        new_store, "clip", write_npy(tmp_path, random_vectors()), ids=tmp_path / "ids.txt"
    )
    assert read_rows(report.embeddings.items)["id"].to_pylist() == ids


def test_ids_of_any_text_come_back_as_they_were(tmp_path, new_store):
    names = [
        "a\nb",
        "nul\0x",
        "😀",
        "x" * 10_000,
        "'; DROP TABLE items; --",
        "../../etc/passwd",
        " a",
        "\u202eabc",
    ]
    names += [
        "--help",
        "a@b",
        "@champion",
        "[red]",
        "%s{0}",
        "\x1b[31m",
        "\ufeffbom",
        "null",
        "NaN",
        '"',
        "a,b",
        "\u00e9",
        "e\u0301",
    ]
    vectors = random_vectors()[: len(names) + 3]
    path = write_parquet(tmp_path, vectors, id=[*names, "😀", "\t", None])
    report = import_vectors(new_store, "v", path, max_quarantined=0.5)
    assert read_embeddings(report.embeddings).ids.to_pylist() == names
    assert {each.reason: each.rows for each in report.refused} == {"repeated id": 1, "missing id": 2}


def test_a_blank_line_among_ids_is_a_missing_id_and_moves_no_other(tmp_path, new_store):
    vectors = write_npy(tmp_path, random_vectors()[:4])
    (tmp_path / "ids.csv").write_text("id\na\n\nc\nd\n\n\n")
    report = import_vectors(new_store, "v", vectors, ids=tmp_path / "ids.csv", max_quarantined=0.5)
    assert [(each.reason, each.rows) for each in report.refused] == [("missing id", 1)]
    table = read_embeddings(report.embeddings)
    assert table.ids.to_pylist() == ["a", "c", "d"]
    np.testing.assert_allclose(table.vectors, unit(random_vectors()[[0, 2, 3]]), atol=1e-6)


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_a_csv_table_may_have_any_usual_delimiter(tmp_path, new_store, delimiter):
    vectors = write_npy(tmp_path, random_vectors()[:2])
    rows = [["id", "size", "price"], ["x", "1,5", "3"], ["y", '"z;"', "4"]]
    if delimiter == ",":
        rows[1][1] = '"1,5"'
    (tmp_path / "items.csv").write_text("".join(delimiter.join(row) + "\n" for row in rows))
    report = import_vectors(new_store, "v", vectors, attributes=tmp_path / "items.csv")
    table = read_rows(report.embeddings.items)
    assert report.embeddings.items.attributes == {"size": "string", "price": "int64"}
    assert table["size"].to_pylist() == ["1,5", "z;"]


def test_a_former_version_is_meant_again_after_a_rollback(tmp_path, new_store):
    first = import_vectors(new_store, "v", write_npy(tmp_path, random_vectors())).embeddings
    import_vectors(new_store, "v", write_npy(tmp_path, -random_vectors()))
    assert rollback_vectors(new_store, "v").version == first.version
    assert find_vectors(new_store, "v").version == first.version
    with pytest.raises(MissingArtifact, match="must have a former version"):
        rollback_vectors(new_store, "v")
    with pytest.raises(MissingArtifact, match="'w' must exist"):
        rollback_vectors(new_store, "w")


def test_text_views_are_text(tmp_path, new_store):
    texts = {name: pa.array(ids_of(ROWS), pa.string_view()) for name in ("id", "label", "place")}
    ref = import_vectors(new_store, "clip", write_parquet(tmp_path, random_vectors(), **texts)).embeddings
    rows = read_rows(ref.items)
    assert all(rows[name].to_pylist() == ids_of(ROWS) for name in texts)


def test_a_label_is_kept_or_refused_as_by_an_ingest(tmp_path, new_store):
    labels = ["two\nlines", "\ufeffcat\u200b\n", "cafe\u0301", "a\u2028b", "b" * 1001, "\u200b", " ", None]
    labels += ["x"] * (ROWS - len(labels))
    path = write_parquet(tmp_path, random_vectors(), label=labels)
    report = import_vectors(new_store, "v", path, max_quarantined=0.5)
    kept = read_rows(report.embeddings.items)["label"].to_pylist()
    assert kept[:5] == ["cat", "caf\u00e9", None, None, None]
    assert set(kept[5:]) == {"x"}
    problems = read_quarantine(storage.join(report.embeddings.uri, "quarantine.parquet"))
    assert [(each.id, each.reason) for each in problems] == [
        (id_, "unusable label") for id_ in ("0", "3", "4")
    ]


@pytest.mark.parametrize("value", ["1_000", "\u0663", "0x1A", "1e400", "nan"])
@pytest.mark.parametrize("kind", ["int64", "double"])
def test_a_declared_number_must_be_one_and_the_row_that_is_none_is_named(tmp_path, new_store, kind, value):
    vectors = write_npy(tmp_path, random_vectors())
    lines = [f"{row},{value if row == 2 else ' +7'}" for row in range(ROWS)]
    (tmp_path / "items.csv").write_text("\n".join([f"id,n:{kind}", *lines]))
    with pytest.raises(
        InvalidData, match=f"Column 'n' of .*items.csv must be {kind}; got '{value}' in row 3"
    ):
        import_vectors(new_store, "v", vectors, attributes=tmp_path / "items.csv")


def test_a_label_that_is_nan_is_missing(tmp_path, new_store):
    labels = [float("nan"), *[1.0, 2.0] * 59, 1.0]
    report = import_vectors(new_store, "clip", write_parquet(tmp_path, random_vectors(), label=labels))
    assert report.embeddings.items.classes == 2


def _text_that_is_not_utf8() -> pa.Array:
    buffers = pa.array([f"\xff{row}".encode("latin-1") for row in range(ROWS)]).buffers()
    return pa.Array.from_buffers(pa.string(), ROWS, buffers)


@pytest.mark.parametrize("beside", [True, False], ids=["of its own", "of the vectors"])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("id", _text_that_is_not_utf8()),
        ("label", _text_that_is_not_utf8()),
        ("note", _text_that_is_not_utf8()),
        ("count", pa.array([2**63] * ROWS, pa.uint64())),
    ],
    ids=["id", "label", "text", "integers"],
)
def test_a_column_whose_values_no_item_can_hold_is_named(tmp_path, new_store, name, values, beside):
    if beside:
        vectors, attributes = write_npy(tmp_path, random_vectors()), tmp_path / "items.parquet"
        parquet.write_table(pa.table({name: values}), attributes)
    else:
        vectors, attributes = write_parquet(tmp_path, random_vectors(), **{name: values}), None
    with pytest.raises(InvalidData, match=f"Column '{name}' of .* must hold"):
        import_vectors(new_store, "clip", vectors, attributes=attributes)


@pytest.mark.parametrize("name", ["id", "embedding"])
def test_a_column_that_occurs_twice_is_refused(tmp_path, new_store, name):
    table = parquet.read_table(write_parquet(tmp_path, random_vectors(), id=ids_of(ROWS)))
    parquet.write_table(table.append_column(name, table[name]), tmp_path / "twice.parquet")
    with pytest.raises(InvalidData, match=rf"unique name; got \['{name}'\] twice"):
        import_vectors(new_store, "clip", tmp_path / "twice.parquet")


def test_a_csv_table_in_utf16_is_refused(tmp_path, new_store):
    (tmp_path / "ids.csv").write_text("id\na\n", encoding="utf-16")
    with pytest.raises(InvalidData, match="UTF-8"):
        import_vectors(new_store, "clip", write_npy(tmp_path, random_vectors()), ids=tmp_path / "ids.csv")


def test_a_table_of_ids_needs_a_column_of_that_name(tmp_path, new_store):
    (tmp_path / "ids.csv").write_text("name\na\n")
    vectors = write_npy(tmp_path, random_vectors())
    with pytest.raises(InvalidData, match="column `id`"):
        import_vectors(new_store, "clip", vectors, ids=tmp_path / "ids.csv")


def test_the_same_content_is_the_same_version_and_other_content_a_new_one(tmp_path, new_store):
    first = import_vectors(new_store, "clip", write_npy(tmp_path, random_vectors()))
    again = import_vectors(new_store, "clip", write_npy(tmp_path, random_vectors()), block_bytes=1 << 26)
    assert (again.embeddings, again.outcome) == (first.embeddings, "current")
    other = import_vectors(new_store, "clip", write_npy(tmp_path, random_vectors(seed=8)))
    assert other.embeddings.version != first.embeddings.version
    assert other.embeddings.items.fingerprint == first.embeddings.items.fingerprint
    assert find_vectors(new_store, "clip") == other.embeddings
    assert find_vectors(new_store, f"clip@{first.embeddings.version}") == first.embeddings


def test_an_import_beside_which_items_are_forgotten_takes_back_only_what_it_made(
    tmp_path, new_store, monkeypatch
):
    first = import_vectors(new_store, "clip", write_npy(tmp_path, random_vectors())).embeddings
    publish, others = ImportedTable.publish, iter(["one", "another"])

    def forget_and_publish(table, *arguments):
        add_forgotten(new_store, "clip", [next(others)], folder="vectors")
        return publish(table, *arguments)

    monkeypatch.setattr(ImportedTable, "publish", forget_and_publish)
    for seed in (7, 8):
        with pytest.raises(ForgottenMeanwhile, match="items of clip were forgotten while"):
            import_vectors(new_store, "clip", write_npy(tmp_path, random_vectors(seed=seed)))
        assert [version.ref for version in list_vectors(new_store)] == [first]
    assert find_vectors(new_store, "clip") == first


def test_a_dataset_keeps_its_name_for_itself(tmp_path, dataset):
    store = str(Path(dataset.uri).parents[2])
    with pytest.raises(InvalidSetting, match="'shelves' is a dataset"):
        import_vectors(store, "shelves", write_npy(tmp_path, random_vectors()))


def test_a_changed_byte_is_noticed_when_it_is_read(tmp_path, new_store):
    ref = import_vectors(new_store, "clip", write_npy(tmp_path, random_vectors())).embeddings
    part = next(Path(ref.uri).glob("part-*.parquet"))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)
    with pytest.raises(CorruptArtifact):
        read_embeddings(ref)


def test_an_import_that_is_killed_leaves_nothing_to_be_found(tmp_path, new_store):
    np.save(tmp_path / "v.npy", random_vectors(20_000, 64))
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from dml.embedding import external\n"
        "from dml.embedding.vector_files import NpyFile\n"
        "blocks = NpyFile.blocks\n"
        "def killed(self, rows):\n"
        "    for number, block in enumerate(blocks(self, rows)):\n"
        "        if number == 3: os.kill(os.getpid(), 9)\n"
        "        yield block\n"
        "NpyFile.blocks = killed\n"
        "external.import_vectors(sys.argv[1], 'clip', Path(sys.argv[2]), block_bytes=1 << 18)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, new_store, str(tmp_path / "v.npy")], check=False)
    assert done.returncode == -9
    with pytest.raises(MissingArtifact):
        find_vectors(new_store, "clip")
    report = import_vectors(new_store, "clip", tmp_path / "v.npy")
    assert report.embeddings.rows == 20_000


def test_nothing_is_published_of_a_file_that_is_written_while_it_is_imported(tmp_path, new_store):
    path = write_npy(tmp_path, random_vectors(400, 16))
    ended = threading.Event()

    def write_when_begun():
        while not ended.is_set() and not any(Path(new_store).rglob("part-*")):
            time.sleep(0.001)
        np.save(path, -random_vectors(400, 16))

    writer = threading.Thread(target=write_when_begun)
    writer.start()
    try:
        with pytest.raises(InvalidData, match="must not change while it is read"):
            import_vectors(new_store, "clip", path, block_bytes=64)  # a row is a part
    finally:
        ended.set()
        writer.join()
    assert not list_vectors(new_store)


@pytest.mark.slow
def test_vectors_are_never_held_all_at_once(tmp_path, new_store):
    rows, dim = 800_000, 256  # 780 MiB
    array = np.lib.format.open_memmap(tmp_path / "v.npy", mode="w+", dtype=np.float32, shape=(rows, dim))
    for start in range(0, rows, 50_000):
        array[start : start + 50_000] = random_vectors(50_000, dim, seed=start)
    del array
    program = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from dml.embedding.external import import_vectors\n"
        "import_vectors(sys.argv[1], 'clip', Path(sys.argv[2]), block_bytes=16 << 20)\n"
        "print(*re.findall(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text()))\n"
    )
    command = [sys.executable, "-c", program, new_store, str(tmp_path / "v.npy")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert int(done.stdout) < 370 << 10  # KiB, of which 100 MiB are the libraries; all vectors are 780 MiB


def test_a_store_on_s3_takes_vectors_as_a_folder_does(tmp_path, s3_store):
    path = write_parquet(tmp_path, random_vectors(), id=ids_of(ROWS), label=["a", "b"] * (ROWS // 2))
    ref = import_vectors(s3_store, "clip", path, block_bytes=BLOCK_BYTES).embeddings
    assert find_vectors(s3_store, "clip") == ref
    np.testing.assert_allclose(read_embeddings(ref).vectors, unit(random_vectors()), atol=2e-7)
    assert read_rows(ref.items)["label"].to_pylist() == ["a", "b"] * (ROWS // 2)
    storage.verify(ref.uri)
    storage.verify(ref.items.uri)
