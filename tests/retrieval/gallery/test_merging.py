"""Merged segments: whoever writes, reads, forgets or is killed meanwhile, nothing is lost, twice or back."""

import time
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml import storage
from dml.errors import CorruptArtifact
from dml.retrieval.gallery.log import Entry, erased_id
from dml.retrieval.gallery.merging import merge_segments
from dml.retrieval.gallery.segment import Logged, Segment, merged
from dml.retrieval.gallery.segment_erasure import erase_items
from dml.retrieval.gallery.segments import Segments, cover, name_of
from dml.retrieval.gallery.shipped import ShippedLog
from tests.retrieval.gallery.objects import At, Killed, MemoryBucket, Paused, SteppedFolder, kill
from tests.retrieval.gallery.people import vectors_of

FOLDER = "s3://bucket/store/galleries/people"
LOG = "0" * 32


def enrolled(id_, number):
    (vector,) = vectors_of(1, number)
    return Logged("entry", Entry("enrol", id_, "crowd", vector=vector, revision=number), "given")


def forgotten(id_, number):
    return Logged("entry", Entry("forget", id_, revision=number))


TRANSACTIONS = [
    enrolled("alice", 1),
    enrolled("bob", 2),
    enrolled("carol", 3),
    enrolled("dora", 4),
    forgotten("bob", 5),
]
EXPECTED = {"alice": "enrol", "bob": "forget", "carol": "enrol", "dora": "enrol"}


def written(bucket, transactions=TRANSACTIONS):
    segments = Segments(FOLDER, open_folder=bucket.open_folder)
    for number, change in enumerate(transactions, 1):
        segments.write_new(Segment(LOG, number, number, number, (f"writer {number}",), "", (change,)))
    return segments


@pytest.fixture
def bucket():
    return MemoryBucket()


def opened(bucket, step=lambda: None):
    return Segments(FOLDER, open_folder=lambda uri: SteppedFolder(bucket.open_folder(uri), step))


def merge(bucket, step=lambda: None, transactions=2):
    """Merge, and later empty what was merged."""
    segments = opened(bucket, step)
    names = merge_segments(segments, transactions=transactions, older_than_s=0)
    merge_segments(segments, transactions=transactions, older_than_s=0)
    return names


def forget_bob(bucket, step=lambda: None):
    return erase_items(opened(bucket, step), {name_of(2, 2): {"bob": 5}})


def read_whole(segments):
    while True:
        read = segments.read_all(cover(segments.list_after(0), 0, segments.uri))
        if read is not None:
            return merged(read)


def held(bucket):
    """What a new machine reads: the last change of each item."""
    return {change.entry.id: change.entry.op for change in read_whole(opened(bucket)).changes}


def files_with(bucket, id_):
    """The objects that hold an item, and not only its forgetting."""
    segments = opened(bucket)
    listed = [each for each in [*segments.list_from(0), *segments.list_merged(0)] if not each.is_empty]
    read = [(each.name, segments.read(each)[0].changes) for each in listed]
    return [
        name for name, changes in read if any(c.entry.id == id_ and c.entry.op == "enrol" for c in changes)
    ]


def requests_of(action, bucket):
    step = At(0)
    action(bucket, step)
    return step.count


def test_merged_segments_have_what_the_transactions_had_and_these_are_emptied(bucket):
    written(bucket)
    assert merge(bucket) == [name_of(1, 2), name_of(3, 4)]
    segments = opened(bucket)
    assert [each.size_bytes for each in segments.list_from(1)][:4] == [32] * 4
    assert [(each.first, each.last) for each in cover(segments.list_after(0), 0, "")] == [
        (1, 2),
        (3, 4),
        (5, 5),
    ]
    assert held(bucket) == EXPECTED
    assert merge(bucket) == []


def test_the_segments_of_transactions_are_emptied_a_while_after_they_were_merged(bucket):
    segments = written(bucket)
    uris = list(bucket.objects)
    for uri in uris:
        bucket.objects[uri] = bucket.objects[uri][0], time.time() - 5000
    assert len(merge_segments(segments, transactions=2)) == 2
    assert merge_segments(segments, transactions=2) == []
    assert not any(each.is_empty for each in segments.list_from(1)), (
        "who copies files finds them or the merged one"
    )
    for each in segments.list_merged(0):
        bucket.objects[segments.uri_of(each.name)] = (
            segments.read_object(each.name).content,
            time.time() - 5000,
        )
    merge_segments(segments, transactions=2)
    assert [each.is_empty for each in segments.list_from(1)] == [True] * 4 + [False]


def test_what_is_young_large_or_last_is_not_merged(bucket):
    segments = written(bucket)
    assert merge_segments(segments, transactions=2, older_than_s=60) == []
    assert merge_segments(segments, transactions=2, older_than_s=0, most_bytes=100) == []
    assert merge_segments(segments, transactions=5, older_than_s=0) == []
    assert held(bucket) == EXPECTED


def test_a_missing_segment_is_named_and_nothing_is_merged_over_it(bucket):
    segments = written(bucket)
    del bucket.objects[segments.uri_of(name_of(2, 2))]
    with pytest.raises(CorruptArtifact, match="1 are missing from number 1 on"):
        merge(bucket)
    assert segments.list_merged(0, unwritten=True) == []


def test_transactions_that_could_not_be_merged_are_merged_the_next_time(bucket):
    segments = written(bucket)
    second = segments.uri_of(name_of(2, 2))
    content = bucket.objects[second]
    bucket.objects[second] = b"?" * 32, 0.0  # damaged such that it seems to be merged
    assert merge(bucket) == [name_of(3, 4)]
    bucket.objects[second] = content
    assert merge(bucket) == [name_of(1, 2)]
    assert held(bucket) == EXPECTED


WRITTEN = MemoryBucket()
written(WRITTEN)


def copied(bucket):
    other = MemoryBucket()
    other.objects = dict(bucket.objects)
    return other


def moments(first, second):
    """Each pair of a request of one action and a request of another."""
    numbers = [requests_of(action, copied(WRITTEN)) for action in (first, second)]
    return [(i, j) for i in range(1, numbers[0] + 1) for j in range(1, numbers[1] + 1)]


@pytest.mark.parametrize(
    ("first", "second"),
    [(merge, forget_bob), (forget_bob, merge), (merge, merge), (forget_bob, forget_bob)],
    ids=lambda action: action.__name__,
)
def test_of_two_that_interrupt_each_other_at_any_request_nothing_forgotten_is_left(first, second):
    every = moments(first, second)
    for moment, stop in every if len(every) < 100 else every[::4]:
        bucket = copied(WRITTEN)
        other = Paused(stop, lambda step, bucket=bucket: second(bucket, step))
        first(bucket, At(moment, other.start))
        other.finish()
        if forget_bob in (first, second):
            assert files_with(bucket, "bob") == [], (moment, stop)
        assert held(bucket) == EXPECTED, (moment, stop)
        merge(bucket)
        forget_bob(bucket)
        assert files_with(bucket, "bob") == [], (moment, stop)
        assert held(bucket) == EXPECTED, (moment, stop)
        assert [each.is_empty for each in opened(bucket).list_from(1)] == [True] * 4 + [False]
        assert len(opened(bucket).list_merged(0)) == 2


def test_a_merge_killed_at_any_request_loses_nothing_and_the_next_one_finishes_it():
    for moment in count(1):
        bucket = copied(WRITTEN)
        try:
            merge(bucket, At(moment, kill))
        except Killed:
            pass
        else:
            break
        assert held(bucket) == EXPECTED
        forget_bob(bucket)
        assert files_with(bucket, "bob") == [], moment
        assert held(bucket) == EXPECTED
        merge(bucket)
        assert files_with(bucket, "bob") == []
        assert held(bucket) == EXPECTED
        assert [each.is_empty for each in opened(bucket).list_from(1)] == [True] * 4 + [False]
    assert moment > 10, "each request was one to be killed at"


def test_a_merged_segment_that_was_lost_is_named_and_keeps_no_other_from_its_turn(caplog):
    bucket = copied(WRITTEN)
    merge(bucket)
    lost, _ = (uri for uri in bucket.objects if "/merged/" in uri)
    content = bucket.objects.pop(lost)
    assert merge(bucket) == []
    assert f"{lost} is missing" in caplog.text
    assert lost not in bucket.objects
    bucket.objects[lost] = content
    assert held(bucket) == EXPECTED


def test_a_forgetting_killed_at_any_request_beside_a_merge_is_finished_by_the_next_one():
    for moment, at in moments(merge, forget_bob):
        bucket = copied(WRITTEN)

        def forget_and_die(bucket=bucket, at=at):
            with pytest.raises(Killed):
                forget_bob(bucket, At(at, kill))

        merge(bucket, At(moment, forget_and_die))
        assert held(bucket) == EXPECTED, (moment, at)
        forget_bob(bucket)
        assert files_with(bucket, "bob") == [], (moment, at)
        assert held(bucket) == EXPECTED, (moment, at)


def test_who_reads_at_any_request_of_a_merge_reads_everything():
    for moment in range(1, 20):
        bucket = copied(WRITTEN)
        seen = []
        merge(bucket, At(moment, lambda bucket=bucket, seen=seen: seen.append(held(bucket))))
        assert seen in ([EXPECTED], []), moment
    for moment in range(1, 8):
        bucket = copied(WRITTEN)
        read = read_whole(opened(bucket, At(moment, lambda bucket=bucket: merge(bucket))))
        assert {change.entry.id: change.entry.op for change in read.changes} == EXPECTED


def test_the_number_of_a_merged_transaction_is_refused_to_a_writer_that_stalled_for_ever(bucket):
    segments = written(bucket)
    merge(bucket)
    stalled = Segment(LOG, 3, 3, 3, ("stalled",), "", (enrolled("eve", 3),))
    with pytest.raises(storage.WriteConflict):
        segments.write_new(stalled)
    assert held(bucket) == EXPECTED


def test_a_write_whose_answer_was_lost_is_known_for_its_own_after_it_was_merged(bucket):
    segments = written(bucket)
    mine = Segment(LOG, 3, 3, 3, ("writer 3",), "", (TRANSACTIONS[2],))
    merge(bucket)
    forget_bob(bucket)
    assert segments.write_new(mine) == segments.list_from(3, most=1)[0].etag


def enrol(log, id_, number):
    def write():
        revision = log.revision + 1
        log.write(revision, Entry("enrol", id_, vector=vectors_of(1, number)[0]), embedder="given")
        log.set_revision(revision)
        return revision

    return log.transact(write)


class Stalled:
    """A machine that writes; at its nth request another one writes four times, and merges."""

    def __init__(self, bucket, folder, moment):
        self._bucket, self._moment, self.step = bucket, moment, At(0)
        machines = [
            (folder / "stalled", opened(bucket, lambda: self.step())),
            (folder / "other", opened(bucket)),
        ]
        self.log, self.other = (
            ShippedLog(path / "people" / "log.sqlite", segments, busy_timeout_s=10)
            for path, segments in machines
        )

    def write(self, id_):
        self.step = At(self._moment, self._overtake)
        revision = enrol(self.log, id_, 9)
        self.log.close()
        self.other.close()
        return revision

    def _overtake(self):
        assert [enrol(self.other, f"other {number}", number) for number in range(4)] == [2, 3, 4, 5]
        merge(self._bucket)


def test_a_writer_that_stalls_at_any_request_while_others_write_and_merge_writes_once_and_loses_nothing(
    tmp_path,
):
    for moment in count(1):
        bucket = MemoryBucket()
        machine = Stalled(bucket, tmp_path / f"{moment}", moment)
        enrol(machine.other, "first", 0)
        revision = machine.write("mine")
        if machine.step.count < moment:
            break
        assert revision in (2, 6), "all of the others' before it, or none"
        others = {f"other {number}": "enrol" for number in range(4)}
        assert held(bucket) == {"first": "enrol", "mine": "enrol", **others}
    assert moment > 2, "a write lists and writes"


def test_what_was_enrolled_again_before_a_merge_is_not_taken_for_what_was_forgotten(bucket):
    again = [
        enrolled("alice", 1),
        enrolled("bob", 2),
        forgotten("bob", 3),
        enrolled("bob", 4),
        enrolled("eve", 5),
    ]
    segments = written(bucket, again)
    merge(bucket, transactions=4)
    erase_items(segments, {name_of(2, 2): {"bob": 3}})
    assert held(bucket) == {"alice": "enrol", "bob": "enrol", "eve": "enrol"}
    erase_items(segments, {name_of(1, 4): {"bob": 6}})
    assert held(bucket) == {"alice": "enrol", "eve": "enrol"}


def test_a_copy_that_has_some_of_a_merged_segment_takes_no_forgetting_for_an_earlier_one(bucket, tmp_path):
    segments = opened(bucket)
    log = ShippedLog(tmp_path / "people" / "log.sqlite", segments, busy_timeout_s=10)

    def change(action):
        def act():
            action(log.revision + 1)
            log.set_revision(log.revision + 1)

        log.transact(act)

    def forget():
        change(lambda revision: log.write(revision, Entry("forget", "bob"), embedder=""))

    enrol(log, "bob", 1)
    enrol(log, "carol", 2)
    enrol(log, "dora", 3)
    forget()
    change(lambda revision: log.rename_forgotten("bob", erased_id("bob")))
    enrol(log, "bob", 6)
    forget()
    behind = ShippedLog(tmp_path / "behind" / "people" / "log.sqlite", segments, busy_timeout_s=10)
    enrol(log, "eve", 8)
    enrol(log, "fay", 9)
    merge(bucket, transactions=4)
    behind.follow()
    behind.truncate()
    assert behind.forgotten() == log.forgotten() == [erased_id("bob"), "bob"], "versions may hold the second"
    assert held(bucket)["bob"] == "forget"
    behind.close()
    log.close()


def test_what_a_killed_forgetting_left_in_segments_that_were_merged_goes_by_a_machine_without_a_copy(
    bucket, tmp_path
):
    erased = Logged("erased", Entry("forget", erased_id("carol"), revision=5))
    changes = [
        *(enrolled("bob", 1), forgotten("bob", 2), enrolled("alice", 3)),
        *(enrolled("carol", 4), forgotten("carol", 5), erased, enrolled("dora", 7)),
    ]
    segments = written(bucket, changes)
    merge_segments(segments, transactions=6, older_than_s=0)
    assert files_with(bucket, "bob") == [name_of(1, 1)]
    log = ShippedLog(tmp_path / "people" / "log.sqlite", segments, busy_timeout_s=10)
    log.truncate()
    log.close()
    assert files_with(bucket, "bob") == files_with(bucket, "carol") == []
    ops = {"alice": "enrol", "bob": "forget", erased_id("carol"): "forget", "dora": "enrol"}
    assert held(bucket) == ops


def test_what_one_transaction_forgets_and_enrols_again_stays(bucket):
    again = [enrolled("bob", 1), enrolled("bob", 2), enrolled("eve", 3)]  # the second one forgot him, too
    segments = written(bucket, again)
    merge(bucket)
    erase_items(segments, {name_of(1, 1): {"bob": 2}})
    assert held(bucket) == {"bob": "enrol", "eve": "enrol"}


def test_of_one_who_was_erased_the_merged_segment_has_a_digest(bucket):
    erased = Logged("erased", Entry("forget", erased_id("bob"), revision=3))
    written(
        bucket, [enrolled("alice", 1), enrolled("bob", 2), forgotten("bob", 3), erased, enrolled("eve", 4)]
    )
    merge(bucket, transactions=4)
    assert held(bucket) == {"alice": "enrol", erased_id("bob"): "forget", "eve": "enrol"}


def test_a_gallery_is_opened_by_requests_for_its_merged_segments_and_the_last_ones(bucket):
    written(bucket, [enrolled(f"item {number}", number) for number in range(1, 58)])
    merge(bucket, transactions=8)
    step = At(0)
    assert len(read_whole(opened(bucket, step)).changes) == 57
    assert step.count == 2 + 7 + 1, "two lists, seven merged segments, one that is not merged"


changes = st.lists(
    st.tuples(st.sampled_from(["enrol", "update", "vector", "forget", "erase"]), st.integers(0, 2)),
    min_size=9,
    max_size=14,
)


def follow(log, op, id_, number):
    """A transaction of an item, if it is possible; else another item's update."""
    entry = log.entry(id_)
    is_live = entry is not None and entry.op == "enrol"
    vector = vectors_of(1, number)[0]

    def act():
        revision = log.revision + 1
        if op == "enrol" and not is_live:
            log.write(
                revision, Entry("enrol", id_, f"label {number}", vector=vector), embedder="given", image=b"?"
            )
        elif op == "update" and is_live:
            log.write(revision, Entry("enrol", id_, f"label {number}"), embedder="given")
        elif op == "vector" and is_live:
            log.write_vector(id_, "other", vector)
        elif op == "forget" and is_live:
            log.write(revision, Entry("forget", id_), embedder="")
        elif op == "erase" and entry is not None and entry.op == "forget":
            log.rename_forgotten(id_, erased_id(id_))
        else:
            log.write(revision, Entry("update", "another", f"label {number}"), embedder="given")
        log.set_revision(revision)

    log.transact(act)


def content(log):
    """What a log has of each item, with the vectors of both embedders and the image."""
    of = [log.entries_after(0, embedder) for embedder in ("given", "other")]
    return {
        entry.id: (
            entry.op,
            entry.label,
            entry.revision,
            [None if each.vector is None else each.vector.tobytes() for each in (entry, other)],
            log.image(entry.id),
        )
        for entry, other in zip(*of, strict=True)
    }


@pytest.mark.slow
@settings(max_examples=25, deadline=None)
@given(changes=changes, copied=st.integers(1, 8), truncated=st.integers(1, 8))
def test_copies_of_merged_segments_have_what_copies_of_the_transactions_have(changes, copied, truncated):
    bucket = MemoryBucket()
    with TemporaryDirectory() as folder:
        logs = []

        def machine(name):
            segments = opened(bucket)
            logs.append(ShippedLog(Path(folder, name, "people", "log.sqlite"), segments, busy_timeout_s=10))
            return logs[-1]

        writer = machine("writer")
        for number, (op, item) in enumerate(changes, 1):
            follow(writer, op, f"item {item}", number)
            if number == copied:
                behind = machine("behind")
            if number == truncated:
                writer.truncate()
        expected = content(writer)
        assert content(machine("before")) == expected
        merge(bucket, transactions=4)
        behind.follow()
        assert content(behind) == content(machine("new")) == expected
        for log in logs:
            log.truncate()
        assert content(machine("last")) == expected
        for log in logs:
            log.close()
