"""Manifests as spreadsheets, pandas and Hugging Face write them; text stays text, and rows stay confined."""

import io
import json
import os

import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet

from dml import storage
from dml.config import ClassSplit, IngestConfig
from dml.data.dataset import read_images, read_rows
from dml.data.ingest import ingest
from dml.data.sources.access import Access
from dml.data.sources.detect import open_source
from dml.data.sources.sample import Refused
from dml.errors import InvalidData, MissingArtifact
from tests.data.pictures import picture, write
from tests.data.test_ingest import config as strict
from tests.data.test_ingest import quarantine


def config(source, **others) -> IngestConfig:
    """However many rows are refused: here they are the subject."""
    return strict(source, max_quarantined=1, **others)


def listing(path, content: str | bytes):
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return open_source(str(path)).list()


def column(path, name: str, values: list[str], kind: str = ""):
    """What the values of one attribute of a CSV are read as."""
    lines = "".join(f"{row}.png,x,{value}\n" for row, value in enumerate(values))
    samples = listing(path / "m.csv", f"image,label,{name}{kind}\n{lines}").samples
    return [sample.attributes[name] for sample in samples]


@pytest.mark.parametrize(
    "values",
    [
        ["00011", "11"],
        ["1e5", "2"],
        ["+1", "2"],
        ["007", "8"],
        [" 5", "5"],
        ["5 ", "6"],
        ["1_000", "2"],
        ["1.50", "1.5"],
        ["1.", "2"],
        [".5", "1"],
        ["-0", "1"],
        ["nan", "1.5"],
        ["inf", "1.5"],
        ["NA", "1"],
        ["0x10", "1"],
        ["99999999999999999999", "1"],
        ["9007199254740993", "0.5"],
        ["²", "1"],
        ["١", "1"],
        ["True", "false"],
        ["true", "1"],
    ],
    ids=repr,
)
def test_text_that_a_number_would_not_give_back_stays_text(tmp_path, values):
    assert column(tmp_path, "sku", values) == values


@pytest.mark.parametrize(
    ("values", "wanted"),
    [
        (["11", "-7", "0"], [11, -7, 0]),
        (["1.5", "2", "-0.25"], [1.5, 2.0, -0.25]),
        (["11", "", "0"], [11, None, 0]),
        (["true", "false", ""], [True, False, None]),
        (["True", "False"], [True, False]),
        (["9223372036854775807"], [9223372036854775807]),
        (["left", ""], ["left", ""]),
        (["", ""], [None, None]),
    ],
    ids=repr,
)
def test_what_reads_back_is_a_number_or_a_truth_value(tmp_path, values, wanted):
    got = column(tmp_path, "value", values)
    assert got == wanted
    assert [type(value) for value in got] == [type(value) for value in wanted]


@pytest.mark.parametrize(
    ("kind", "values", "wanted"),
    [
        (":string", ["1", "2"], ["1", "2"]),
        (":double", ["1.50", "1e5"], [1.5, 100_000.0]),
        (": int64", ["007", "+8"], [7, 8]),
        (":bool", ["TRUE", "false"], [True, False]),
    ],
)
def test_a_header_may_say_the_type(tmp_path, kind, values, wanted):
    assert column(tmp_path, "value", values, kind) == wanted


def test_a_value_of_another_type_than_the_header_says_is_a_refused_row(tmp_path):
    listed = listing(tmp_path / "m.csv", "image,label,price:double\na.png,x,1.50\nb.png,x,cheap\n")
    assert [sample.attributes for sample in listed.samples] == [{"price": 1.5}]
    assert [(p.locator, p.reason, p.detail) for p in listed.problems] == [
        ("b.png", "wrong type", "price must be double; got 'cheap'")
    ]
    for kind in ("int64", "double"):
        lines = "".join(
            f"{n}.png,x,{text}\n" for n, text in enumerate(("1_000", "\u0663", "nan", "inf", "5"))
        )
        listed = listing(tmp_path / "m.csv", f"image,label,n:{kind}\n{lines}")
        assert [sample.attributes for sample in listed.samples] == [{"n": 5}]
        assert {problem.reason for problem in listed.problems} == {"wrong type"}
    with pytest.raises(InvalidData, match="price:string"):
        listing(tmp_path / "m.csv", "image,label,price:money\n")


TABLE = 'image,label,note\na.png,café,"x, y"\nb.png,dog,\n'


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "cp1252"]
)
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", ", ", "; "])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_csv_is_read_as_spreadsheets_write_it(tmp_path, encoding, delimiter, newline):
    header = ["image", "label", "note"]
    rows = [header, ["a.png", "café", '"x,; y"'], ["b.png", "dog", ""]]
    text = newline.join(delimiter.join(row) for row in rows) + newline
    samples = listing(tmp_path / "m.csv", text.encode(encoding)).samples
    assert [(s.id, s.label, s.attributes) for s in samples] == [
        ("a.png", "café", {"note": "x,; y"}),
        ("b.png", "dog", {"note": ""}),
    ]


def test_a_table_in_windows_encoding_is_reported(tmp_path, caplog):
    listing(tmp_path / "m.csv", TABLE.encode())
    assert not caplog.records
    listing(tmp_path / "m.csv", TABLE.encode("cp1252"))
    assert "m.csv is not UTF-8 and is read in Windows' western encoding" in caplog.text


def test_blank_lines_before_the_header_do_not_count(tmp_path):
    assert listing(tmp_path / "m.csv", "\n\n" + TABLE) == listing(tmp_path / "m.csv", TABLE)


def test_an_image_may_be_called_as_a_row_of_a_table_is(tmp_path):
    write(tmp_path, {"#1": picture(1)})
    (tmp_path / "m.csv").write_text("image,label\n#1,x\n")
    source = open_source(str(tmp_path / "m.csv"))
    (sample,) = source.list().samples
    assert (sample.id, source.read(sample.locator)) == ("#1", picture(1))


def test_a_tsv_and_quoted_headers_are_read(tmp_path):
    listed = listing(tmp_path / "m.tsv", '"image"\t"label"\na.png\tcat\n\n"b\nc.png"\tdog\n')
    assert [s.id for s in listed.samples] == ["a.png", "b\nc.png"]


def test_excels_line_that_names_the_delimiter_is_no_header(tmp_path):
    assert [s.id for s in listing(tmp_path / "m.csv", "sep=;\r\nimage;label\r\na.png;cat\r\n").samples] == [
        "a.png"
    ]


def test_rows_of_another_length_are_refused_and_the_rest_continues(tmp_path):
    listed = listing(
        tmp_path / "m.csv", "image,label,x\na.png,cat,1\nb.png,dog\nc.png,dog,1,2\nd.png,cat,2\n"
    )
    assert [s.id for s in listed.samples] == ["a.png", "d.png"]
    assert [(p.locator, p.reason) for p in listed.problems] == [
        ("b.png", "wrong number of fields"),
        ("c.png", "wrong number of fields"),
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "empty file"),
        ("a;b;c\n1;2;3\n", r"it has \['a', 'b', 'c'\]"),
        ('image,label\n"a.png,cat\nb.png,dog\n', "line 3"),
        ('image,label\n"a"b.png,cat\n', "line 2"),
        ("image,label,x,x\na.png,cat,1,2\n", r"\['x'\] twice"),
        (b"PK\x03\x04" + bytes(200), "zero bytes"),
        (b"\xff\xfe\x00", "columns image and label"),
        ("image,label\na.png,käse\n".encode() + b"b.png,k\xe4se\nc.png,\xc3\xa4\n", "line 3 is not"),
        (b"image,label\na.png,\x81\x5b\n", "line 2 is none of them"),
        ("image,label\n" + "x" * (2 << 20) + ",cat\n", "line 2"),
    ],
    ids=[
        "empty",
        "other columns",
        "open quote",
        "text after a quote",
        "twice",
        "zip",
        "half",
        "one line of another encoding",
        "shift-jis",
        "endless field",
    ],
)
def test_what_is_no_such_table_is_refused_and_says_why(tmp_path, content, message):
    with pytest.raises(InvalidData, match=message):
        listing(tmp_path / "m.csv", content)


def test_a_named_pipe_is_no_manifest(tmp_path):
    os.mkfifo(tmp_path / "m.csv")
    os.mkfifo(tmp_path / "m.parquet")
    with pytest.raises(InvalidData, match="not a regular file"):
        open_source(str(tmp_path / "m.csv")).list()
    with pytest.raises(MissingArtifact, match="must be a regular file"):
        open_source(str(tmp_path / "m.parquet")).list()


@pytest.mark.parametrize("content", ["text", 7, [1, 2], {"a": 1}], ids=repr)
def test_a_struct_whose_field_bytes_holds_none_is_refused_before_a_row_is_read(tmp_path, content):
    rows = [{"image": {"bytes": content, "path": "a.png"}, "label": "x"}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    with pytest.raises(InvalidData, match=r"must hold bytes in its field bytes.*it is struct<"):
        open_source(str(tmp_path / "m.parquet")).list()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_the_index_that_pandas_writes_is_no_attribute(tmp_path, form):
    frame = pd.DataFrame({"image": ["a.png", "b.png", "c.png"], "label": ["x", "y", "z"], "year": [1, 2, 3]})
    frame = frame[frame["year"] != 2]
    path = tmp_path / f"m.{form}"
    frame.to_csv(path) if form == "csv" else frame.to_parquet(path)
    samples = open_source(str(path)).list().samples
    assert [sample.attributes for sample in samples] == [{"year": 1}, {"year": 3}]


def test_paths_that_lead_out_of_the_manifests_folder_are_refused(tmp_path):
    write(tmp_path, {"secret.png": picture(1), "in/a.png": picture(2), "far/b.png": picture(3)})
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "secret.png")
    (tmp_path / "in" / "inner.png").symlink_to("a.png")
    (tmp_path / "in" / "m.csv").touch()
    source = open_source(str(tmp_path / "in" / "m.csv"))
    outside = ["../secret.png", "link.png", f"{tmp_path}/secret.png", f"file://{tmp_path}/secret.png",
               "a/../../secret.png", "/proc/self/environ", "s3://bucket/a.png", "http://127.0.0.1/",
               "/dev/zero", f"{tmp_path}/in/../secret.png", f"{tmp_path}/in-other/a.png"]  # fmt: skip
    for locator in outside:
        with pytest.raises(Refused, match=r"outside allowed prefixes.*allowed_prefixes"):
            source.read(locator)
    for locator in ("a.png", "./a.png", "inner.png", f"{tmp_path}/in/a.png", f"file://{tmp_path}/in/a.png"):
        assert source.read(locator) == picture(2)
    allowing = open_source(str(tmp_path / "in" / "m.csv"), access=Access((f"{tmp_path}/far",)))
    assert allowing.read("../far/b.png") == allowing.read(f"file://{tmp_path}/far/b.png") == picture(3)
    with pytest.raises(Refused, match="outside"):
        allowing.read("../secret.png")


@pytest.mark.parametrize(
    "locator",
    ["gs://b/a.png", "data://x", "zip://a.png::http://x/y.zip", "ftp://h/a.png", "data:image/png;base64,AA"],
)
def test_other_schemes_are_refused_rows(tmp_path, locator):
    (tmp_path / "m.csv").touch()
    with pytest.raises(Refused, match="unknown scheme"):
        open_source(str(tmp_path / "m.csv")).read(locator)


@pytest.mark.parametrize(
    "prefix", ["images", "https://host", "https://u:p@host/", "s3://", "/a/../b", "gs://b/x"]
)
def test_a_prefix_that_is_none_is_refused_before_anything_starts(prefix):
    with pytest.raises(ValueError, match="https://HOST/FOLDER/"):
        IngestConfig(name="d", source="x", allowed_prefixes=(prefix,))


def test_a_parquet_manifest_on_s3_may_hold_its_images(s3_store, tmp_path):
    rows = [{"image": {"bytes": picture(n), "path": f"{n}.png"}, "label": n} for n in range(2)]
    local = hugging_face(tmp_path / "m.parquet", rows)
    storage.write_bytes(f"{s3_store}/m.parquet", local.read_bytes())
    source = open_source(f"{s3_store}/m.parquet")
    assert [source.read(s.locator) for s in source.list().samples] == [picture(0), picture(1)]


def test_a_manifest_on_s3_reads_its_own_prefix_alone(s3_store):
    storage.write_bytes(f"{s3_store}/in/a.png", picture(1))
    storage.write_bytes(f"{s3_store}/out/b.png", picture(2))
    storage.write_bytes(f"{s3_store}/in/m.csv", b"image,label\n")
    source = open_source(f"{s3_store}/in/m.csv")
    assert source.read("a.png") == source.read(f"{s3_store}/in/a.png") == picture(1)
    for locator in (f"{s3_store}/out/b.png", "../out/b.png", "/etc/hostname", f"{s3_store}/in/../out/b.png"):
        with pytest.raises(Refused, match="outside allowed prefixes"):
            source.read(locator)
    with pytest.raises(Refused, match="missing file"):
        source.read("c.png")
    allowing = open_source(f"{s3_store}/in/m.csv", access=Access((f"{s3_store}/out/",)))
    assert allowing.read(f"{s3_store}/out/b.png") == picture(2)


HUGGING_FACE = {"info": {"features": {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}}}


def hugging_face(path, rows: list[dict], **options):
    """As `datasets.Dataset.to_parquet` writes images: a struct, a ClassLabel, and what stands beside them."""
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema(
        [("image", image), ("label", pa.int64()), ("boxes", pa.list_(pa.float64())), ("year", pa.int32())],
        metadata={"huggingface": json.dumps(HUGGING_FACE)},
    )
    parquet.write_table(pa.Table.from_pylist(rows, schema=schema), path, **options)
    return path


def test_hugging_faces_images_and_classes_are_read(tmp_path):
    write(tmp_path, {"there.png": picture(3)})
    path = hugging_face(
        tmp_path / "m.parquet",
        [
            {"image": {"bytes": picture(1), "path": "a.png"}, "label": 0, "boxes": [1.0], "year": 1999},
            {"image": {"bytes": picture(2), "path": "b.png"}, "label": 1, "boxes": None, "year": None},
            {"image": {"bytes": None, "path": "there.png"}, "label": 1, "boxes": [], "year": 2},
            {"image": {"bytes": picture(4), "path": "c.png"}, "label": -1, "boxes": [], "year": 2},
        ],
        row_group_size=2,
    )
    ref = ingest(config(path), str(tmp_path / "store"))
    rows = read_rows(ref).to_pylist()
    assert [(row["id"], row["label"], row["year"]) for row in rows] == [
        ("a.png", "cat", 1999),
        ("b.png", "dog", None),
        ("there.png", "dog", 2),
    ]
    assert read_images(ref, [0, 1, 2]) == [picture(1), picture(2), picture(3)]
    assert {row["reason"]: (row["id"], row["detail"][:12]) for row in quarantine(ref)} == {
        "unusable column": ("boxes", "list<element"),
        "missing label": ("c.png", "the label is"),
    }


@pytest.mark.parametrize("paths", [[None, None], ["image.png", "image.png"], ["", "x"]])
def test_rows_without_a_path_of_their_own_are_named_by_their_number(tmp_path, paths):
    rows = [{"image": {"bytes": picture(n), "path": p}, "label": n} for n, p in enumerate(paths)]
    source = open_source(str(hugging_face(tmp_path / "m.parquet", rows)))
    assert [s.id for s in source.list().samples] == ["row-00000000", "row-00000001"]
    assert [source.read(s.locator) for s in source.list().samples] == [picture(0), picture(1)]


def test_a_column_of_bytes_is_images_and_a_file_without_a_suffix_is_known(tmp_path):
    table = pa.table({"image": [picture(1), picture(2), b"", None], "label": ["x", "y", "x", "y"]})
    parquet.write_table(table, tmp_path / "table")
    ref = ingest(config(tmp_path / "table"), str(tmp_path / "store"))
    assert ref.rows == 2
    assert sorted(row["reason"] for row in quarantine(ref)) == ["empty file", "missing file"]


def test_images_in_a_table_are_bounded_too(tmp_path):
    table = pa.table({"image": [picture(1), bytes(1 << 20)], "label": ["x", "y"]})
    parquet.write_table(table, tmp_path / "m.parquet")
    with pytest.raises(Refused, match="too many bytes"):
        open_source(str(tmp_path / "m.parquet")).read("#1", max_bytes=1000)


COLUMNS = {
    "labels of numbers": (pa.array([7, 8]), ["7", "8"]),
    "labels of pandas' floats": (pa.array([7.0, 8.0]), ["7", "8"]),
    "labels of bytes": (pa.array([b"x", b"y"]), ["x", "y"]),
    "categories": (pa.array(["x", "y"]).dictionary_encode(), ["x", "y"]),
    "large text": (pa.array(["x", "y"], pa.large_string()), ["x", "y"]),
    "text views": (pa.array(["x", "y"], pa.string_view()), ["x", "y"]),
    "missing": (pa.array(["x", None]), ["x", ""]),
}


@pytest.mark.parametrize("name", COLUMNS)
def test_labels_of_any_plain_type_are_text(tmp_path, name):
    values, wanted = COLUMNS[name]
    parquet.write_table(pa.table({"image": ["a.png", "b.png"], "label": values}), tmp_path / "m.parquet")
    assert [s.label for s in open_source(str(tmp_path / "m.parquet")).list().samples] == wanted


def test_attributes_of_any_type_are_read_or_named(tmp_path):
    attributes = {
        "small": pa.array([1, None], pa.uint8()),
        "huge": pa.array([2**64 - 1, 1], pa.uint64()),
        "missing": pa.array([float("nan"), 1.5]),
        "money": pa.array([1, 2]).cast(pa.decimal128(21, 2)),
        "day": pa.array([0, 1], pa.date32()),
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "raw": pa.array([b"\xff", b"x"]),
        "pair": pa.array([{"x": 1}, {"x": 2}]),
        "tags": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
    }
    table = pa.table({"image": ["a.png", "b.png"], "label": ["x", "y"], **attributes})
    parquet.write_table(table, tmp_path / "m.parquet")
    actual = open_source(str(tmp_path / "m.parquet")).list()
    assert actual.samples[0].attributes == {
        "small": 1, "missing": None, "money": 1.0, "day": "1970-01-01", "kind": "x"
    }  # fmt: skip
    assert {p.id for p in actual.problems} == {"huge", "raw", "pair", "tags"}
    assert {p.reason for p in actual.problems} == {"unusable column"}


@pytest.mark.parametrize("name", ["image", "label"])
def test_a_nested_column_that_is_needed_is_refused_by_name(tmp_path, name):
    columns = {"image": ["a.png"], "label": ["x"], name: [["a", "b"]]}
    parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(InvalidData, match=f"column {name} .*list<"):
        open_source(str(tmp_path / "m.parquet")).list()


@pytest.mark.parametrize(
    "columns",
    [
        {"image": ["a.png"], "label": [b"\xff"]},
        {"image": pa.array([picture(1)]).dictionary_encode(), "label": ["a"]},
        {"image": pa.array([picture(1)[:40]], pa.binary(40)), "label": ["a"]},
    ],
    ids=["label of bytes", "dictionary", "fixed size"],
)
def test_a_needed_column_that_is_no_text_is_refused_by_name(tmp_path, columns):
    parquet.write_table(pa.table(columns), tmp_path / "m.parquet")
    with pytest.raises(InvalidData, match=r"The column (label|image) of .* must be text"):
        open_source(str(tmp_path / "m.parquet")).list()


def test_a_table_without_rows_is_refused_and_says_so(tmp_path):
    (tmp_path / "m.csv").write_text("image,label\n")
    with pytest.raises(InvalidData, match=r"must list images; .* lists none"):
        ingest(config(tmp_path / "m.csv"), str(tmp_path / "store"))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7, 0.99])
def test_a_damaged_parquet_file_is_refused(tmp_path, share):
    whole = io.BytesIO()
    parquet.write_table(pa.table({"image": ["a.png"] * 99, "label": ["x"] * 99}), whole)
    content = whole.getvalue()
    (tmp_path / "m.parquet").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InvalidData, match="whole Parquet table"):
        open_source(str(tmp_path / "m.parquet")).list()


def test_damaged_pages_of_images_are_refused_rows(tmp_path):
    rows = [
        {"image": {"bytes": picture(n, size=(60, 60)), "path": f"{n}.png"}, "label": n % 2} for n in range(4)
    ]
    path = hugging_face(tmp_path / "m.parquet", rows, row_group_size=2, compression="ZSTD")
    content = bytearray(path.read_bytes())
    place = content.index(picture(0, size=(60, 60))[200:220]) - 100
    content[place : place + 50] = bytes(50)
    content[4:40] = bytes(36)
    path.write_bytes(content)
    ref = ingest(config(path, split=ClassSplit(test_fraction=0)), str(tmp_path / "store"))
    assert ref.rows == 2
    assert {row["reason"] for row in quarantine(ref)} == {"unreadable file", "unusable column"}
