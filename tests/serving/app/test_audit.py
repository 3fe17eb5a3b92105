"""The audit log is appended to, and shows what was taken out of it."""

import errno
import multiprocessing
import os
import resource
from pathlib import Path

import pytest

from dml.errors import CorruptArtifact, InvalidSetting
from dml.serving.app.audit import AuditLog, read_audit
from dml.serving.app.keys import make_key, read_keys, revoke_key


def append(path, number):
    return AuditLog(path).append(
        who="k1 page",
        address="127.0.0.1",
        request_id=str(number),
        action="enrol",
        gallery="shelves",
        identity="ann",
        ids=[f"ann/{number}"],
        revision=number,
        outcome="done",
    )


def append_some(path, first):
    for number in range(first, first + 20):
        append(path, number)


def test_what_was_appended_is_read_back_in_order(tmp_path):
    path = tmp_path / "audit.jsonl"
    written = [append(path, number) for number in range(3)]
    assert list(read_audit(path)) == written
    assert path.stat().st_mode & 0o777 == 0o600


def test_processes_append_to_one_chain(tmp_path):
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=append_some, args=(path, first)) for first in (0, 100, 200)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(list(read_audit(path))) == 60


@pytest.mark.parametrize(
    "damage", [lambda lines: lines[:1] + lines[2:], lambda lines: [lines[1], *lines[1:]]]
)
def test_a_line_that_was_taken_out_or_changed_shows(tmp_path, damage):
    path = tmp_path / "audit.jsonl"
    for number in range(3):
        append(path, number)
    path.write_bytes(b"".join(damage(path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(CorruptArtifact, match=r"line [12] was changed"):
        list(read_audit(path))


def test_a_line_that_a_lost_power_cut_short_is_passed_over(tmp_path):
    path = tmp_path / "audit.jsonl"
    append(path, 0)
    with path.open("ab") as file:
        file.write(b'{"when": "2026-')
    append(path, 1)
    assert [entry.request_id for entry in read_audit(path)] == ["0", "1"]


def test_a_line_for_which_the_disk_has_no_room_leaves_nothing_behind(tmp_path):
    path = tmp_path / "audit.jsonl"
    append(path, 0)
    before = path.read_bytes()
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply(append_with_room, (path, len(before) + 20)) == errno.EFBIG
    assert path.read_bytes() == before


def append_with_room(path, most_bytes):
    """The error of appending to a file that can have no more bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (most_bytes, most_bytes))
    try:
        append(path, 1)
    except OSError as error:
        return error.errno


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_where_this_user_may_write_the_log_alone_it_is_written_without_space_set_aside(tmp_path):
    (tmp_path / "audit.jsonl").touch()
    (tmp_path / "audit.jsonl").chmod(0o666)
    tmp_path.chmod(0o755)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pool.apply(append_as_nobody, (tmp_path,))
    assert len(list(read_audit(tmp_path / "audit.jsonl"))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["audit.jsonl"]


def append_as_nobody(folder):
    os.chdir(folder)
    os.setuid(65534)
    AuditLog(Path("audit.jsonl")).require_writable()
    append(Path("audit.jsonl"), 1)


def test_who_made_and_revoked_a_key_is_in_the_log_beside_the_keys(tmp_path):
    path = tmp_path / "keys.json"
    made, secret = make_key(path, "ward 3", ["read"], who="ann")
    revoke_key(path, made.id, who="bob")
    entries = list(read_audit(tmp_path / "audit.jsonl"))
    assert [(each.who, each.action, each.identity, each.ids) for each in entries] == [
        ("ann", "make_key", "ward 3", [made.id]),
        ("bob", "revoke_key", "ward 3", [made.id]),
    ]
    assert secret not in (tmp_path / "audit.jsonl").read_text()


def test_without_a_log_no_key_is_made_and_one_is_revoked_all_the_same(tmp_path):
    path = tmp_path / "keys.json"
    made, _ = make_key(path, "ward 3", ["read"], who="ann")
    (tmp_path / "audit.jsonl").unlink()
    (tmp_path / "audit.jsonl").mkdir()
    with pytest.raises(InvalidSetting, match="no key was made"):
        make_key(path, "page", ["read"], who="ann")
    assert [key.id for key in read_keys(path)] == [made.id]
    with pytest.raises(InvalidSetting, match="is revoked"):
        revoke_key(path, made.id, who="ann")
    assert read_keys(path) == []
