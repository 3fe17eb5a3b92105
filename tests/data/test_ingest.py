"""A source becomes a dataset whole, once, and whatever is wrong with it is in quarantine with a reason."""

import json
import os
import shutil
import signal
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from dml import storage
from dml.config import AttributeSplit, ClassSplit, IngestConfig, NoSplit
from dml.data.dataset import (
    find_dataset,
    fragments,
    list_datasets,
    list_versions,
    read_images,
    read_rows,
)
from dml.data.fragment import FragmentJob, make_fragment
from dml.data.ingest import ingest, ingest_again, ingest_source
from dml.data.last_ingest import last_ingest
from dml.data.quarantine import QUARANTINE
from dml.data.sources.detect import open_source
from dml.errors import (
    IncompatibleArtifact,
    InvalidData,
    InvalidSetting,
    MissingArtifact,
    StorageUnavailable,
    TooManyRefused,
)
from dml.refs import SplitSize
from tests.data.pictures import class_folders, huge_png, picture, write


def config(source, **others) -> IngestConfig:
    return IngestConfig(name="d", source=str(source), **others)


def quarantine(ref) -> list[dict[str, str]]:
    filesystem, path = storage.filesystem(storage.join(ref.uri, QUARANTINE))
    return parquet.read_table(path, filesystem=filesystem).to_pylist()


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    return str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3_store")


def test_every_row_says_what_the_source_says(store, tmp_path):
    source = class_folders(tmp_path / "source")
    done = []
    ref = ingest(config(source, rows_per_fragment=6), store, lambda n, of: done.append((n, of)))
    assert (ref.rows, ref.classes, ref.quarantined) == (20, 4, 0)
    assert ref.splits == {"train": SplitSize(rows=10, classes=2), "test": SplitSize(rows=10, classes=2)}
    assert done == [(1, 4), (2, 4), (3, 4), (4, 4)]
    rows = read_rows(ref).to_pylist()
    assert [row["position"] for row in rows] == list(range(20))
    assert [row["id"] for row in rows] == sorted(row["id"] for row in rows)
    for row in rows:
        content = (source / row["id"]).read_bytes()
        assert row["label"] == row["id"].split("/")[0]
        assert (row["width"], row["height"]) == (12, 9)
        assert row["sha256"] == storage.digest_of_bytes(content)
        assert read_images(ref, [row["position"]]) == [content], "bytes untouched"
    assert find_dataset(store, "d") == find_dataset(store, f"d@{ref.version}") == ref
    assert list_datasets(store) == [ref]
    storage.verify(ref.uri)


def test_the_same_content_is_the_same_version_and_no_second_copy(tmp_path):
    source, store = class_folders(tmp_path / "source"), str(tmp_path / "store")
    first = ingest(config(source), store)
    moved = tmp_path / "elsewhere"
    source.rename(moved)
    assert ingest(config(moved, rows_per_fragment=3, num_workers=1), store) == first
    assert sorted(os.listdir(tmp_path / "store" / "datasets" / "d")) == sorted(
        [first.version, "current.json", "files.parquet", "fragments"]
    )


def test_other_content_is_another_version_and_the_first_stays(tmp_path):
    source, store = class_folders(tmp_path / "source"), str(tmp_path / "store")
    first = ingest(config(source), store)
    write(source, {"class0/more.png": picture(999)})
    second = ingest(config(source), store)
    assert second.fingerprint != first.fingerprint
    assert find_dataset(store, "d") == second
    assert find_dataset(store, f"d@{first.version}") == first
    other_split = ingest(config(source, split=NoSplit()), store)
    assert other_split.fingerprint != second.fingerprint


def test_a_corrupt_source_is_counted_and_never_fatal(tmp_path):
    source = class_folders(tmp_path / "source")
    jpeg = picture(50, size=(200, 150), form="JPEG")
    shared = picture(77)
    write(
        source,
        {
            "class0/truncated.jpg": jpeg[: len(jpeg) // 2],
            "class0/text.png": b"this is no image",
            "class1/bomb.png": huge_png(30_000),
            "class1/large.png": huge_png(9_000),
            "class1/nothing.png": b"",
            "class2/heavy.png": picture(5, size=(300, 300)),
            "class2/twice.png": shared,
            "class3/twice.png": shared,
            "stray.png": picture(78),
        },
    )
    (source / "hollow").mkdir()
    ref = ingest(
        config(
            source,
            max_bytes=250_000,
            max_pixels=64_000_000,
            quarantine_contradictions=True,
            max_quarantined=1,
        ),
        str(tmp_path / "store"),
    )
    assert (ref.rows, ref.classes) == (20, 4)
    reasons = {row["locator"]: row["reason"] for row in quarantine(ref)}
    assert reasons == {
        "class0/truncated.jpg": "truncated or damaged",
        "class0/text.png": "not an image",
        "class1/bomb.png": "too many pixels",
        "class1/large.png": "too many pixels",
        "class1/nothing.png": "empty file",
        "class2/heavy.png": "too many bytes",
        "class2/twice.png": "contradictory label",
        "class3/twice.png": "contradictory label",
        "stray.png": "missing label",
        "hollow": "empty class",
    }
    assert ref.quarantined == len(reasons)
    assert all(row["detail"] for row in quarantine(ref))


def test_contradictory_labels_are_kept_by_default_as_published_data_sets_have_them(tmp_path):
    source = class_folders(tmp_path / "source")
    split = AttributeSplit(name="label", test_values=("class2", "class3"))
    write(source, {f"class{c}/same.png": picture(77) for c in (0, 1)})
    write(source, {f"class{c}/apart.png": picture(78) for c in (0, 2)})
    report = ingest_source(config(source, split=split), str(tmp_path / "store"))
    assert report.dataset.rows == 24
    (note,) = [note for note in report.notes if "several labels" in note]
    assert note.startswith("2 images have several labels, 1 of them in train and in test")
    assert "class0/apart.png (class0, train) and class2/apart.png (class2, test); class0/same.png" in note


def test_images_that_occur_twice_under_their_label_are_reported(tmp_path):
    source = class_folders(tmp_path / "source", classes=2, per_class=2)
    write(
        source,
        {f"{label}/twin.png": (source / label / "0.png").read_bytes() for label in ("class0", "class1")},
    )
    report = ingest_source(config(source), str(tmp_path / "store"))
    assert report.notes[-1].startswith("2 images occur more than once under their label, 1 of them in test")
    assert "class0/0.png and class0/twin.png" in report.notes[-1]


def test_a_source_that_has_lost_images_says_how_many_there_were(tmp_path):
    store, source = str(tmp_path / "store"), class_folders(tmp_path / "source", classes=4, per_class=2)
    first = ingest(config(source), store)
    shutil.rmtree(source / "class3")
    fewer = ingest_source(config(source), store)
    assert f"fewer than in d@{first.version}: 6 of 8 images, 3 of 4 classes" in fewer.notes
    assert not any("fewer" in note for note in ingest_source(config(source), store).notes)


def test_another_source_under_the_same_name_is_reported(tmp_path):
    store = str(tmp_path / "store")
    first = ingest(config(labelled(tmp_path / "first", "abcd")), store)
    other = ingest_source(config(labelled(tmp_path / "other", "wxyz")), store)
    assert any(note.startswith(f"none of these classes is in d@{first.version}") for note in other.notes)


def test_a_layouts_own_split_that_does_not_fit_is_named(tmp_path):
    files = {
        f"{alphabet}/character0{n}/{n}.png": picture(n) for alphabet in ("Greek", "Latin") for n in (1, 2)
    }
    with pytest.raises(
        InvalidSetting, match="layout is split by alphabet:10; choose another, dml ingest SOURCE --split"
    ):
        ingest(config(write(tmp_path / "source", files)), str(tmp_path / "store"))


def test_a_class_that_loses_all_its_rows_leaves_no_hole(tmp_path):
    source = write(class_folders(tmp_path / "source"), {"class0b/bad.png": b"x"})
    ref = ingest(config(source, rows_per_fragment=7), str(tmp_path / "store"))
    rows = read_rows(ref, columns=["label", "class_id"]).to_pylist()
    assert ref.classes == 4
    assert {row["label"]: row["class_id"] for row in rows} == {f"class{i}": i for i in range(4)}
    clean = class_folders(tmp_path / "clean")
    again = ingest(config(clean, split=ClassSplit(test_fraction=0.5)), str(tmp_path / "store"))
    assert again.rows == ref.rows


def test_rows_without_an_id_of_their_own_go_to_quarantine(tmp_path):
    write(tmp_path, {f"{name}.png": picture(i) for i, name in enumerate("abcd")})
    lines = ["image,label,id", "a.png,x,1", "b.png,y,2", "c.png,x,1", "d.png,x,3", "d.png,y,3", "e.png,y,4"]
    (tmp_path / "m.csv").write_text("\n".join(lines))
    ref = ingest(config(tmp_path / "m.csv", max_quarantined=1), str(tmp_path / "store"))
    assert sorted(read_rows(ref)["id"].to_pylist()) == ["1", "2"]
    assert Counter(row["reason"] for row in quarantine(ref)) == {
        "duplicate id": 1,
        "contradictory label": 2,
        "missing file": 1,
    }


def test_a_label_that_no_correction_could_give_goes_to_quarantine(tmp_path):
    write(tmp_path, {f"{name}.png": picture(i) for i, name in enumerate("abcdef")})
    lines = ["image,label", 'a.png,"two\nlines"', "b.png,red\x1b[31m", f"c.png,{'b' * 1001}", 'd.png,"cat\n"']
    (tmp_path / "m.csv").write_text("\n".join([*lines, "e.png,dog\u2028s", "f.png,dog"]))
    ref = ingest(config(tmp_path / "m.csv", max_quarantined=1), str(tmp_path / "store"))
    assert read_rows(ref)["label"].to_pylist() == ["cat", "dog"]
    refused = {row["id"]: (row["reason"], row["detail"]) for row in quarantine(ref)}
    assert {reason for reason, _ in refused.values()} == {"unusable label"}
    said = ("U+000A", "U+001B", "got 1001", "U+2028")
    for id_, part in zip(("a.png", "b.png", "c.png", "e.png"), said, strict=True):
        assert part in refused[id_][1]


def test_attributes_keep_their_types(tmp_path):
    write(tmp_path, {f"{name}.png": picture(i) for i, name in enumerate("abcd")})
    (tmp_path / "m.csv").write_text(
        "image,label,year,price,sold,camera\n"
        "a.png,x,1999,1.5,true,left\nb.png,x,,2,false,right\nc.png,y,2001,,true,left\nd.png,y,1,3,true,\n"
    )
    ref = ingest(config(tmp_path / "m.csv"), str(tmp_path / "store"))
    assert ref.attributes == {"camera": "string", "price": "double", "sold": "bool", "year": "int64"}
    rows = read_rows(ref, columns=["year", "price"]).to_pylist()
    assert rows[1] == {"year": None, "price": 2.0, "position": 1}


@pytest.mark.parametrize("name", ["label x", "position", "sha256"])
def test_an_attribute_with_a_name_that_cannot_be_is_refused(tmp_path, name):
    write(tmp_path, {"a.png": picture()})
    (tmp_path / "m.csv").write_text(f"image,label,{name}\na.png,x,1\n")
    with pytest.raises(InvalidData, match="Rename it"):
        ingest(config(tmp_path / "m.csv", split=ClassSplit(test_fraction=0)), str(tmp_path / "store"))


def test_a_source_without_one_valid_image_is_refused_and_leaves_nothing(tmp_path):
    source, store = write(tmp_path / "source", {"a/x.png": b"1", "b/y.png": b"2"}), tmp_path / "store"
    with pytest.raises(InvalidData, match=r"not an image.*a/x\.png"):
        ingest(config(source, max_quarantined=1), str(store))
    assert list((store / "datasets" / "d").iterdir()) == []
    with pytest.raises(MissingArtifact):
        find_dataset(str(store), "d")


def test_lists_that_are_not_as_their_layout_has_them_are_refused(tmp_path):
    files = {"Ebay_train.txt": "header\n1 2 3\n", "a_final/1.JPG": picture(form="JPEG")}
    with pytest.raises(InvalidData, match="name another layout"):
        ingest(config(write(tmp_path / "source", files)), str(tmp_path / "store"))


def test_a_split_that_quarantine_emptied_is_refused(tmp_path):
    source = write(tmp_path / "source", {"a/x.png": picture(), "b/y.png": b"2"})
    with pytest.raises(InvalidData, match="each of its splits"):
        ingest(config(source, max_quarantined=1), str(tmp_path / "store"))


@pytest.mark.slow
def test_a_storage_that_stops_answering_ends_the_ingest_instead_of_filling_the_quarantine(
    s3_store, tmp_path, monkeypatch
):
    storage.write_bytes(f"{s3_store}/raw/cat/1.png", picture())
    source = open_source(f"{s3_store}/raw")
    samples = [sample._replace(split="train") for sample in source.list().samples]
    job = FragmentJob(0, source, samples, {}, str(tmp_path), config(f"{s3_store}/raw"))
    assert len(make_fragment(job).rows) == 1
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StorageUnavailable, match="must answer for bucket"):
        make_fragment(job)
    with pytest.raises(StorageUnavailable, match="must answer for bucket"):
        ingest(config(f"{s3_store}/raw"), str(tmp_path / "store"))
    assert not (tmp_path / "store").exists()


def test_fragments_hold_whole_classes_in_small_plain_row_groups(tmp_path):
    source = class_folders(tmp_path / "source", classes=4, per_class=8)
    ref = ingest(config(source, rows_per_fragment=16, rows_per_group=8), str(tmp_path / "store"))
    for fragment in fragments(ref):
        file = parquet.ParquetFile(fragment.uri)
        assert file.schema_arrow.names[-1] == "image"
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
            assert columns["image"].compression == "UNCOMPRESSED"
            assert columns["id"].compression == "ZSTD"
            assert not any("DICTIONARY" in encoding for encoding in columns["image"].encodings)
            assert len(set(file.read_row_group(number, columns=["label"])["label"].to_pylist())) == 1


def test_row_groups_are_cut_by_bytes_too(tmp_path):
    """So that images near `max_bytes` need no memory for a hundred of them."""
    source = class_folders(tmp_path / "source", classes=2, per_class=8)
    sizes = [path.stat().st_size for path in sorted(source.rglob("*.png"))]
    ref = ingest(config(source, bytes_per_group=2 * max(sizes)), str(tmp_path / "store"))
    (fragment,) = fragments(ref)
    file = parquet.ParquetFile(fragment.uri)
    groups = [
        file.read_row_group(n, columns=["image"])["image"].to_pylist() for n in range(file.num_row_groups)
    ]
    assert all(len(group) > 1 for group in groups[:-1])
    assert all(sum(map(len, group)) <= 2 * max(sizes) for group in groups)
    assert [len(image) for group in groups for image in group] == sizes


def test_an_image_larger_than_a_row_group_has_its_own(tmp_path):
    source = class_folders(tmp_path / "source", classes=2, per_class=2)
    ref = ingest(config(source, bytes_per_group=1), str(tmp_path / "store"))
    (fragment,) = fragments(ref)
    assert parquet.ParquetFile(fragment.uri).num_row_groups == ref.rows == 4
    assert ref.fingerprint == ingest(config(source), str(tmp_path / "other")).fingerprint


KILLED = """
import os, signal, sys
from dml import storage
from dml.config import IngestConfig
from dml.data.ingest import ingest
storage.publish = lambda *arguments: os.kill(os.getpid(), signal.SIGKILL)
ingest(IngestConfig(name="d", source=sys.argv[1]), sys.argv[2])
"""


def test_an_ingest_killed_before_publishing_leaves_nothing_visible(tmp_path):
    source, store = class_folders(tmp_path / "source"), tmp_path / "store"
    died = subprocess.run([sys.executable, "-c", KILLED, str(source), str(store)], check=False)
    assert died.returncode == -signal.SIGKILL
    leftovers = list((store / "datasets" / "d").iterdir())
    assert [storage.is_staging(folder.name) for folder in leftovers] == [True]
    with pytest.raises(MissingArtifact):
        find_dataset(str(store), "d")
    assert list_datasets(str(store)) == []
    ref = ingest(config(source), str(store))
    undisturbed = ingest(config(source), str(tmp_path / "other"))
    assert ref.fingerprint == undisturbed.fingerprint


@pytest.mark.ray
@pytest.mark.slow
def test_ray_writes_the_same_bytes_as_this_process(tmp_path):
    source = write(class_folders(tmp_path / "source", classes=6), {"class0/bad.png": b"x"})
    here = ingest(config(source, rows_per_fragment=4, num_workers=1), str(tmp_path / "here"))
    there = ingest(config(source, rows_per_fragment=4, num_workers=2), str(tmp_path / "there"))
    assert there.fingerprint == here.fingerprint
    files = [storage.read_manifest(ref.uri)["files"] for ref in (here, there)]
    assert files[0] == files[1]


def test_omniglot_has_its_known_size(shared_data, tmp_path):
    ref = ingest(config(shared_data / "omniglot_background.zip"), str(tmp_path))
    assert (ref.rows, ref.classes, ref.quarantined) == (19_280, 964, 0)
    rows = read_rows(ref, columns=["alphabet", "split"]).to_pydict()
    assert len(set(rows["alphabet"])) == 30
    held_out = {a for a, s in zip(rows["alphabet"], rows["split"], strict=True) if s == "test"}
    assert held_out == set(sorted(set(rows["alphabet"]))[-10:])
    all_train = config(shared_data / "omniglot_background.zip", split=AttributeSplit(name="x", test_values=1))
    with pytest.raises(InvalidData, match="attribute 'x'"):
        ingest(all_train, str(tmp_path))


def test_the_cars_half_has_its_known_size(shared_data, tmp_path):
    ref = ingest(config(shared_data / "cars196_trainhalf_96px.zip"), str(tmp_path))
    assert (ref.rows, ref.classes, ref.quarantined) == (8_144, 196, 0)
    assert ref.splits == {
        "train": SplitSize(rows=4_052, classes=98),
        "test": SplitSize(rows=4_092, classes=98),
    }


def test_a_split_that_is_no_split_is_refused(tmp_path):
    source = class_folders(tmp_path / "source")
    with pytest.raises(InvalidSetting, match="split must be"):
        read_rows(ingest(config(source), str(tmp_path / "store")), split="val")


def test_the_manifest_records_how_the_dataset_was_made(tmp_path):
    source = class_folders(tmp_path / "source")
    ref = ingest(config(source, rows_per_fragment=7), str(tmp_path / "store"))
    manifest = json.loads((Path(ref.uri) / "manifest.json").read_text())
    assert [entry["rows"] for entry in manifest["fragments"]] == [5, 5, 5, 5]
    assert manifest["ingest"]["source"] == str(source)
    shutil.rmtree(source)
    assert read_rows(ref).num_rows == 20, "the source is not needed any more"


def sides(ref) -> dict[str, str]:
    rows = read_rows(ref, columns=["label", "split"])
    return dict(zip(rows["label"].to_pylist(), rows["split"].to_pylist(), strict=True))


def test_a_class_stays_on_its_side_when_others_come_and_when_it_comes_back(tmp_path):
    store = str(tmp_path / "store")
    source = class_folders(tmp_path / "source", classes=6, per_class=1)
    first = sides(ingest(config(source), store))
    for label in ("a", "class0a", "z"):
        write(source, {f"{label}/{number}.png": picture(ord(label[-1]) + number) for number in (0, 1)})
    shutil.move(source / "class3", tmp_path / "class3")
    second = sides(ingest(config(source), store))
    shutil.move(tmp_path / "class3", source / "class3")
    write(source, {"y/0.png": picture(5000)})
    third = sides(ingest(config(source), store))
    assert {label: third[label] for label in first} == first, "class3 was away in between"
    assert {label: third[label] for label in second} == second
    assert list(third.values()).count("test") == 5


@pytest.mark.parametrize("back", ["the source is as it was", "rollback"])
def test_a_class_stays_on_its_side_when_a_version_before_it_was_current_again(tmp_path, back):
    first = list("abcdefgh")
    second = [*first, *(f"x{number}" for number in range(8))]
    third = [*first, *(f"x{number}" for number in range(1, 8)), *(f"y{number}" for number in range(6))]
    store = str(tmp_path / "store")
    sources = [labelled(tmp_path / str(n), labels) for n, labels in enumerate((first, second, third))]
    ingest(config(sources[0]), store)
    known = sides(ingest(config(sources[1]), store))
    if back == "rollback":
        with storage.locked_pointer(storage.named_folder(store, "datasets", "d")) as pointer:
            pointer.roll_back()
    else:
        assert ingest_source(config(sources[0]), store).outcome == "found"
    later = sides(ingest(config(sources[2]), store))
    shared = later.keys() & known.keys()
    assert len(shared) == 15
    # Without what the second version knows, x4 would be dealt for training here.
    assert {label: later[label] for label in shared} == {label: known[label] for label in shared}


@pytest.mark.parametrize("back", [False, True], ids=["of the current version", "of one before it"])
def test_a_split_that_gives_an_existing_version_is_remembered(tmp_path, back):
    store, source = str(tmp_path / "store"), class_folders(tmp_path / "source", classes=10, per_class=1)
    first = ingest(config(source), store)
    if back:
        ingest(config(source, split=ClassSplit(test_fraction=0.3)), store)
    report = ingest_source(config(source, split=ClassSplit(test_fraction=0.54)), store)
    assert (report.dataset, report.outcome) == (first, "found" if back else "current")
    assert last_ingest(store, "d").split == ClassSplit(test_fraction=0.54)
    write(source, {f"new{number}/0.png": picture(900 + number) for number in range(20)})
    later = ingest_source(config(source), store)
    assert later.dataset.splits["test"].classes == round(30 * 0.54) != round(30 * 0.5)
    known = sides(later.dataset)
    assert {label: known[label] for label in sides(first)} == sides(first)


def test_another_split_with_the_same_result_forgets_the_classes_that_are_missing(tmp_path):
    store = str(tmp_path / "store")
    first = ingest(config(labelled(tmp_path / "all", "abcdefgh")), store)
    away, *held_out = [label for label, side in sides(first).items() if side == "test"]
    few = labelled(tmp_path / "few", sorted({*"abcdefgh"} - {away}))
    ingest(config(few), store)
    split = AttributeSplit(name="label", test_values=tuple(held_out))
    assert ingest_source(config(few, split=split), store).outcome == "current"
    again = sides(ingest(config(tmp_path / "all"), store))
    assert [label for label, side in again.items() if side == "test"] == held_out


def test_the_place_a_dataset_was_read_from_last_is_remembered(tmp_path):
    store = str(tmp_path / "store")
    ingest(config(class_folders(tmp_path / "old", per_class=1)), store)
    shutil.move(tmp_path / "old", tmp_path / "new")
    assert ingest_source(config(tmp_path / "new"), store).outcome == "current"
    assert last_ingest(store, "d").source == str(tmp_path / "new")


def test_making_a_former_version_again_leaves_the_current_one(tmp_path):
    store, source = str(tmp_path / "store"), class_folders(tmp_path / "source", classes=10, per_class=1)
    former = ingest(config(source, split=ClassSplit(test_fraction=0.5)), store)
    current = ingest(config(source, split=ClassSplit(test_fraction=0.3)), store)
    assert ingest_again(former, store) == former != current
    assert find_dataset(store, "d") == current
    assert last_ingest(store, "d").split == ClassSplit(test_fraction=0.3)


def labelled(root, labels: Iterable[str]):
    return write(root, {f"{label}/0.png": picture(zlib.crc32(label.encode())) for label in labels})


def test_of_two_ingests_at_once_the_later_one_does_not_deal_a_class_to_the_other_side(tmp_path):
    store = str(tmp_path / "store")
    first = labelled(tmp_path / "first", "abcdefghijkl")
    second = labelled(tmp_path / "second", [*"abcd", *(f"z{number}" for number in range(9))])
    published = []

    def meanwhile(done: int, of: int) -> None:
        published.append(ingest(config(first), store))

    with pytest.raises(
        IncompatibleArtifact, match=r"1 of these classes have the other split, such as \['b'\]"
    ):
        ingest_source(config(second), store, meanwhile)
    assert [version.ref for version in list_versions(store)] == published
    known = sides(published[0])
    later = sides(ingest(config(second), store))
    assert all(later[label] == known[label] for label in "abcd")


def test_of_two_ingests_at_once_the_later_one_remembers_the_classes_of_both(tmp_path):
    store = str(tmp_path / "store")
    first, second = labelled(tmp_path / "first", "abcdefgh"), labelled(tmp_path / "second", "abcdefgh12")
    third = labelled(tmp_path / "third", "abcdefgh12xyzuvw")
    ingest(config(first), store)
    (first / "a" / "1.png").write_bytes(picture(1))
    known = {}
    ingest_source(config(first), store, lambda *_: known.update(sides(ingest(config(second), store))))
    later = sides(ingest(config(third), store))
    assert {label: later[label] for label in known} == known


def test_another_split_assigns_all_classes_again_and_says_so_and_no_split_keeps_the_requested_one(tmp_path):
    store, source = str(tmp_path / "store"), class_folders(tmp_path / "source", classes=10, per_class=1)
    ingest(config(source), store)
    three = ingest_source(config(source, split=ClassSplit(test_fraction=0.3)), store)
    assert three.dataset.splits["test"].classes == 3
    assert any("split classes:0.3 (requested) instead of classes:0.5" in note for note in three.notes)
    again = ingest_source(config(source), store)
    assert (again.dataset, again.outcome) == (three.dataset, "current")
    assert again.notes == [
        "held out for test: 3 of 10 classes (30%), 3 of 10 images (30%), by split classes:0.3"
    ]


def test_the_split_that_was_requested_before_is_named_where_it_no_longer_fits(tmp_path):
    store, source = str(tmp_path / "store"), class_folders(tmp_path / "source", classes=3, per_class=1)
    ingest(config(source, split=AttributeSplit(name="label", test_values=("class1",))), store)
    shutil.rmtree(source / "class1")
    with pytest.raises(
        InvalidSetting, match="was split by label:class1; choose another, dml ingest SOURCE --split"
    ):
        ingest(config(source), store)


def test_nothing_is_held_out_without_a_split(tmp_path):
    source = class_folders(tmp_path / "source")
    report = ingest_source(config(source, split=NoSplit()), str(tmp_path / "store"))
    assert report.dataset.splits == {"train": SplitSize(rows=20, classes=4)}
    assert report.notes == ["nothing is held out (split none): evaluate on another, dml train d --test OTHER"]


def test_more_refused_rows_than_allowed_publish_nothing_and_leave_their_table(store, tmp_path):
    source = write(
        class_folders(tmp_path / "source"),
        {"class0/bad.png": b"x", "class1/worse.png": b"", "class1/x.png": b"y"},
    )
    with pytest.raises(TooManyRefused, match=r"2 not an image \(class0/bad.png: .*1 empty file") as refused:
        ingest(config(source), store)
    assert refused.value.exit_status == 1
    table = storage.join(store, "quarantine", "d.parquet")
    assert table in str(refused.value)
    filesystem, path = storage.filesystem(table)
    assert len(parquet.read_table(path, filesystem=filesystem)) == 3
    with pytest.raises(MissingArtifact):
        find_dataset(store, "d")
    report = ingest_source(config(source, max_quarantined=0.14), store)
    assert [(r.reason, r.rows) for r in report.refused] == [("not an image", 2), ("empty file", 1)]


def test_files_of_another_kind_are_no_refused_rows_unless_they_are_most_of_the_source(tmp_path):
    source = class_folders(tmp_path / "source", classes=2, per_class=3)
    write(source, {f"class{c}/{n}.txt": "a box" for c in (0, 1) for n in range(3)})
    assert ingest(config(source), str(tmp_path / "store")).quarantined == 6
    write(source, {"class0/notes.md": "seven of thirteen"})
    with pytest.raises(TooManyRefused, match="7 another kind of file"):
        ingest(config(source), str(tmp_path / "store"))


def test_a_manifest_whose_images_are_missing_is_refused(tmp_path):
    write(tmp_path, {f"{number}.png": picture(number) for number in range(10)})
    lines = [f"{number}.png,{number % 2}" for number in range(11)]
    (tmp_path / "m.csv").write_text("\n".join(["image,label", *lines]))
    with pytest.raises(TooManyRefused, match="1 missing file"):
        ingest(config(tmp_path / "m.csv"), str(tmp_path / "store"))


def test_labels_that_differ_in_outer_space_or_unicode_form_are_one_class(tmp_path):
    write(tmp_path, {f"{number}.png": picture(number) for number in range(6)})
    labels = ["a", "a\u200b ", "caf\u00e9", "cafe\u0301", "\u00a0b", "\ufeffb"]
    table = {"image": [f"{number}.png" for number in range(6)], "label": labels}
    parquet.write_table(pa.table(table), tmp_path / "m.parquet")
    report = ingest_source(config(tmp_path / "m.parquet"), str(tmp_path / "store"))
    rows = read_rows(report.dataset).to_pylist()
    assert {row["label"] for row in rows} == {"a", "caf\u00e9", "b"}
    assert {row["id"] for row in rows} == set(table["image"])
    (note,) = [note for note in report.notes if "labels became" in note]
    assert note.startswith("6 labels became 3")
    assert r"'cafe\u0301', 'caf\xe9'" in note


@pytest.mark.parametrize("damage", [lambda path: path.write_bytes(b""), lambda path: path.unlink()])
def test_a_damaged_version_is_made_again(tmp_path, damage):
    source, store = class_folders(tmp_path / "source"), str(tmp_path / "store")
    ref = ingest(config(source), store)
    for victim in (fragments(ref)[0].uri, "classes.parquet"):
        damage(Path(ref.uri) / victim)
        report = ingest_source(config(source), store)
        assert (report.dataset, report.outcome) == (ref, "repaired")
        storage.verify(ref.uri)
    assert ingest_source(config(source), store).outcome == "current"


def test_a_version_that_was_there_before_becomes_current_again(tmp_path):
    source, store = class_folders(tmp_path / "source"), str(tmp_path / "store")
    first = ingest_source(config(source), store)
    write(source, {"class0/more.png": picture(999)})
    second = ingest_source(config(source), store)
    (source / "class0" / "more.png").unlink()
    third = ingest_source(config(source), store)
    assert [report.outcome for report in (first, second, third)] == ["made", "made", "found"]
    assert [(v.ref, v.is_current) for v in list_versions(store)] == [
        (first.dataset, True),
        (second.dataset, False),
    ]
    assert all(version.created.endswith("+00:00") for version in list_versions(store))
