"""An artefact appears whole or not at all, on a local disk and on S3."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from dml import storage
from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidSetting, MissingArtifact


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    return str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3_store")


def publish(final, description=None, **files):
    with storage.staged(final) as staged:
        for name, content in files.items():
            storage.write_bytes(storage.join(staged, name), content)
        storage.publish(staged, final, description or {"kind": "test"})


def flip_byte(path, position=0):
    """Change one byte, and restore the file's times."""
    before = os.stat(path)
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_an_artefact_exists_only_once_it_is_published(store):
    final = storage.join(store, "things", "one", "v1")
    staged = storage.staging(final)
    storage.write_bytes(storage.join(staged, "a"), b"1")
    assert not storage.is_complete(final)
    assert storage.list_names(storage.join(store, "things", "one")) == []
    storage.publish(staged, final, {"kind": "test"})
    manifest = storage.read_manifest(final)
    assert manifest["kind"] == "test"
    assert manifest["files"]["a"]["size_bytes"] == 1
    assert storage.read_bytes(storage.join(final, "a")) == b"1"
    assert storage.list_names(storage.join(store, "things", "one")) == ["v1"]
    storage.verify(final)


def test_publishing_again_keeps_the_first(store):
    final = storage.join(store, "things", "one", "v1")
    publish(final, a=b"1")
    publish(final, a=b"2")
    assert storage.read_bytes(storage.join(final, "a")) == b"1"
    assert storage.list_names(storage.join(store, "things", "one")) == ["v1"]


def test_the_pointer_names_the_version_in_use(store):
    parent = storage.join(store, "things", "one")
    for version in ("v1", "v2"):
        publish(storage.join(parent, version), a=b"1")
    assert storage.current(parent) is None
    storage.point(parent, "v2")
    assert storage.find_version(parent, None, "thing") == storage.join(parent, "v2")
    assert storage.find_version(parent, "v1", "thing") == storage.join(parent, "v1")
    with pytest.raises(MissingArtifact, match=r"'one@v3'.*v1.*v2"):
        storage.find_version(parent, "v3", "thing")
    with pytest.raises(MissingArtifact, match=r"'two'.*one"):
        storage.find_version(storage.join(store, "things", "two"), None, "thing")


def test_a_changed_byte_is_noticed(store):
    final = storage.join(store, "things", "one", "v1")
    publish(final, a=b"1")
    storage.write_bytes(storage.join(final, "a"), b"2")
    with pytest.raises(CorruptArtifact, match=r"a\. They were changed"):
        storage.verify(final)


def test_bytes_are_read_as_written_whatever_the_file_name(store):
    for name in ("a", "b.gz", "c.bz2", "d.zst"):
        uri = storage.join(store, "raw", name)
        storage.write_bytes(uri, b"as it is")
        assert storage.read_bytes(uri) == b"as it is"
        assert storage.file_digest(uri) == storage.digest_of_bytes(b"as it is")


def test_a_fetched_artefact_is_local_and_verified(store):
    final = storage.join(store, "things", "one", "v1")
    publish(final, a=b"1")
    assert (storage.fetch(final, "f" * 64) / "a").read_bytes() == b"1"
    assert (storage.fetch(final, "f" * 64) / "a").read_bytes() == b"1"
    if storage.is_remote(store):
        storage.write_bytes(storage.join(final, "a"), b"2")
        with pytest.raises(CorruptArtifact):
            storage.fetch(final, "e" * 64)


def test_reading_a_missing_file_or_artefact_raises_missing_artifact(store):
    with pytest.raises(MissingArtifact):
        storage.read_bytes(storage.join(store, "nothing"))
    with pytest.raises(MissingArtifact, match="never finished"):
        storage.read_manifest(storage.join(store, "nothing"))
    assert storage.list_names(storage.join(store, "nothing")) == []
    storage.delete(storage.join(store, "nothing"))
    with pytest.raises(InvalidSetting, match="s3://"):
        storage.resolve("ftp://somewhere/store")


def test_a_process_killed_while_writing_leaves_the_old_file(tmp_path):
    target = tmp_path / "current.json"
    storage.write_bytes(str(target), b"old")
    program = (
        "import os, signal; from pathlib import Path; from dml import storage\n"
        "os.fsync = lambda number: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"storage.write_bytes({str(target)!r}, b'new')"
    )
    died = subprocess.run([sys.executable, "-c", program], check=False).returncode
    assert died == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert storage.list_names(str(tmp_path)) == ["current.json"]


def test_a_staging_folder_is_removed_when_its_body_fails(store):
    final = storage.join(store, "things", "one", "v1")

    def fail(staged):
        storage.write_bytes(storage.join(staged, "a"), b"1")
        raise OSError("No space left on device")

    with pytest.raises(OSError, match="No space left"), storage.staged(final) as staged:
        fail(staged)
    assert storage.list_entries(storage.join(store, "things", "one")) == []


def test_staging_removes_no_other_folder(tmp_path):
    others = [".git", ".venv", ".staging", ".v1-0123abcd", ".staging-v1-0123456"]
    for name in others:
        (tmp_path / "one" / name).mkdir(parents=True)
    publish(str(tmp_path / "one" / "v1"), a=b"1")
    assert sorted(os.listdir(tmp_path / "one")) == sorted([*others, "v1"])
    assert not any(storage.is_staging(name) for name in others)
    assert storage.is_staging(os.path.basename(storage.staging(str(tmp_path / "one" / "v2"))))


@pytest.mark.parametrize("key", ["a b", "a#b", "a?b", "50%", "a%20b", "grün", "a+b", "日本", "a&b=c;d"])
def test_a_key_is_used_literally(store, key):
    uri = storage.join(store, "raw", key, "x.jpg")
    storage.write_bytes(uri, key.encode())
    assert storage.read_bytes(uri) == key.encode()
    assert storage.list_names(storage.join(store, "raw")) == [key]
    assert storage.files_below(storage.join(store, "raw")).__next__().path == f"{key}/x.jpg"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIAKEY:topsecret@bucket/store",
        "s3://bucket/store?endpoint_override=http://u:topsecret@h",
        "s3://topsecret@bucket",
        "https://topsecret@host/store",
    ],
)
def test_a_uri_with_credentials_or_a_query_is_refused_and_not_repeated(uri):
    with pytest.raises(InvalidSetting) as error:
        storage.resolve(uri)
    assert "topsecret" not in str(error.value)
    assert "AKIAKEY" not in str(error.value)


def test_bytes_flipped_after_publishing_are_noticed_at_the_next_opening(tmp_path):
    final = tmp_path / "things" / "v1"
    publish(str(final), a=b"12345", b=b"1")
    storage.verify_opened(str(final))
    storage.verify_opened(str(final), digests=False)
    flip_byte(final / "a", 3)
    with pytest.raises(CorruptArtifact, match=r"1 are not: a\."):
        storage.verify_opened(str(final))
    assert not storage.is_intact(str(final))


@pytest.mark.parametrize("damage", ["shorter", "empty", "gone"])
def test_a_file_of_another_size_is_noticed_without_reading(store, damage):
    final = storage.join(store, "things", "v1")
    publish(final, a=b"12345", b=b"1")
    if damage == "gone":
        storage.delete(storage.join(final, "a"))
    else:
        storage.write_bytes(storage.join(final, "a"), b"1234" if damage == "shorter" else b"")
    with pytest.raises(CorruptArtifact, match=r"1 are not: a\."):
        storage.verify_opened(final, digests=False)


def test_a_checked_file_is_not_hashed_again(tmp_path):
    final = tmp_path / "things" / "v1"
    publish(str(final), a=b"12345")
    manifest = storage.verify_opened(str(final))
    assert storage.verified.unknown_files(str(final), manifest["files"]) == []
    shutil.copytree(final, tmp_path / "copy")
    assert storage.verified.unknown_files(str(tmp_path / "copy"), manifest["files"]) == ["a"]
    storage.verify_opened(str(tmp_path / "copy"))
    assert storage.verified.unknown_files(str(tmp_path / "copy"), manifest["files"]) == []


def test_publishing_over_a_damaged_artefact_replaces_it(store):
    final = storage.join(store, "things", "one", "v1")
    publish(final, a=b"1")
    storage.write_bytes(storage.join(final, "a"), b"")
    publish(final, a=b"1")
    assert storage.read_bytes(storage.join(final, "a")) == b"1"
    storage.verify(final)


def test_all_damaged_files_are_named_at_once(store):
    final = storage.join(store, "things", "v1")
    publish(final, a=b"1", b=b"1", c=b"1")
    storage.write_bytes(storage.join(final, "a"), b"2")
    storage.write_bytes(storage.join(final, "c"), b"3")
    with pytest.raises(CorruptArtifact, match=r"2 are not: a, c\."):
        storage.verify(final)


def test_a_damaged_copy_in_the_cache_is_fetched_again(s3_store):
    final = storage.join(s3_store, "things", "v1")
    publish(final, a=b"12345")
    flip_byte(storage.fetch(final, "d" * 64) / "a")
    assert (storage.fetch(final, "d" * 64) / "a").read_bytes() == b"12345"


def test_references_stay_right_when_a_store_is_moved(tmp_path):
    store = tmp_path / "store"
    package = storage.join(str(store), "packages", "p1")
    publish(
        storage.join(str(store), "indexes", "one", "v1"),
        {
            "ref": {
                "parents": [{"uri": package, "initial": {"uri": f"{package}0"}}],
                "page": f"{package}/x.html",
            }
        },
        a=b"1",
    )
    assert str(tmp_path) not in (store / "indexes" / "one" / "v1" / "manifest.json").read_text()
    moved = tmp_path / "somewhere" / "deeper" / "moved"
    moved.parent.mkdir(parents=True)
    store.rename(moved)
    ref = storage.read_manifest(str(moved / "indexes" / "one" / "v1"))["ref"]
    assert ref["parents"][0]["uri"] == str(moved / "packages" / "p1")
    assert ref["parents"][0]["initial"]["uri"] == str(moved / "packages" / "p10")
    assert ref["page"] == str(moved / "packages" / "p1" / "x.html")


def test_references_on_s3_stay_in_their_bucket(s3_store):
    final = storage.join(s3_store, "indexes", "one", "v1")
    near, far = storage.join(s3_store, "packages", "a b#1"), "s3://another-bucket/packages/p1"
    publish(final, {"ref": {"near": {"uri": near}, "far": {"uri": far}}}, a=b"1")
    ref = storage.read_manifest(final)["ref"]
    assert ref == {"near": {"uri": near}, "far": {"uri": far}}
    assert b"../../../packages/a b#1" in storage.read_bytes(storage.join(final, "manifest.json"))


def roll_back(parent, version=None):
    with storage.locked_pointer(parent) as pointer:
        return pointer.roll_back(version)


def test_a_pointer_rolls_back_through_its_history(store):
    parent = storage.join(store, "things", "one")
    for version in ("v1", "v2", "v3"):
        publish(storage.join(parent, version), a=b"1")
        storage.point(parent, version)
    storage.point(parent, "v3")
    assert storage.former_versions(parent) == ["v2", "v1"]
    assert roll_back(parent) == "v2"
    assert roll_back(parent) == "v1"
    with pytest.raises(MissingArtifact, match="former version"):
        roll_back(parent)
    assert storage.current(parent) == "v1"
    storage.point(parent, "v3")
    assert roll_back(parent, "v1") == "v1"


def test_rolling_back_skips_a_removed_version(store):
    parent = storage.join(store, "things", "one")
    for version in ("v1", "v2", "v3"):
        publish(storage.join(parent, version), a=b"1")
        storage.point(parent, version)
    storage.delete(storage.join(parent, "v2"))
    assert roll_back(parent) == "v1"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"version": 3}',
        b'{"version": "v1", "former": null}',
        b'{"version": "v1", "former": 3}',
        b'{"version": "../../x"}',
        b"\xff",
    ],
)
def test_a_damaged_pointer_is_refused_with_the_existing_versions(store, content):
    parent = storage.join(store, "things", "one")
    publish(storage.join(parent, "v1"), a=b"1")
    storage.write_bytes(storage.join(parent, "current.json"), content)
    with pytest.raises(CorruptArtifact, match=r"current\.json must name the current version.*'v1'"):
        storage.find_version(parent, None, "thing")
    assert storage.find_version(parent, "v1", "thing")


def test_a_file_among_the_folders_is_not_a_version(store):
    storage.write_bytes(storage.join(store, "things", "README.txt"), b"hello")
    publish(storage.join(store, "things", "one", "v1"), a=b"1")
    assert storage.list_folders(storage.join(store, "things")) == ["one"]
    assert storage.list_names(storage.join(store, "things", "README.txt")) == []
    assert storage.list_versions(storage.join(store, "things", "README.txt")) == []


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a/b", "x@y", ".hidden", "../../x", "/etc", "a\n", "A", "é", "7", "null"]
)
def test_an_invalid_name_does_not_become_a_folder(name):
    with pytest.raises(InvalidSetting, match="must start with a letter"):
        storage.named_folder("store", "indexes", name)


def test_a_store_of_another_format_is_refused(store):
    storage.mark_store(store)
    storage.mark_store(store)
    storage.require_store(store)
    storage.write_bytes(storage.join(store, "dml-store.json"), json.dumps({"format": 99}).encode())
    with pytest.raises(IncompatibleArtifact, match="format 2"):
        storage.mark_store(store)


def test_a_folder_without_the_marker_is_not_a_store(tmp_path):
    with pytest.raises(MissingArtifact, match=r"dml-store\.json"):
        storage.require_store(str(tmp_path))
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match="is a file"):
        storage.mark_store(str(tmp_path / "file"))


@pytest.mark.parametrize("position", [0.1, 0.5, 0.9])
def test_a_changed_manifest_is_noticed(store, position):
    final = storage.join(store, "things", "v1")
    publish(final, {"ref": {"model": "shop/1", "rows": 12345}, "note": "x" * 50}, a=b"12345")
    uri = storage.join(final, "manifest.json")
    content = bytearray(storage.read_bytes(uri))
    content[int(len(content) * position)] ^= 1
    storage.write_bytes(uri, bytes(content))
    with pytest.raises(CorruptArtifact, match=r"manifest\.json must be as it was published"):
        storage.read_manifest(final)
    assert not storage.is_intact(final)


@pytest.mark.parametrize("name", ["../../victim", "/etc/passwd", "a/../../b", "a//b", "./a"])
def test_a_manifest_that_lists_files_outside_its_folder_is_refused(tmp_path, name):
    folder = tmp_path / "things" / "v1"
    (tmp_path / "victim").write_text("mine")
    storage.write_manifest(str(folder), {"files": {name: {"size_bytes": 1, "sha256": "0" * 64}}})
    with pytest.raises(CorruptArtifact, match="files inside its folder"):
        storage.damaged_files(str(folder))


@pytest.mark.parametrize(
    "uri", ["s3:/bucket/store", "s3:", "s3://bu cket/x", "s3://bucket#x", "s3:///x", "https:/x"]
)
def test_a_malformed_s3_uri_is_refused(uri):
    with pytest.raises(InvalidSetting):
        storage.resolve(uri)


@pytest.mark.parametrize("position", [0.2, 0.5, 0.8])
def test_a_changed_byte_of_a_pointer_is_noticed(store, position):
    parent = storage.join(store, "things", "one")
    for version in ("v1", "v2"):
        publish(storage.join(parent, version), a=b"1")
        storage.point(parent, version, remember={"source": "somewhere", "rows": 123})
    uri = storage.join(parent, storage.POINTER)
    content = bytearray(storage.read_bytes(uri))
    content[int(len(content) * position)] ^= 1
    storage.write_bytes(uri, bytes(content))
    with pytest.raises(CorruptArtifact, match="must name the current version"):
        storage.current(parent)
