"""A store with foreign or damaged files in it: what is not ours is left alone, what is broken is named."""

import shutil
from pathlib import Path

import pytest

from dml import storage


def test_files_beside_datasets_and_indexes_do_not_matter(dml, store, query):
    for folder in ("datasets", "indexes", "indexes/labels", "datasets/labels"):
        Path(store, folder, "README.txt").write_text("mine")
    for verb in (["datasets"], ["indexes"], ["search", query], ["search", query, "--index", "labels"]):
        done = dml(*verb, "--store", store, "--json")
        assert done.status == 0, done.err


@pytest.mark.parametrize("content", ["", "{", "[]", '{"version": 3}', '{"version": "../.."}', "\x00"])
def test_a_damaged_pointer_is_named_with_what_to_do(dml, tmp_path, content):
    folder = tmp_path / "indexes" / "x"
    folder.mkdir(parents=True)
    (folder / "current.json").write_text(content)
    done = dml("indexes", "--store", str(tmp_path), "--json")
    assert done.status == 2
    assert str(folder / "current.json") in done.json["error"]


@pytest.mark.parametrize(
    ("verb", "folder"),
    [("indexes", "indexes/labels"), ("datasets", "datasets/labels")],
    ids=["index", "dataset"],
)
@pytest.mark.parametrize("file", ["manifest.json", "current.json"])
def test_what_is_damaged_does_not_hide_what_is_whole(dml, store, tmp_path, verb, folder, file):
    copy = tmp_path / "copy"
    shutil.copytree(store, copy)
    shutil.copytree(copy / folder, (copy / folder).with_name("aside"))
    victim = next((copy / folder).with_name("aside").rglob(file))
    victim.write_bytes(victim.read_bytes().replace(b"e", b"f", 1))
    done = dml(verb, "--store", str(copy))
    assert done.status == 2
    assert "labels@" in done.out
    assert str(victim) in done.err
    done = dml(verb, "--store", str(copy), "--json")
    assert done.status == 2
    assert "labels" in [each["name"] for each in done.json[verb]]
    assert str(victim) in done.json["error"]


def test_an_index_is_listed_beside_a_damaged_dataset(dml, store, tmp_path):
    shutil.copytree(store, tmp_path / "copy")
    next((tmp_path / "copy" / "datasets").rglob("manifest.json")).write_text("")
    done = dml("indexes", "--store", str(tmp_path / "copy"), "--json")
    assert (done.status, done.json["indexes"][0]["newer"]) == (0, ["dataset unknown"])


def test_a_search_of_a_whole_index_does_not_read_a_damaged_one(dml, store, query, tmp_path):
    shutil.copytree(store, tmp_path / "copy")
    indexes = tmp_path / "copy" / "indexes"
    shutil.copytree(indexes / "labels", indexes / "aside")
    next((indexes / "aside").rglob("manifest.json")).write_text("")
    assert dml("search", query, "--store", str(tmp_path / "copy"), "--index", "labels").status == 0
    done = dml("search", query, "--store", str(tmp_path / "copy"))
    assert done.status == 2
    assert "['aside', 'labels']" in done.err


def test_a_store_that_is_a_file_is_refused(dml, tmp_path):
    (tmp_path / "store").write_text("")
    for verb in ("datasets", "indexes"):
        done = dml(verb, "--store", str(tmp_path / "store"))
        assert done.status == 2
        assert str(tmp_path / "store") in done.err


def test_a_name_that_does_not_exist_brings_the_nearest(dml, store, query):
    done = dml("search", query, "--store", store, "--index", "lables")
    assert done.status == 2
    assert "labels" in done.err
    assert "Did you mean 'labels'" in done.err


def test_a_dataset_of_another_schema_does_not_hide_the_others(dml, dataset, store, tmp_path):
    shutil.copytree(store, tmp_path / "copy")
    folder = tmp_path / "copy" / "datasets"
    other = folder / "other" / dataset.version
    shutil.copytree(folder / "labels" / dataset.version, other)
    manifest = storage.read_manifest(str(other))
    newer = {**manifest["ref"], "schema_version": 99}
    storage.write_manifest(str(other), {**manifest, "ref": newer})
    done = dml("datasets", "--store", str(tmp_path / "copy"), "--json")
    assert (done.status, [each["name"] for each in done.json["datasets"]]) == (2, ["labels"])
    assert "schema version" in done.json["error"]
