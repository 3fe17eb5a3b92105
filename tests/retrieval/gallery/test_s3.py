"""A gallery on S3: durable there, found by other machines; a copy that is lost is made again."""

import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from itertools import count
from pathlib import Path

import boto3
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from pyarrow import parquet

from dml import storage
from dml.errors import CorruptArtifact, GalleryBusy, GalleryUnavailable, IncompatibleArtifact
from dml.integrity import check_store
from dml.retrieval.gallery import (
    Gallery,
    collect_changes,
    forget_items,
    forget_logged,
    mark_erased,
    rollback_index,
)
from dml.retrieval.gallery.fold import folder_of, log_path, open_log, opened_log
from dml.retrieval.gallery.log import Entry, erased_id
from dml.retrieval.gallery.merging import merge_segments
from dml.retrieval.gallery.segment import Logged, Segment
from dml.retrieval.gallery.segment_erasure import erase_items
from dml.retrieval.gallery.segments import Segments, name_of
from dml.retrieval.index import find_index
from flows.forget import forget_enrolled_flow
from flows.verify import repaired
from tests.retrieval.gallery.objects import At, SteppedFolder
from tests.retrieval.gallery.people import ROWS, items_of, publish, upload, vectors_of
from tests.retrieval.gallery.test_fold import enrolled_and_forgotten, fold, same
from tests.retrieval.gallery.test_gallery import ids
from tests.retrieval.gallery.test_live import Plain, changes, follow

SEEN_WITHIN_S = 1.0
NOW = -2.0  # the server's clock has whole seconds


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A store on this disk with an index of people."""
    folder = tmp_path_factory.mktemp("published")
    publish(str(folder / "store"), folder, "people", items_of(ROWS), vectors_of(ROWS, 1))
    return folder / "store"


@pytest.fixture
def people(s3_store, published):
    """A copy of it on S3."""
    upload(published, s3_store)
    return s3_store


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """Makes what follows happen on another machine: with a cache of its own."""

    def switch(name):
        monkeypatch.setenv("DML_CACHE", str(tmp_path / f"cache of {name}"))

    return switch


def segments_of(store, name="people"):
    folder = storage.join(folder_of(store, name), "segments")
    return [storage.join(folder, entry.name) for entry in storage.list_entries(folder)]


def merge(segments):
    """Merge each two transactions, and later empty their segments."""
    names = merge_segments(segments, transactions=2, older_than_s=NOW)
    merge_segments(segments, transactions=2, older_than_s=NOW)
    return names


def enrolled(gallery, number, name=None):
    """An enrolment of one vector under an id of its own."""
    return gallery.enrol("crowd", vectors=vectors_of(1, number), ids=[name or f"one {number}"])


def test_what_one_machine_enrols_changes_and_forgets_another_sees_within_a_second(people, machine):
    machine("a")
    gallery = Gallery.open(people, "people")
    machine("b")
    other = Gallery.open(people, "people", readonly=True)
    (vector,) = vectors_of(1, 5000)
    done = gallery.enrol("alice", vectors=vector[None], attributes={"floor": 3}, who="me")
    assert done.revision == gallery.revision == 1
    assert ids(gallery, vector, 1) == done.ids
    time.sleep(SEEN_WITHIN_S)
    assert ids(other, vector, 1) == done.ids
    assert other.item(done.ids[0]).who == "me"
    gallery.update(done.ids[0], attributes={"floor": 4})
    time.sleep(SEEN_WITHIN_S)
    assert other.item(done.ids[0]).attributes == {"floor": 4, "region": None, "seen": None}
    gallery.forget(done.ids)
    time.sleep(SEEN_WITHIN_S)
    assert done.ids[0] not in ids(other, vector, ROWS + 9)
    assert len(segments_of(people)) == 3


@pytest.mark.slow
def test_writers_of_two_machines_at_once_lose_nothing_and_write_nothing_twice(people, machine):
    galleries = []
    for name in "abc":
        machine(name)
        galleries.append(Gallery.open(people, "people", busy_timeout_s=60))
    done: list[int] = []

    def write(number):
        done.extend(enrolled(galleries[number], 10 * number + each).revision for each in range(5))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(1, 16)), "each write has a revision of its own"
    for gallery in galleries:
        gallery.refresh()
        present = sorted(id_ for id_ in gallery.live.items["id"].to_pylist() if id_.startswith("one "))
        assert present == sorted(f"one {10 * number + each}" for number in range(3) for each in range(5))


def test_many_enrolments_at_once_share_segments(people):
    gallery = Gallery.open(people, "people")
    threads = [threading.Thread(target=enrolled, args=(gallery, number)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gallery.size.delta == 12
    assert len(segments_of(people)) == gallery.revision < 12


@pytest.mark.slow
@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(before=changes, after=changes)
def test_a_copy_that_was_lost_and_that_of_a_new_machine_have_what_plain_items_have(
    people, machine, before, after
):
    storage.delete(folder_of(people, "people"))
    machine("a")
    gallery, plain = Gallery.open(people, "people"), Plain()
    for change in before:
        follow(gallery, plain, change)
    shutil.rmtree(os.environ["DML_CACHE"])  # while it is open
    for change in after:
        follow(gallery, plain, change)
    same(gallery.live, plain)
    machine("new")
    shutil.rmtree(os.environ["DML_CACHE"], ignore_errors=True)
    opened = Gallery.open(people, "people", readonly=True)
    same(opened.live, plain)
    opened.close()
    gallery.close()


def test_a_damaged_copy_is_made_again(people):
    gallery = Gallery.open(people, "people")
    done = enrolled(gallery, 1)
    gallery.close()
    log_path(people, "people").write_bytes(b"no database" * 1000)
    opened = Gallery.open(people, "people")
    assert opened.revision == done.revision
    assert enrolled(opened, 2).revision == 2


@pytest.mark.slow
def test_a_build_takes_what_any_machine_enrolled_and_a_rollback_goes_on_with_it(people, machine):
    machine("a")
    gallery, plain = Gallery.open(people, "people"), Plain()
    enrolled_and_forgotten(gallery, plain)
    machine("b")
    first = find_index(people, "people")
    built = fold(people, first)
    assert (built.covers_revision, built.rows) == (12, len(plain.items))
    enrolled_and_forgotten(gallery, plain)
    gallery.refresh()
    assert gallery.ref.version == built.version
    same(gallery.live, plain)
    rollback_index(people, "people")
    gallery.refresh()
    assert gallery.ref.version == first.version
    same(gallery.live, plain)


def traces_in(store, *traces):
    """The objects of a store's bucket, and the files of this test's machines, that hold one of them."""
    bucket = store.split("/")[2]
    objects = boto3.resource("s3").Bucket(bucket).objects.all()
    return [each.key for each in objects for trace in traces if trace in each.get()["Body"].read()]


@pytest.mark.slow
def test_of_one_who_is_forgotten_no_object_of_the_store_and_no_copy_holds_anything(people, machine, tmp_path):
    machine("b")
    other = Gallery.open(people, "people", readonly=True)
    machine("a")
    gallery = Gallery.open(people, "people")
    # Stored uncompressed where they are found: a vector without a pattern, and names.
    vector = np.random.default_rng(0).normal(size=(1, 8)).astype(np.float32)
    vector /= np.linalg.norm(vector)
    gallery.enrol("Rumpelstiltskin", vectors=vector, ids=["gold from straw"], who="miller")
    enrolled(gallery, 2)
    gallery.update("gold from straw", label="Rumpelstiltskin too")
    fold(people, gallery.ref)
    time.sleep(SEEN_WITHIN_S)
    assert other.item("gold from straw").label == "Rumpelstiltskin too"
    traces = (b"Rumpelstiltskin", b"gold from straw", vector.tobytes())
    assert traces_in(people, *traces)
    gallery.close()
    held = segments_of(people)
    report = forget_enrolled_flow.fn("people", ["gold from straw"], None, True, people)
    assert report.still_held_by == []
    assert [line.name for line in report.receipt if line.place == "segment"] == [held[0], held[2]]
    assert traces_in(people, *traces) == []
    time.sleep(SEEN_WITHIN_S)
    assert "gold from straw" not in other.live.items["id"].to_pylist()
    assert "one 2" in other.live.items["id"].to_pylist()
    copies = [path for path in tmp_path.rglob("galleries/**/*") if path.is_file()]
    held = [path for path in copies if not path.name.endswith("-shm")]
    assert not [path for path in held for trace in traces if trace in path.read_bytes()]
    machine("new")
    assert Gallery.open(people, "people").live.num_rows == ROWS + 1


def test_one_who_is_forgotten_leaves_a_merged_segment_which_the_receipt_names(people, machine):
    machine("a")
    gallery = Gallery.open(people, "people")
    enrolled(gallery, 1, "gold from straw")
    for number in range(2, 6):
        enrolled(gallery, number)
    names = merge(Segments(folder_of(people, "people")))
    merged = [f"{folder_of(people, 'people')}/merged/{name}" for name in names]
    machine("b")
    forgotten = forget_items(people, "people", ["gold from straw"])
    assert forgotten.segments == merged[:1]
    assert traces_in(people, b"gold from straw") == [segments_of(people)[-1].split("/", 3)[3]], "by its id"
    enrolled(gallery, 6)
    gallery.forget("one 4")
    machine("new")
    opened = Gallery.open(people, "people").live.items["id"].to_pylist()
    assert opened[ROWS:] == ["one 2", "one 3", "one 5", "one 6"]
    assert not traces_in(people, b"one 4")[1:], "by its id"


@pytest.mark.slow
def test_what_is_forgotten_at_any_request_of_a_merge_is_in_no_object_of_the_bucket(people):
    def segments_of_number(number, step=lambda: None):
        def open_folder(uri):
            return SteppedFolder(storage.ObjectFolder(uri), step)

        return Segments(storage.join(people, f"galleries/of-{number}"), open_folder=open_folder)

    for moment in count(1):
        segments = segments_of_number(moment)
        for number, id_ in enumerate(["alice", "gold from straw", "carol"], 1):
            entry = Entry("enrol", id_, vector=vectors_of(1, number)[0], revision=number)
            change = Logged("entry", entry, "given")
            segments.write_new(Segment("0" * 32, number, number, number, (id_[:3],), "", (change,)))

        def forget(segments=segments):
            erase_items(segments, {name_of(2, 2): {"gold from straw": 4}})

        step = At(moment, forget)
        merge(segments_of_number(moment, step))
        if step.count < moment:
            break
        assert traces_in(people, b"gold from straw") == [], moment
        assert [each.is_empty for each in segments.list_from(1)] == [True, True, False]
        storage.delete(storage.join(people, f"galleries/of-{moment}"))
    assert moment > 7, "each request was one to be interrupted at"


def test_what_is_enrolled_again_while_it_is_erased_stays(people, machine):
    machine("a")
    gallery = Gallery.open(people, "people")
    enrolled(gallery, 1, "gold from straw")
    gallery.forget("gold from straw")
    enrolled(gallery, 5, "gold from straw")
    mark_erased(people, "people", ["gold from straw"])  # of the former one
    machine("new")
    assert Gallery.open(people, "people").item("gold from straw").label == "crowd"


def test_segments_of_another_format_are_refused_by_name(people, machine):
    machine("a")
    enrolled(Gallery.open(people, "people"), 1)
    (uri,) = segments_of(people)
    table = parquet.read_table(pa.BufferReader(storage.read_bytes(uri)))
    meta = json.loads(table.schema.metadata[b"dml.segment"])
    sink = pa.BufferOutputStream()
    meta = {b"dml.segment": json.dumps({**meta, "format": 99})}
    parquet.write_table(table.replace_schema_metadata(meta), sink)
    storage.write_bytes(uri, sink.getvalue().to_pybytes())
    machine("new")
    with pytest.raises(IncompatibleArtifact, match="has 99"):
        Gallery.open(people, "people")


def test_what_is_forgotten_and_enrolled_again_is_in_the_new_segment_alone(people, machine):
    machine("a")
    gallery = Gallery.open(people, "people")
    enrolled(gallery, 1, "gold from straw")
    gallery.update("gold from straw", label="Rumpelstiltskin")
    gallery.forget("gold from straw")
    first = segments_of(people)[:2]
    assert not [uri for uri in first if b"gold from straw" in storage.read_bytes(uri)]
    enrolled(gallery, 5, "gold from straw")
    assert b"gold from straw" in storage.read_bytes(segments_of(people)[-1])
    machine("b")
    again = Gallery.open(people, "people")
    assert again.item("gold from straw").label == "crowd"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda uri: storage.write_bytes(uri, storage.read_bytes(uri)[:-30]), "cannot be read"),
        (lambda uri: storage.write_bytes(uri, b""), "cannot be read"),
        (storage.delete, "number 2 is missing"),
    ],
    ids=["cut", "empty", "missing"],
)
def test_a_segment_that_is_damaged_or_missing_is_refused_where_it_is_needed(people, machine, damage, says):
    machine("a")
    gallery = Gallery.open(people, "people")
    for number in range(3):
        enrolled(gallery, number)
    damage(segments_of(people)[1])
    machine("new")
    with pytest.raises(CorruptArtifact, match=says):
        Gallery.open(people, "people")
    assert enrolled(gallery, 4).revision == 4, "who has read it does not need it"


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda uri: storage.write_bytes(uri, storage.read_bytes(uri)[:-30]), "segments/{}"),
        (lambda uri: storage.write_bytes(uri, storage.read_bytes(uri)[::-1]), "segments/{}"),
        (storage.delete, "segments (number 2 is missing)"),
    ],
    ids=["cut", "changed", "missing"],
)
def test_verify_names_the_segment_that_is_damaged_or_missing(people, damage, says):
    gallery = Gallery.open(people, "people")
    for number in range(3):
        enrolled(gallery, number)
    (log,) = [each for each in check_store(people) if each.kind == "log"]
    assert (log.title, log.damaged) == ("people", [])
    second = segments_of(people)[1]
    damage(second)
    (log,) = [each for each in check_store(people, "people") if each.damaged]
    assert (log.kind, log.damaged) == ("log", [says.format(second.rpartition("/")[2])])
    assert set(repaired(people, [log]).values()) == {
        "damaged, and cannot be made again: restore the folder from a backup, all its files"
    }


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda uri: storage.write_bytes(uri, storage.read_bytes(uri)[:-30]), ["merged/{}"]),
        (storage.delete, ["segments (number 1 is missing)", "segments (number 2 is missing)"]),
    ],
    ids=["cut", "missing"],
)
def test_verify_reads_merged_segments(people, damage, says):
    gallery = Gallery.open(people, "people")
    for number in range(3):
        enrolled(gallery, number)
    (name,) = merge(Segments(folder_of(people, "people")))
    (log,) = [each for each in check_store(people) if each.kind == "log"]
    assert log.damaged == []
    damage(f"{folder_of(people, 'people')}/merged/{name}")
    (log,) = [each for each in check_store(people, "people") if each.damaged]
    assert (log.kind, log.damaged) == ("log", [text.format(name) for text in says])


def test_a_segment_of_another_gallery_or_number_is_refused(people, machine):
    machine("a")
    gallery = Gallery.open(people, "people")
    for number in range(3):
        enrolled(gallery, number)
    first, second, _ = segments_of(people)
    storage.write_bytes(second, storage.read_bytes(first))
    machine("new")
    with pytest.raises(CorruptArtifact, match="must be as it was written"):
        Gallery.open(people, "people")


def test_a_store_that_lost_the_last_segments_is_refused_by_who_has_read_them(people, machine):
    machine("a")
    gallery = Gallery.open(people, "people")
    for number in range(3):
        enrolled(gallery, number)
    storage.delete(segments_of(people)[2])
    with pytest.raises(CorruptArtifact, match="must reach number 3"):
        enrolled(gallery, 4)


def test_a_gallery_that_is_removed_and_begun_again_has_nothing_of_the_former_one(people, machine, tmp_path):
    machine("b")
    other = Gallery.open(people, "people")
    enrolled(other, 1)
    machine("a")
    storage.delete(folder_of(people, "people"))
    gallery = Gallery.open(people, "people")
    assert gallery.revision == 0
    enrolled(gallery, 2)
    machine("b")
    assert "one 1" not in Gallery.open(people, "people").live.items["id"].to_pylist()
    assert "one 2" in Gallery.open(people, "people").live.items["id"].to_pylist()


def test_a_store_that_cannot_be_reached_refuses_writes_and_searches(people):
    gallery = Gallery.open(people, "people")
    enrolled(gallery, 1)
    boto3.resource("s3").Bucket(people.split("/")[2]).objects.all().delete()
    boto3.client("s3").delete_bucket(Bucket=people.split("/")[2])
    time.sleep(SEEN_WITHIN_S)
    with pytest.raises(GalleryUnavailable, match="must answer for bucket"):
        _ = gallery.live


def test_while_one_publishes_nobody_else_writes_until_that_is_old(people, machine):
    machine("a")
    publisher = open_log(people, "people", create=True)
    machine("b")
    gallery = Gallery.open(people, "people", busy_timeout_s=0.2)
    with publisher.held(), pytest.raises(GalleryBusy, match="Try again"):
        enrolled(gallery, 1)
    assert enrolled(gallery, 1).revision == 1


def test_a_write_whose_answer_was_lost_is_known_for_its_own(people, machine):
    machine("a")
    gallery = Gallery.open(people, "people")
    enrolled(gallery, 1)
    segments = Segments(folder_of(people, "people"))
    (listed,) = segments.list_from(0)
    mine, stored = segments.read(listed)
    assert segments.write_new(mine) == stored.etag, "written by the try before"
    with pytest.raises(storage.WriteConflict):
        segments.write_new(replace(mine, writers=("another",)))


@pytest.mark.slow
def test_a_kill_at_any_moment_of_a_write_leaves_all_of_it_or_nothing_on_every_machine(s3_store, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "tests.retrieval.gallery.shipped_steps", s3_store, str(tmp_path)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "11 kills" in done.stdout


def test_what_a_killed_forgetting_left_in_a_segment_goes_with_the_next_build(people):
    gallery = Gallery.open(people, "people")
    enrolled(gallery, 1, "gold from straw")
    forget_logged(people, "people", ["photo 3"])
    with opened_log(people, "people") as log:  # then it is killed
        log.transact(lambda: log.write(3, Entry("forget", "gold from straw"), embedder=""))
        log.transact(lambda: log.rename_forgotten("gold from straw", erased_id("gold from straw")))
    assert traces_in(people, b"gold from straw")
    collect_changes(people, "people", gallery.ref.embeddings)
    assert traces_in(people, b"gold from straw") == []
