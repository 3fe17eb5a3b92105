"""What a former version says of the next: which classes were for test."""

import pytest

from dml import storage
from dml.config import IngestConfig
from dml.data.dataset import find_dataset
from dml.data.former import CLASSES, find_former
from dml.data.ingest import ingest
from tests.data.pictures import class_folders


def test_before_the_first_version_nothing_is_known(tmp_path):
    former = find_former(str(tmp_path / "store"), "birds")
    assert (former.version, former.rows, former.classes, dict(former.split_of_class)) == (None, 0, 0, {})


@pytest.fixture
def store(tmp_path):
    store = str(tmp_path / "store")
    source = str(class_folders(tmp_path / "images", classes=6, per_class=2))
    ingest(IngestConfig(name="birds", source=source, num_workers=1), store)
    return store


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_without_the_table_of_classes_the_rows_are_asked(store, damage):
    before = find_former(store, "birds")
    uri = storage.join(find_dataset(store, "birds").uri, CLASSES)
    if damage == "gone":
        storage.delete(uri)
    else:
        storage.write_bytes(uri, storage.read_bytes(uri)[:-9])
    assert find_former(store, "birds") == before


def test_a_byte_changed_in_the_table_of_classes_moves_no_class_to_the_other_side(store):
    before = find_former(store, "birds")
    uri = storage.join(find_dataset(store, "birds").uri, CLASSES)
    content = storage.read_bytes(uri)
    footer = len(content) - 8 - int.from_bytes(content[-8:-4], "little")
    for place in range(4, footer, 2):
        changed = content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]
        storage.write_bytes(uri, changed)
        assert find_former(store, "birds") == before, place
