"""A store against its manifests: what is damaged is named, and what is not wanted is not looked at."""

import pytest

from dml import storage
from dml.errors import CorruptArtifact, MissingArtifact
from dml.integrity import CheckedArtifact, check_store, ref_of, remove_damaged, require_intact
from dml.refs import DatasetRef, Ref
from tests.test_refs import DATASET

VERSION, OTHER = "a" * 12, "b" * 12


@pytest.fixture
def store(tmp_path):
    """Two versions of one dataset, another dataset, an index of the same name, a package, a checkpoint."""
    store = str(tmp_path / "store")
    storage.mark_store(store)
    for place in (
        f"datasets/birds/{VERSION}",
        f"datasets/birds/{OTHER}",
        f"datasets/cars/{VERSION}",
        f"indexes/birds/{VERSION}",
        f"packages/{VERSION}",
        f"runs/r1/checkpoints/{VERSION}",
    ):
        uri = storage.join(store, place)
        with storage.staged(uri) as staged:
            storage.write_bytes(storage.join(staged, "a"), b"1")
            storage.write_bytes(storage.join(staged, "b"), b"2")
            ref = DATASET.model_dump(exclude={"uri"}, mode="json")
            storage.publish(staged, uri, {"kind": "test", "ref": ref})
    storage.point(storage.join(store, "datasets", "birds"), OTHER)
    return store


def damage(store, *place):
    storage.write_bytes(storage.join(store, *place), b"x")


def titles(checked):
    return [(each.kind, each.title) for each in checked]


def test_everything_of_a_store_is_compared_and_progress_is_reported(store):
    reported = []
    checked = check_store(store, progress=lambda done, total: reported.append((done, total)))
    assert titles(checked) == [
        ("dataset", f"birds@{VERSION}"),
        ("dataset", f"birds@{OTHER}"),
        ("dataset", f"cars@{VERSION}"),
        ("index", f"birds@{VERSION}"),
        ("package", VERSION),
        ("checkpoint", f"r1@{VERSION}"),
    ]
    assert not any(each.damaged for each in checked)
    assert reported == [(number, 6) for number in range(1, 7)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("birds", [f"birds@{VERSION}", f"birds@{OTHER}", f"birds@{VERSION}"]),
        (f"birds@{OTHER}", [f"birds@{OTHER}"]),
        ("cars", [f"cars@{VERSION}"]),
    ],
)
def test_of_a_name_or_version_only_that_is_compared(store, name, expected):
    damage(store, "packages", VERSION, "a")
    checked = check_store(store, name)
    assert [each.title for each in checked] == expected
    assert not any(each.damaged for each in checked)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("bird", r"'bird' must exist.*there are \['birds', 'cars'\].*mean 'birds'"),
        ("birds@" + "c" * 12, rf"there are \['birds@{VERSION}', 'birds@{OTHER}', 'birds@{VERSION}'\]"),
    ],
)
def test_a_name_that_is_not_there_brings_those_that_are(store, name, message):
    with pytest.raises(MissingArtifact, match=message):
        check_store(store, name)


def test_damaged_files_are_named_and_a_damaged_manifest_is_one(store):
    damage(store, "datasets", "birds", VERSION, "b")
    damage(store, "packages", VERSION, "manifest.json")
    damaged = {each.uri.removeprefix(store): each.damaged for each in check_store(store) if each.damaged}
    assert damaged == {f"/datasets/birds/{VERSION}": ["b"], f"/packages/{VERSION}": ["manifest.json"]}


def test_a_folder_of_another_name_beside_the_indexes_or_galleries_is_left_alone(store):
    for place in ("indexes", "galleries"):
        damage(store, place, "My Folder", "log.sqlite")
    assert not any(each.damaged for each in check_store(store))


def test_a_pointer_that_is_damaged_or_names_a_missing_version_is_reported(store):
    storage.delete(storage.join(store, "datasets", "birds", OTHER))
    damage(store, "indexes", "birds", "current.json")
    damaged = [(each.kind, each.name, each.damaged) for each in check_store(store) if each.damaged]
    assert [each[:2] for each in damaged] == [("dataset pointer", "birds"), ("index pointer", "birds")]
    assert OTHER in damaged[0][2][0], "what it names"
    assert damaged[1][2] == ["current.json"]
    assert not any(each.damaged for each in check_store(store, "cars"))


def test_a_damaged_list_of_forgotten_items_is_reported(store):
    from dml.data.forgotten import FORGOTTEN

    damage(store, "datasets", "birds", FORGOTTEN)
    damaged = [(each.kind, each.name, each.damaged) for each in check_store(store) if each.damaged]
    assert damaged == [("list of forgotten items", "birds", [FORGOTTEN])]
    assert not any(each.damaged for each in check_store(store, "cars"))


def test_a_damaged_artefact_goes_whole_but_of_embeddings_only_what_is_damaged(store):
    uri = storage.join(store, "packages", VERSION)
    remove_damaged(CheckedArtifact("embeddings", VERSION, VERSION, uri, ["a"]))
    assert storage.list_names(uri) == ["b"]
    remove_damaged(CheckedArtifact("package", VERSION, VERSION, uri, ["b"]))
    assert not storage.exists(uri)


def test_a_ref_is_read_from_the_manifest_unless_that_says_none(store):
    uri = storage.join(store, "datasets", "birds", VERSION)
    actual = ref_of(CheckedArtifact("dataset", "birds", VERSION, uri, ["a"]), DatasetRef)
    assert actual == DATASET.model_copy(update={"uri": uri})
    storage.write_manifest(uri, {"files": {}})
    with pytest.raises(CorruptArtifact, match=r"manifest\.json must"):
        ref_of(CheckedArtifact("dataset", "birds", VERSION, uri, ["a"]), DatasetRef)


def test_what_is_about_to_be_used_must_be_whole(store):
    ref = Ref(uri=storage.join(store, "packages", VERSION), fingerprint="f" * 64)
    require_intact(ref)
    damage(store, "packages", VERSION, "a")
    with pytest.raises(CorruptArtifact, match="1 are not: a"):
        require_intact(ref)
