"""A fragment is a function of its rows: two versions have those alike whose rows did not change."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dml import storage
from dml.config import IngestConfig
from dml.data.dataset import find_dataset, fragments, read_rows
from dml.data.forget import without_items
from dml.data.fragment import cut
from dml.data.ingest import ingest
from dml.data.sources.sample import Sample
from tests.data.pictures import class_folders, picture, write

MOST = 4


def ingested(source, store, **settings):
    everything = {"kind": "classes", "test_fraction": 0}
    config = {"rows_per_fragment": MOST, "rows_per_group": 2, "split": everything, **settings}
    return ingest(IngestConfig(name="d", source=str(source), **config), str(store))


def bytes_of(ref) -> dict[str, bytes]:
    return {fragment.name: Path(fragment.uri).read_bytes() for fragment in fragments(ref)}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("images") / "source", classes=20, per_class=2)


@pytest.fixture(scope="module")
def before(source, tmp_path_factory):
    return bytes_of(ingested(source, tmp_path_factory.mktemp("before")))


def test_a_fragment_is_named_by_the_digest_of_its_bytes(before):
    assert len(before) >= 10
    assert all(
        name == f"fragment-{storage.digest_of_bytes(content)}.parquet" for name, content in before.items()
    )


def test_one_row_changed_is_one_fragment_changed(source, before, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    write(tmp_path / "source", {"class10/0.png": picture(999)})
    after = bytes_of(ingested(tmp_path / "source", tmp_path / "store"))
    assert len(after) == len(before)
    assert len(after.items() & before.items()) == len(before) - 1


@pytest.mark.parametrize("label", ["a-first", "class10-between", "z-last"])
def test_one_class_added_leaves_the_fragments_that_are_not_beside_it(source, before, tmp_path, label):
    shutil.copytree(source, tmp_path / "source")
    write(tmp_path / "source", {f"{label}/{number}.png": picture(990 + number) for number in (0, 1)})
    after = bytes_of(ingested(tmp_path / "source", tmp_path / "store"))
    assert len(after.keys() - before.keys()) <= 2
    assert len(before.keys() - after.keys()) <= 2
    assert after.items() & before.items() == {(name, before[name]) for name in before.keys() & after.keys()}


def test_rows_left_out_later_leave_the_fragment_of_the_others(source, tmp_path):
    """Also its row groups: they are cut anew."""
    settings = {"rows_per_fragment": 100}
    whole = ingested(source, tmp_path / "store", **settings)
    forgotten_ids = read_rows(whole, columns=["id"])["id"].to_pylist()[3:30:4]
    forgotten = without_items(str(tmp_path / "store"), whole, forgotten_ids)
    shutil.copytree(source, tmp_path / "source")
    for id_ in forgotten_ids:
        (tmp_path / "source" / id_).unlink()
    assert bytes_of(forgotten) == bytes_of(ingested(tmp_path / "source", tmp_path / "other", **settings))


def test_images_under_several_labels_leave_the_fragment_of_the_others(source, before, tmp_path):
    shutil.copytree(source, tmp_path / "source")
    write(tmp_path / "source", {f"class{number}/more.png": picture(999) for number in (10, 11)})
    settings = {"rows_per_fragment": 100, "quarantine_contradictions": True, "max_quarantined": 1}
    refused = ingested(tmp_path / "source", tmp_path / "store", **settings)
    assert bytes_of(refused) == bytes_of(ingested(source, tmp_path / "other", rows_per_fragment=100))


def test_a_version_holds_its_tables_and_its_fragments_lie_beside_it(source, tmp_path):
    ref = ingested(source, tmp_path / "store")
    assert {path.name for path in Path(ref.uri).iterdir()} == {
        "manifest.json",
        "classes.parquet",
        "ids.parquet",
        "quarantine.parquet",
    }
    shared = {path.name for path in Path(ref.uri).with_name("fragments").iterdir()}
    assert shared == {fragment.name for fragment in fragments(ref)}
    assert find_dataset(str(tmp_path / "store"), "d") == ref


def samples_of(sizes: dict[str, int]) -> list[Sample]:
    return [
        Sample(f"{label}/{row:04d}", "", label)
        for label, size in sorted(sizes.items())
        for row in range(size)
    ]


SIZES = st.dictionaries(st.integers(0, 999).map("{:03d}".format), st.integers(1, 12), min_size=1, max_size=40)


@given(SIZES, st.integers(1, 10))
def test_fragments_hold_all_rows_in_their_order_and_whole_classes_where_they_fit(sizes, most):
    parts = cut(samples_of(sizes), most)
    assert [sample for part in parts for sample in part] == samples_of(sizes)
    assert all(1 <= len(part) <= most for part in parts)
    for label, size in sizes.items():
        if size <= most:
            assert sum(label in {sample.label for sample in part} for part in parts) == 1


@given(SIZES, st.integers(1, 10), st.data())
def test_a_class_that_comes_changes_no_fragment_more_than_a_fragments_rows_away(sizes, most, data):
    added = data.draw(st.sampled_from(sorted(sizes)))
    fewer = {label: size for label, size in sizes.items() if label != added}
    after = cut(samples_of(sizes), most)
    before = [list(part) for part in cut(samples_of(fewer), most)]
    first = next(row for row, sample in enumerate(samples_of(sizes)) if sample.label == added)
    last, start = first + sizes[added] - 1, 0
    for part in after:
        end = start + len(part)
        if end <= first - most or start > last + most:
            assert list(part) in before
        start = end


def test_fragments_are_half_full_on_average():
    parts = cut(samples_of({f"{number:05d}": 5 for number in range(4000)}), 200)
    assert 0.4 < sum(map(len, parts)) / len(parts) / 200 < 0.6


def test_the_cuts_of_a_release_are_those_of_the_one_before_so_that_fragments_are_shared():
    parts = cut(samples_of({"a": 9, "b": 3, "c": 1, "d": 12, "e": 2}), 4)
    assert [len(part) for part in parts] == [3, 3, 3, 3, 1, 3, 3, 2, 2, 2, 2]
