"""An artefact appears whole or not at all, on a local disk and on S3."""

import datetime
import os
import signal
import subprocess
import sys
import time

import pytest

from dml import storage
from dml.errors import CorruptArtifact, InvalidSetting, MissingArtifact


@pytest.fixture(params=["local", "s3"])
def store(request, tmp_path):
    return str(tmp_path / "store") if request.param == "local" else request.getfixturevalue("s3_store")


def publish(final, **files):
    staged = storage.staging(final)
    for name, content in files.items():
        storage.write_bytes(storage.join(staged, name), content)
    storage.publish(staged, final, {"kind": "test"})


def test_an_artefact_is_not_there_until_it_is_published_whole(store):
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
    with pytest.raises(CorruptArtifact, match="Delete the folder"):
        storage.verify(final)


def test_bytes_come_back_as_they_were_whatever_the_name(store):
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


def test_what_is_not_there_is_missing(store):
    with pytest.raises(MissingArtifact):
        storage.read_bytes(storage.join(store, "nothing"))
    with pytest.raises(MissingArtifact, match="never finished"):
        storage.read_manifest(storage.join(store, "nothing"))
    assert storage.list_names(storage.join(store, "nothing")) == []
    storage.delete(storage.join(store, "nothing"))
    with pytest.raises(InvalidSetting, match="s3://"):
        storage.resolve("ftp://somewhere/store")


def test_only_staging_folders_that_nobody_writes_to_are_abandoned(tmp_path):
    parent = str(tmp_path / "one")
    old, new = (storage.staging(storage.join(parent, "v")) for _ in range(2))
    publish(storage.join(parent, "v1"), a=b"1")
    for folder in (old, new):
        storage.write_bytes(storage.join(folder, "a"), b"1")
    two_days_ago = time.time() - datetime.timedelta(days=2).total_seconds()
    for path in (old, storage.join(old, "a"), new):
        os.utime(path, (two_days_ago, two_days_ago))
    storage.delete_abandoned(parent, older_than_s=24 * 3600)
    assert not storage.exists(old)
    assert storage.exists(new)
    assert storage.is_complete(storage.join(parent, "v1"))


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
