"""Rows and images by position, from Parquet and from the map, are what was ingested."""

import multiprocessing
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from dml import storage
from dml.config import IngestConfig
from dml.data.dataset import (
    find_dataset,
    fragments,
    read_fragment,
    read_images,
    read_rows,
    read_values,
    with_wide_offsets,
)
from dml.data.ingest import ingest
from dml.data.mapped import open_mapped
from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidSetting, MissingArtifact
from tests.data.pictures import class_folders


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    root = tmp_path_factory.mktemp("dataset")
    source = str(class_folders(root / "source", classes=6, per_class=7))
    config = IngestConfig(name="d", source=source, rows_per_fragment=10, rows_per_group=4)
    return ingest(config, str(root / "store"))


@pytest.fixture(scope="module")
def contents(dataset):
    """The bytes of every row, by the files they came from."""
    source = storage.read_manifest(dataset.uri)["ingest"]["source"]
    ids = read_rows(dataset, columns=["id"])["id"].to_pylist()
    return [storage.read_bytes(storage.join(source, id_)) for id_ in ids]


def test_mapped_images_are_the_files_at_every_position(dataset, contents):
    mapped = open_mapped(dataset)
    assert len(mapped) == dataset.rows == len(contents)
    assert [bytes(image) for image in mapped.images(range(len(mapped)))] == contents
    assert bytes(mapped.image(np.int64(41))) == contents[41]
    assert isinstance(mapped.image(0), memoryview), "no copy"


def test_images_read_from_parquet_come_in_the_requested_order(dataset, contents):
    positions = [41, 0, 9, 10, 0, 23, 24]
    assert read_images(dataset, positions) == [contents[position] for position in positions]
    assert read_images(dataset, []) == []


@pytest.mark.parametrize("position", [-1, 42, 10_000])
def test_a_position_beyond_the_rows_is_refused(dataset, position):
    with pytest.raises(ValueError, match="must be in"):
        open_mapped(dataset).image(position)
    with pytest.raises(ValueError, match="must be in"):
        read_images(dataset, [0, position])


def test_rows_of_a_split_keep_their_positions(dataset):
    everything = read_rows(dataset).to_pylist()
    test = read_rows(dataset, split="test").to_pylist()
    assert test == [row for row in everything if row["split"] == "test"]
    only = read_rows(dataset, split="test", columns=["label"])
    assert only.column_names == ["label", "position"]
    assert only["position"].to_pylist() == [row["position"] for row in test]
    assert "image" not in read_rows(dataset).column_names
    assert read_rows(dataset, columns=["image"])["image"][5].as_py() == read_images(dataset, [5])[0]


def test_rows_are_read_with_64_bit_offsets(dataset):
    types = {
        field.name: field.type
        for field in read_rows(dataset, columns=["id", "label", "sha256", "image"]).schema
    }
    assert types.pop("position") == pa.int64()
    assert set(types.values()) == {pa.large_string(), pa.large_binary()}


@pytest.mark.slow
def test_a_row_is_taken_of_a_column_beyond_2_gib():
    """As many bytes as the digests of 34.6 million items; one chunk often is little memory until `take`."""
    chunk = pa.table({"sha256": pa.array(["0" * (1 << 26)])})
    with pytest.raises(pa.ArrowInvalid, match="overflow"):
        pa.concat_tables([chunk] * 33).take([32])
    wide = pa.concat_tables([with_wide_offsets(chunk)] * 33)
    assert wide.take([32]).equals(with_wide_offsets(chunk))


def test_a_column_that_is_not_there_is_refused(dataset):
    with pytest.raises(InvalidSetting, match=r"\['colour'\]"):
        read_rows(dataset, columns=["colour"])


def test_fragments_come_in_the_order_of_positions(dataset):
    ids = [id_ for uri in fragments(dataset) for id_ in read_fragment(uri, ["id"])["id"].to_pylist()]
    assert ids == read_rows(dataset, columns=["id"])["id"].to_pylist() == sorted(ids)
    assert fragments(dataset) != sorted(fragments(dataset)), "their names say nothing of order"


def test_a_class_id_is_the_number_of_the_label_among_all_labels_of_the_version(dataset):
    labels = sorted(set(read_rows(dataset, columns=["label"])["label"].to_pylist()))
    for split in ("train", "test", None):
        rows = read_rows(dataset, split=split, columns=["class_id", "label"])
        assert [labels[number] for number in rows["class_id"].to_pylist()] == rows["label"].to_pylist()
        assert read_rows(dataset, split=split, columns=["class_id"]).column_names == ["class_id", "position"]


def _map_and_read(ref):
    return bytes(open_mapped(ref).image(3))


def test_processes_that_race_to_map_read_the_same(dataset, contents, monkeypatch, tmp_path):
    monkeypatch.setenv("DML_CACHE", str(tmp_path))
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_map_and_read, [dataset] * 4) == [contents[3]] * 4
    copy = tmp_path / "rows" / dataset.fingerprint
    assert sorted(path.name for path in copy.iterdir()) == ["images.arrow", "manifest.json"]


@pytest.mark.parametrize("damage", ["a flipped byte", "cut short"])
def test_a_copy_that_was_damaged_is_made_again(dataset, contents, monkeypatch, tmp_path, damage):
    monkeypatch.setenv("DML_CACHE", str(tmp_path))
    where = bytes(open_mapped(dataset).image(3))
    copy = tmp_path / "rows" / dataset.fingerprint / "images.arrow"
    content = copy.read_bytes()
    if damage == "cut short":
        copy.write_bytes(content[: len(content) // 2])
    else:
        at = content.index(where) + len(where) // 2
        copy.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    assert bytes(open_mapped(dataset).image(3)) == contents[3]


def test_a_copy_that_was_cut_short_is_never_read(dataset, monkeypatch, tmp_path):
    monkeypatch.setenv("DML_CACHE", str(tmp_path))
    copy = shutil.copytree(Path(dataset.uri).parent, tmp_path / "dataset") / dataset.version
    damaged = dataset.model_copy(update={"uri": str(copy)})
    last = Path(fragments(damaged)[-1].uri)
    last.write_bytes(bytes(last.stat().st_size))
    with pytest.raises(CorruptArtifact):
        open_mapped(damaged)
    assert list((tmp_path / "rows" / dataset.fingerprint).iterdir()) == []


def test_a_disk_too_small_for_the_map_is_told_before_it_is_full(dataset, monkeypatch, tmp_path):
    monkeypatch.setenv("DML_CACHE", str(tmp_path))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(InvalidSetting, match="set DML_CACHE"):
        open_mapped(dataset)


def test_what_is_not_there_is_refused(dataset):
    store = dataset.uri.rsplit("/datasets/", 1)[0]
    with pytest.raises(MissingArtifact, match=r"\['d'\]"):
        find_dataset(store, "e")
    with pytest.raises(MissingArtifact, match=dataset.version):
        find_dataset(store, "d@123")


@pytest.mark.parametrize("schema_version", [1, 99])
def test_a_dataset_of_another_schema_is_refused(dataset, tmp_path, schema_version):
    uri = str(tmp_path / "datasets" / "other" / "v1")
    ref = dataset.model_copy(update={"schema_version": schema_version})
    storage.publish(storage.staging(uri), uri, {"ref": ref.model_dump(mode="json", exclude={"uri"})})
    with pytest.raises(IncompatibleArtifact, match=f"other/v1 has {schema_version}. Use the version"):
        find_dataset(str(tmp_path), "other@v1")


def test_a_map_is_made_from_s3_too(s3_store, tmp_path):
    source = str(class_folders(tmp_path / "source"))
    ref = ingest(IngestConfig(name="d", source=source), s3_store)
    mapped = open_mapped(ref)
    assert [bytes(image) for image in mapped.images([0, 7])] == read_images(ref, [0, 7])


def test_values_of_a_column_are_numbered_and_a_missing_one_is_a_value(tmp_path):
    root = class_folders(tmp_path / "images", classes=2, per_class=2)
    images = sorted(path.relative_to(tmp_path).as_posix() for path in root.rglob("*.*"))
    cameras = ["north", "", "south", "north"]
    lines = [f"{images[row]},{row % 2},{cameras[row]}" for row in range(4)]
    (tmp_path / "list.csv").write_text("\n".join(["image,label,camera", *lines]))
    source = str(tmp_path / "list.csv")
    everything = {"kind": "classes", "test_fraction": 0}
    ref = ingest(IngestConfig(name="m", source=source, split=everything), str(tmp_path / "store"))
    numbers, values = read_values(ref, "camera", split="train")
    want = [row["camera"] for row in read_rows(ref).to_pylist()]
    assert [values[number] for number in numbers] == want
    assert sorted(values, key=str) == sorted({*want}, key=str)
    with pytest.raises(InvalidSetting, match="'lens'"):
        read_values(ref, "lens", split="train")


@pytest.mark.parametrize("share", [0.02, 0.25, 0.5, 0.75])
def test_a_changed_byte_of_a_fragment_is_never_read_as_data(tmp_path, share):
    source = str(class_folders(tmp_path / "source", classes=4, per_class=5))
    ref = ingest(IngestConfig(name="d", source=source, rows_per_group=5), str(tmp_path / "store"))
    positions = list(range(ref.rows))
    rows, images = read_rows(ref), read_images(ref, positions)
    (fragment,) = (Path(each.uri) for each in fragments(ref))
    content = bytearray(fragment.read_bytes())
    content[int(share * len(content))] ^= 0xFF
    fragment.write_bytes(content)

    def read(reader):
        try:
            return reader()
        except CorruptArtifact as error:
            return f"refused: {error}"

    for actual, before in (
        (read(lambda: read_rows(ref)), rows),
        (read(lambda: read_images(ref, positions)), images),
        (read(lambda: [bytes(image) for image in open_mapped(ref).images(positions)]), images),
    ):
        if not (isinstance(actual, str) and fragment.name in actual):
            assert actual == before


def test_a_dataset_is_written_as_users_type_it(dataset):
    assert str(dataset) == f"d@{dataset.version}"
    assert find_dataset(dataset.uri.rsplit("/datasets/", 1)[0], str(dataset)) == dataset
