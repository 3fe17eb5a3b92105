"""What a request is told of its write when it is given up: what is said not to be written never is."""

import sqlite3

import anyio
import pytest

from dml.errors import WriteCommitted
from dml.retrieval.gallery import Gallery
from dml.serving.app.audit import AuditLog
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


def test_on_a_full_disk_of_the_audit_log_nothing_is_written_that_could_not_be_logged(tmp_path, audited):
    log = AuditLog(tmp_path / "audit.jsonl", room_bytes=1 << 62)
    with pytest.raises(Refused, match="audit log") as refused, logged_write(log, audited):
        pytest.fail("it was written")
    assert (refused.value.status, refused.value.got) == (
        503,
        "that cannot be written: No space left on device",
    )
    assert refused.value.write_committed is None
    assert audited.progress.give_up() is False
