"""On S3 too an ingest reads what is new or has changed, counted by the server."""

import io
import threading
from collections.abc import Callable, Iterator

import pyarrow as pa
import pytest
from pyarrow import parquet

from dml import storage
from dml.config import IngestConfig, NoSplit
from dml.data.dataset import fragments, read_images
from dml.data.ingest import ingest_source
from dml.data.sources.files import object_stamps
from tests.data.pictures import picture


@pytest.fixture
def objects_read(s3_store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], list[str]]]:
    """The keys of the objects below a prefix that were read since the last call."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application, keys = DomainDispatcherApplication(create_backend_app), []

    def counting(environ, start_response):
        if environ["REQUEST_METHOD"] == "GET" and "list-type" not in environ.get("QUERY_STRING", ""):
            keys.append(environ["PATH_INFO"])
        return application(environ, start_response)

    server = make_server("127.0.0.1", 0, counting, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")

    def since_last(prefix: str) -> list[str]:
        found = sorted(key.partition(prefix)[2] for key in keys if prefix in key)
        keys.clear()
        return found

    yield since_last
    server.shutdown()
    thread.join()


def taken_in(source: str, store: str):
    return ingest_source(
        IngestConfig(name="d", source=source, split=NoSplit(), rows_per_fragment=8, num_workers=1), store
    )


@pytest.mark.slow
def test_of_a_bucket_that_grew_only_the_new_and_changed_objects_are_read(s3_store, objects_read):
    raw = f"{s3_store}-raw"
    for number in range(20):
        storage.write_bytes(f"{raw}/class{number % 4}/{number} #1%.png", picture(number))
    first = taken_in(raw, s3_store).dataset
    assert len(objects_read("store-raw/")) == 20
    assert taken_in(raw, s3_store).outcome == "current"
    assert objects_read("store-raw/") == []

    storage.write_bytes(f"{raw}/class1/new.png", picture(900))
    storage.write_bytes(f"{raw}/class2/2 #1%.png", picture(901))
    storage.delete(f"{raw}/class3/3 #1%.png")
    report = taken_in(raw, s3_store)
    assert objects_read("store-raw/") == ["class1/new.png", "class2/2 #1%.png"]
    assert (report.changes.added, report.changes.changed, report.changes.removed) == (1, 1, 1)
    before, after = ({each.name for each in fragments(ref)} for ref in (first, report.dataset))
    assert len(after - before) == 1
    assert report.dataset.fingerprint == taken_in(raw, f"{s3_store}-other").dataset.fingerprint
    storage.verify(first.uri)
    storage.verify(report.dataset.uri)


@pytest.mark.slow
def test_of_a_manifest_that_relabels_no_object_is_read(s3_store, objects_read):
    raw = f"{s3_store}-raw"
    lines = [f"images/{number}.png,class{number % 4}" for number in range(12)]
    for number in range(12):
        storage.write_bytes(f"{raw}/images/{number}.png", picture(number))
    storage.write_bytes(f"{raw}/all.csv", "\n".join(["image,label", *lines]).encode())
    taken_in(f"{raw}/all.csv", s3_store)
    lines[5] = "images/5.png,class2"
    storage.write_bytes(f"{raw}/all.csv", "\n".join(["image,label", *lines]).encode())
    objects_read("store-raw/")
    assert taken_in(f"{raw}/all.csv", s3_store).changes.relabelled == 1
    assert set(objects_read("store-raw/")) == {"all.csv"}


@pytest.mark.slow
def test_objects_of_a_folder_that_cannot_be_listed_have_no_stamp(s3_store):
    storage.write_bytes(f"{s3_store}/a/1.png", picture())
    there, elsewhere = object_stamps([f"{s3_store}/a/1.png", "s3://no-such-bucket/a/1.png"])
    assert there is not None
    assert elsewhere is None


@pytest.mark.slow
def test_a_table_of_images_that_was_replaced_is_read_from_the_new_object_in_the_same_process(s3_store):
    uri = f"{s3_store}-raw/m.parquet"

    def write_table(seeds: list[int]) -> None:
        content = {"image": [picture(seed) for seed in seeds], "label": ["x", "y", "x", "y"]}
        sink = io.BytesIO()
        parquet.write_table(pa.table(content), sink)
        storage.write_bytes(uri, sink.getvalue())

    write_table([0, 1, 2, 3])
    taken_in(uri, s3_store)
    write_table([0, 1, 7, 3])
    report = taken_in(uri, s3_store)
    assert report.changes.changed == 1
    assert picture(7) in read_images(report.dataset, range(4))
