"""A store with foreign or damaged files in it: what is not ours is left alone, what is broken is named."""

from pathlib import Path

import pytest


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
