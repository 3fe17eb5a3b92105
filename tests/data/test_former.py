"""What a former version says of the next: which classes were for test."""

import pytest

from dml import storage
from dml.config import ClassSplit, IngestConfig, NoSplit, SplitConfig
from dml.data.chosen_split import choose_split
from dml.data.class_splits import CLASSES
from dml.data.dataset import find_dataset
from dml.data.former import FormerVersion, find_former
from dml.data.ingest import ingest
from dml.data.sources.sample import Sample
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
def test_without_the_table_of_classes_the_rows_are_read(store, damage):
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


HALF, THIRD = ClassSplit(test_fraction=0.5), ClassSplit(test_fraction=1 / 3)
SAMPLES = [Sample(f"{label}/0", "", label) for label in "abcdef"]


def former_version(requested: SplitConfig | None) -> FormerVersion:
    return FormerVersion("v1", requested, requested or HALF, 6, 6, dict.fromkeys("abcdef", "train"))


@pytest.mark.parametrize(
    ("requested", "before", "expected"),
    [
        (THIRD, None, THIRD),
        (THIRD, NoSplit(), THIRD),
        (None, NoSplit(), NoSplit()),
        (None, None, HALF),
    ],
    ids=["of the first user", "a new one", "that chosen before", "of the layout"],
)
def test_a_split_is_the_users_else_the_one_chosen_before_else_that_of_the_layout(requested, before, expected):
    chosen = choose_split(SAMPLES, requested, HALF, former_version(before))
    assert chosen.config == expected
    assert chosen.requested == (requested or before)


def test_the_first_requested_split_assigns_no_class_again_and_another_one_assigns_all():
    first = choose_split(SAMPLES, THIRD, HALF, FormerVersion())
    assert (first.reassigns, first.notes) == (False, [])
    assert list(first.split_of_class.values()).count("test") == 2
    known = FormerVersion("v1", THIRD, THIRD, 6, 6, first.split_of_class)
    same, other = (choose_split(SAMPLES, split, HALF, known) for split in (THIRD, HALF))
    assert (same.reassigns, same.notes, same.split_of_class) == (False, [], first.split_of_class)
    assert other.reassigns
    (note,) = other.notes
    assert "1 of 6 classes change their split" in note


def test_a_missing_class_keeps_its_split_until_all_classes_are_assigned_again():
    known = FormerVersion("v1", THIRD, THIRD, 7, 7, {**dict.fromkeys("abcdef", "train"), "away": "test"})
    assert choose_split(SAMPLES, None, HALF, known).remembered["away"] == "test"
    assert "away" not in choose_split(SAMPLES, HALF, HALF, known).remembered


def test_classes_of_a_later_version_are_known_where_one_split_was_requested_and_the_other_the_layouts(
    tmp_path,
):
    store, source = str(tmp_path / "store"), tmp_path / "images"
    class_folders(source, classes=6, per_class=2)
    config = IngestConfig(name="birds", source=str(source), num_workers=1)
    ingest(config, store)
    class_folders(source, classes=9, per_class=2)
    ingest(config.model_copy(update={"split": ClassSplit(test_fraction=0.5)}), store)
    later = find_former(store, "birds").split_of_class
    with storage.locked_pointer(storage.named_folder(store, "datasets", "birds")) as pointer:
        pointer.roll_back()
    assert len(later) == 9
    assert find_former(store, "birds").split_of_class == later
