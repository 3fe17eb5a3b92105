"""What a request is told of its write when it is given up: what is said not to be written never is."""

import resource
import sqlite3
import subprocess
import sys
from dataclasses import replace

import anyio
import pytest

from dml.errors import WriteCommitted
from dml.retrieval.gallery import Gallery
from dml.serving.app.audit import AuditLog, read_audit
from dml.serving.app.problems import Refused
from dml.serving.app.settings import Limits, ServiceSettings
from dml.serving.app.writes import Audited, Done, WriteProgress, logged_write, refusal_of_timeout
from tests.serving.app.parts import NAME, ask, make_store

BASE = f"/v1/indexes/{NAME}"
NUM_WRITES = 40
"""More than there are threads that write."""


def vector_of(number):
    return [float(place == number % 16) for place in range(16)]


def enrolment(number):
    return {"identity": f"guest {number}", "vectors": [vector_of(number)]}


def test_writes_that_are_too_slow_say_whether_they_are_durable_and_can_be_repeated(tmp_path):
    store, *_ = make_store(tmp_path)
    gallery = Gallery.open(store, NAME)
    gallery.enrol("ann", vectors=[vector_of(0)])
    settings = ServiceSettings(
        store=store, threads=1, recall_share=0, limits=Limits(seconds=0.5), refresh_seconds=0.05
    )
    answers = {}

    async def asking(client):
        async def send(number):
            answers[number] = await client.post(f"{BASE}/enrol", json=enrolment(number))

        log = sqlite3.connect(next((tmp_path / "store" / "galleries" / NAME).glob("*.sqlite")))
        log.isolation_level = None
        log.execute("BEGIN IMMEDIATE")  # as a slow disk, or another process that writes
        async with anyio.create_task_group() as group:
            for number in range(NUM_WRITES):
                group.start_soon(send, number)
        log.execute("ROLLBACK")
        log.close()
        unknown = [number for number, answer in answers.items() if "null" in answer.text]
        with anyio.fail_after(10):
            while gallery.size.delta < 1 + len(unknown):
                gallery.refresh()
                await anyio.sleep(0.02)
        await anyio.sleep(0.3)  # for any that should not come
        gallery.refresh()
        size = gallery.size.delta
        repeated = [
            await client.post(f"{BASE}/enrol", json=enrolment(number)) for number in range(NUM_WRITES)
        ]
        gallery.refresh()
        return unknown, size, repeated

    unknown, size, repeated = ask(settings, asking)
    errors = {number: answer.json()["error"] for number, answer in answers.items()}
    assert {answer.status_code for answer in answers.values()} == {503}
    assert 0 < len(unknown) < NUM_WRITES
    for number, error in errors.items():
        expected = ("write_unknown", None) if number in unknown else ("timeout", False)
        assert (error["code"], error["write_committed"]) == expected
    assert "same ids" in errors[unknown[0]]["do"]
    assert size == 1 + len(unknown), "what was said not to be written was not"
    assert {answer.status_code for answer in repeated} == {200}
    assert gallery.size.delta == 1 + NUM_WRITES, "what was written twice is there once"
    gallery.close()


def test_a_search_that_is_too_slow_says_nothing_of_a_write():
    assert refusal_of_timeout(1.0, None).write_committed is None
    assert not refusal_of_timeout(1.0, None).is_write_unknown


@pytest.fixture
def audited():
    return Audited("k1", "127.0.0.1", "r1", "enrol", NAME, WriteProgress())


def test_a_write_that_is_done_is_said_to_be_durable(tmp_path, audited):
    with logged_write(AuditLog(tmp_path / "audit.jsonl"), audited) as done:
        done(Done(["a"], revision=1))
        refused = refusal_of_timeout(1.0, audited.progress)
    assert (refused.code, refused.write_committed) == ("write_committed", True)


@pytest.mark.parametrize(
    ("error", "committed"),
    [(Refused(422, "no", "No"), False), (WriteCommitted("It is durable.", 3), True), (RuntimeError(), None)],
    ids=["refused", "failed after the commit", "unknown"],
)
def test_what_becomes_of_a_write_that_fails_is_known_as_far_as_it_is(tmp_path, audited, error, committed):
    with pytest.raises(type(error)), logged_write(AuditLog(tmp_path / "audit.jsonl"), audited):
        raise error
    assert audited.progress.give_up() is committed


def test_a_write_that_was_given_up_before_it_began_does_not_begin(tmp_path, audited):
    assert audited.progress.give_up() is False
    with pytest.raises(Refused), logged_write(AuditLog(tmp_path / "audit.jsonl"), audited):
        pytest.fail("it began")


@pytest.fixture
def file_limit():
    """Sets how large files of this process may become, as a disk or quota does for all."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_what_could_not_be_logged_is_not_written(tmp_path, audited, file_limit):
    log = AuditLog(tmp_path / "audit.jsonl")
    file_limit(1 << 16)
    with pytest.raises(Refused) as refused, logged_write(log, audited):
        pytest.fail("it was written")
    assert (refused.value.status, refused.value.code, refused.value.write_committed) == (503, "audit", False)
    assert refused.value.got == "that cannot be written (File too large), and nothing was written"
    assert audited.progress.give_up() is False


def write(log, audited, *, then=lambda: None, ids="b", revision=2):
    """One that is durable before something else happens."""
    with logged_write(log, replace(audited, progress=WriteProgress())) as done:
        done(Done([ids], revision=revision))
        then()


def test_a_durable_write_that_cannot_be_logged_is_said_to_be_and_the_next_is_refused_before_it_is_done(
    tmp_path, audited, file_limit
):
    log = AuditLog(tmp_path / "audit.jsonl")
    write(log, audited, ids="a", revision=1)
    size = log.path.stat().st_size
    with pytest.raises(Refused) as refused:
        write(log, audited, then=lambda: file_limit(size + 9))
    said = refused.value
    assert (said.code, said.write_committed, said.retry_after) == ("audit", True, None)
    assert said.got == "that cannot be written (File too large), and what was written is durable"
    assert said.do == "Do not write it again, and tell the operator."
    with pytest.raises(Refused) as refused, logged_write(log, audited):
        pytest.fail("it was written")
    assert refused.value.write_committed is False
    file_limit(resource.RLIM_INFINITY)
    write(log, audited, ids="c", revision=3)
    lines = [(*each.ids, each.revision) for each in read_audit(log.path)]
    assert lines == [("a", 1), ("b", 2), ("c", 3)], "the line that was missing is written before the next"


@pytest.mark.parametrize(
    ("error", "committed"), [(Refused(422, "no", "No"), False), (RuntimeError(), None)], ids=["no", "unknown"]
)
def test_of_a_write_that_failed_and_cannot_be_logged_it_is_said_what_is_known(
    tmp_path, audited, file_limit, error, committed
):
    def fail():
        with logged_write(AuditLog(tmp_path / "audit.jsonl"), audited):
            file_limit(9)
            raise error

    with pytest.raises(Refused) as refused:
        fail()
    assert (refused.value.code, refused.value.write_committed) == ("audit", committed)
    assert refused.value.is_write_unknown is (committed is None)


_ON_A_SMALL_DISK = """
import sys
from pathlib import Path
from dml.serving.app.audit import AuditLog
from dml.serving.app.problems import Refused
from dml.serving.app.writes import Audited, Done, WriteProgress, logged_write

log = AuditLog(Path(sys.argv[1], "audit.jsonl"))

def write():
    with logged_write(log, Audited("k1", "127.0.0.1", "r1", "enrol", "shelves", WriteProgress())) as done:
        with open(Path(sys.argv[1], "gallery"), "ab", buffering=0) as file:
            try:
                while file.write(bytes(1 << 12)):  # a write that takes all that is left
                    pass
            except OSError:
                pass
        done(Done(["ann"], revision=1))

write()
print(len(log.path.read_text().splitlines()), "line")
try:
    write()
except Refused as refused:
    print(refused.code, refused.got)
"""


def test_a_write_that_fills_the_disk_is_logged_and_the_next_is_refused_before_it_is_done(tmp_path):
    mount = f"mount -t tmpfs -o size=4m tmpfs {tmp_path}"
    script = f"{mount} || exit 77; exec {sys.executable} -c '{_ON_A_SMALL_DISK}' {tmp_path}"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no disk can be mounted here: {done.stderr}")
    assert done.stdout.splitlines() == [
        "1 line",
        "audit that cannot be written (No space left on device), and nothing was written",
    ], done.stderr
