"""`dml verify` names a log that is damaged, lost, or older than what was built of it."""

import shutil

import pytest

from dml.integrity import check_store
from dml.retrieval.gallery import Gallery
from dml.retrieval.gallery.fold import log_path
from tests.retrieval.gallery.people import ROWS, items_of, publish, vectors_of
from tests.retrieval.gallery.test_fold import fold


def page_overwritten(path, _):
    content = bytearray(path.read_bytes())
    content[4096:8192] = b"\xff" * 4096
    path.write_bytes(content)


def lost(path, _):
    shutil.rmtree(path.parent)


def older(path, backup):
    shutil.rmtree(path.parent)
    shutil.copytree(backup, path.parent)


def of_another_gallery(path, _):
    publish(str(path.parents[2]), path.parents[2], "others", items_of(ROWS), vectors_of(ROWS, 2))
    gallery = Gallery.open(str(path.parents[2]), "others")
    gallery.enrol("crowd", vectors=vectors_of(1, 9))
    gallery.close()
    shutil.copy(log_path(str(path.parents[2]), "others"), path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (page_overwritten, "log.sqlite"),
        (lost, "log.sqlite (is missing)"),
        (older, "log.sqlite (ends at revision 1 of 2)"),
        (of_another_gallery, "log.sqlite"),
    ],
)
def test_a_log_that_cannot_be_built_of_is_named(tmp_path, damage, says):
    store = str(tmp_path / "store")
    ref = publish(store, tmp_path, "people", items_of(ROWS), vectors_of(ROWS, 1))
    assert not [each for each in check_store(store) if each.kind == "log"], "nothing was ever enrolled"
    gallery = Gallery.open(store, "people")
    gallery.enrol("crowd", vectors=vectors_of(1, 7), ids=["one"])
    gallery.close()
    path = log_path(store, "people")
    shutil.copytree(path.parent, tmp_path / "backup")
    gallery = Gallery.open(store, "people")
    gallery.enrol("crowd", vectors=vectors_of(1, 8), ids=["two"])
    gallery.close()
    fold(store, ref)
    assert not any(each.damaged for each in check_store(store))
    damage(path, tmp_path / "backup")
    (log,) = [each for each in check_store(store, "people") if each.damaged]
    assert (log.kind, log.name, log.damaged) == ("log", "people", [says])
