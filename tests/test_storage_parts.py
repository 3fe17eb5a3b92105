"""Parts of storage: the marker of a store, the cache, locks, links, and what damage looks like."""

import socket
import time
from pathlib import Path

import pyarrow as pa
import pytest

from dml import storage
from dml.errors import CorruptArtifact, InvalidSetting, MissingArtifact, StorageUnavailable


def test_a_folder_becomes_a_store_once_and_keeps_what_it_holds(tmp_path):
    (tmp_path / "own.txt").write_text("mine")
    for _ in range(2):
        storage.mark_store(str(tmp_path))
    storage.require_store(str(tmp_path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dml-store.json", "own.txt"]


def test_a_file_is_no_store(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match="A store must be a folder"):
        storage.mark_store(str(tmp_path / "file"))


def test_the_cache_is_where_the_environment_says_or_else_at_home(monkeypatch, tmp_path):
    monkeypatch.setenv("DML_CACHE", str(tmp_path / "own"))
    assert storage.cache_dir() == tmp_path / "own"
    monkeypatch.setenv("HOME", str(tmp_path))
    for unset in (lambda: monkeypatch.setenv("DML_CACHE", ""), lambda: monkeypatch.delenv("DML_CACHE")):
        unset()
        assert storage.cache_dir() == tmp_path / ".cache" / "dml"


def test_of_two_that_want_a_lock_one_has_it_and_the_other_gets_an_error(tmp_path):
    lock = tmp_path / "deeper" / "still" / ".x.lock"
    with storage.exclusive(lock) as first, storage.exclusive(lock, wait=False) as second:
        assert (first, second) == (True, False)
    with storage.exclusive(lock, wait=False) as again:
        assert again


def test_the_first_link_on_the_way_is_named(tmp_path):
    (tmp_path / "real" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    root = str(tmp_path)
    assert storage.link_above(f"{root}/real/below/file", root) is None
    assert storage.link_above(f"{root}/link/below/file", f"{root}/") == f"{root}/link"
    assert (storage.is_link(f"{root}/link"), storage.is_link(f"{root}/real")) == (True, False)


def test_a_link_is_removed_and_not_what_it_leads_to(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file").write_text("mine")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    storage.delete(str(tmp_path / "link"))
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "real" / "file").read_text() == "mine"


@pytest.mark.parametrize("holds", [True, False])
def test_only_an_empty_folder_goes_as_empty(tmp_path, holds):
    (tmp_path / "folder").mkdir()
    if holds:
        (tmp_path / "folder" / "file").touch()
    storage.delete_empty(str(tmp_path / "folder"))
    assert (tmp_path / "folder").exists() == holds


@pytest.mark.parametrize(
    ("raised", "seen"),
    [
        (FileNotFoundError(2, "gone"), MissingArtifact),
        (pa.ArrowInvalid("not Parquet\nsecond line"), CorruptArtifact),
        (OSError("could not verify page integrity"), CorruptArtifact),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), CorruptArtifact),
        (OSError(5, "disk"), OSError),
        (OSError("When reading: AWS Error NETWORK_CONNECTION"), StorageUnavailable),
        (pa.ArrowMemoryError("no memory"), pa.ArrowMemoryError),
        (ZeroDivisionError(), ZeroDivisionError),
    ],
    ids=lambda value: getattr(value, "__name__", str(value).splitlines()[0] if str(value) else "error"),
)
def test_what_arrow_cannot_decode_is_damage_and_what_the_disk_or_network_did_is_not(raised, seen):
    with pytest.raises(seen) as caught, storage.reading("/table", "Make it again."):
        raise raised
    assert type(caught.value) is seen
    if seen in (MissingArtifact, CorruptArtifact):
        assert "/table" in str(caught.value)
        assert str(caught.value).endswith("Make it again.")
        assert "second line" not in str(caught.value)


def test_a_local_file_is_listed_with_its_size_and_time_and_a_folder_with_none(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "file").write_bytes(b"12345")
    entries = {entry.path: entry for entry in storage.list_entries(str(tmp_path), recursive=True)}
    assert list(entries) == ["folder", "folder/file"]
    assert (entries["folder"].is_folder, entries["folder"].size_bytes) == (True, 0)
    assert (entries["folder/file"].is_folder, entries["folder/file"].size_bytes) == (False, 5)
    assert entries["folder/file"].name == "file"
    modified = entries["folder/file"].modified
    assert modified is not None
    assert modified.timestamp() == pytest.approx(Path(tmp_path / "folder" / "file").stat().st_mtime)


def test_uploads_left_open_are_listed_below_their_store_and_aborted_by_their_key(s3_store, tmp_path):
    import boto3

    bucket = s3_store.removeprefix("s3://").partition("/")[0]
    client = boto3.client("s3")
    for key in ("store/a", "store/a", "store/ab", "elsewhere/a"):
        client.create_multipart_upload(Bucket=bucket, Key=key)
    assert sorted(each.uri for each in storage.open_uploads(s3_store)) == [
        f"{s3_store}/a",
        f"{s3_store}/a",
        f"{s3_store}/ab",
    ]
    storage.abort_uploads(f"{s3_store}/a")
    assert [each.uri for each in storage.open_uploads(s3_store)] == [f"{s3_store}/ab"]
    assert storage.open_uploads(str(tmp_path)) == []


def test_an_s3_server_that_takes_requests_and_never_answers_is_given_up_in_time(s3_store, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        folder = storage.ObjectFolder(f"{s3_store}/log", answer_within_s=0.4)
        began = time.monotonic()
        with pytest.raises(OSError, match=r"no complete answer within 0.4 s"):
            folder.list_from()
        assert time.monotonic() - began < 60, "boto3 would wait for five minutes"
