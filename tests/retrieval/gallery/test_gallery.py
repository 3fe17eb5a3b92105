"""A gallery: durable before it is acknowledged, seen by others within a second, forgotten for good."""

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest

from dml.config import IndexConfig
from dml.embedding.embed import embed
from dml.errors import (
    CorruptArtifact,
    GalleryBusy,
    GalleryUnavailable,
    IncompatibleArtifact,
    InvalidData,
    InvalidSetting,
    MissingArtifact,
    WriteCommitted,
)
from dml.models.package import load_package
from dml.preprocessing import UnreadableImage
from dml.retrieval.build import build_index
from dml.retrieval.gallery import Gallery, collect_changes, forgotten_ids, publish_index
from dml.retrieval.gallery.fold import LOG_FILE, folder_of
from dml.retrieval.gallery.log import Log
from dml.serving.answers import draw
from dml.serving.searcher import Searcher
from tests.embedding.parts import png
from tests.retrieval.gallery.people import ROWS, items_of, publish, vectors_of


@pytest.fixture(scope="module")
def shop(store, package, dataset):
    """A store with an index of images."""
    table = embed(store, package, dataset)
    publish_index(store, build_index(store, "shop", table, IndexConfig()))
    return store


@pytest.fixture
def store_of_vectors(tmp_path):
    publish(str(tmp_path / "store"), tmp_path, "people", items_of(ROWS), vectors_of(ROWS, 1))
    return str(tmp_path / "store")


def path_of(store, name="people"):
    return Path(folder_of(store, name), LOG_FILE)


def ids(gallery, vector, k=5):
    live = gallery.live
    found = live.search(vector[None], k, embedder=live.ref.embeddings.embedder.fingerprint).answers[0]
    return [answer.id for answer in found]


class GivesNoNumbersForTheSecond:
    """A package whose network gives NaN for the second of several images."""

    detector = None

    def __init__(self, uri):
        self.package = load_package(uri)

    def embed(self, images, *, unit_length=True):
        vectors = self.package.embed(images, unit_length=unit_length)
        vectors[1:2] = np.nan
        return vectors


def test_an_image_whose_embedding_is_no_number_is_refused_by_its_place(shop):
    gallery = Gallery.open(shop, "shop", load=GivesNoNumbersForTheSecond)
    before = gallery.revision
    images = [png(seed) for seed in (6000, 6001, 6002)]
    with pytest.raises(InvalidData, match=r"gives 1 of 3 NaN, .* the first image 2 of 3"):
        gallery.enrol("nobody", images=images)
    assert gallery.revision == before


def test_an_image_is_found_by_every_way_to_search_once_it_is_enrolled(shop):
    searcher, other = Searcher.open(shop, "shop"), Searcher.open(shop, "shop")
    image = png(5000)
    done = searcher.gallery.enrol("alice", images=[image], attributes={"year": 2030, "sold": True}, who="me")
    assert done.ids == [f"alice/{hashlib.sha256(image).hexdigest()[:12]}"]
    assert done.revision == searcher.gallery.revision == 1
    assert searcher.gallery.picture(done.ids[0]) == image, "at once, also where it is the log's first"
    time.sleep(0.15)
    for each in (searcher, other, Searcher.open(shop, "shop")):
        (found,) = each.search([image], k=1)
        assert (found.answers[0].id, found.answers[0].label) == (done.ids[0], "alice")
        assert found.answers[0].attributes == {"shelf": None, "year": 2030, "weight": None, "sold": True}
        (found,) = each.search([png(3)], k=1, where="label = 'alice' and year > 2025")
        assert found.answers[0].id == done.ids[0]
        assert each.identify(image, threshold=0.99999).identity == "alice"
        assert each.verify(image, "alice", threshold=0.9).same
        assert each.search_identities(image, k=1).identities[0].identity == "alice"
        assert done.ids[0] not in [a.id for a in each.search_ids(done.ids, k=5)[0].answers]
    item = searcher.gallery.item(done.ids[0])
    assert (item.label, item.enrolled, item.who) == ("alice", True, "me")
    assert searcher.gallery.picture(done.ids[0]) == image
    assert searcher.gallery.picture("00003.png") == png(3)
    assert draw(searcher.search([image], k=3)[0], image, searcher.gallery).startswith(b"\x89PNG")
    searcher.gallery.forget(identity="alice")
    time.sleep(0.15)
    for each in (searcher, other):
        assert each.search([image], k=1)[0].answers[0].id != done.ids[0]
        assert each.identify(image, threshold=0.99999).status == "unknown"
        with pytest.raises(MissingArtifact):
            each.gallery.item(done.ids[0])


def test_the_same_is_enrolled_once_and_other_content_under_its_id_is_refused(store_of_vectors):
    gallery = Gallery.open(store_of_vectors, "people")
    one, two = vectors_of(2, 77)
    first = gallery.enrol("bob", vectors=one[None], ids=["b"])
    again = gallery.enrol("bob", vectors=one[None], ids=["b"])
    assert (again.revision, again.ids) == (first.revision, ["b"])
    with pytest.raises(InvalidSetting, match=r"'b' of gallery people has other content"):
        gallery.enrol("bob", vectors=two[None], ids=["b"])
    with pytest.raises(InvalidSetting, match=r"'b' of gallery people has another label"):
        gallery.enrol("carol", vectors=one[None], ids=["b"])
    with pytest.raises(InvalidSetting, match=r"'photo 1' of gallery people has other content"):
        gallery.enrol("carol", vectors=one[None], ids=["photo 1"])
    assert gallery.size.delta == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"identity": ""}, "identity must be a text"),
        ({"vectors": None}, "images or vectors"),
        ({"vectors": np.ones((1, 8), np.float32)}, "length 1"),
        ({"vectors": np.full((1, 8), np.nan, np.float32)}, "length 1"),
        ({"vectors": np.ones((1, 9), np.float32)}, r"\(M, 8\)"),
        ({"ids": ["a", "b"]}, "ids must be 1"),
        ({"ids": [""]}, "id must be a text"),
        ({"attributes": {"regoin": "east"}}, "Did you mean 'region'"),
        ({"attributes": {"floor": "2"}}, "'floor' must be int64"),
        ({"attributes": {"floor": True}}, "'floor' must be int64"),
        ({"attributes": {"floor": 2**63}}, "'floor' must be int64"),
        ({"identity": "\u200b"}, "An identity must have a character that is no space"),
        ({"vectors": vectors_of(1, 3).repeat(2, 0)}, "ids must be different"),
    ],
)
def test_what_cannot_be_enrolled_is_refused_and_nothing_is_written(store_of_vectors, arguments, says):
    gallery = Gallery.open(store_of_vectors, "people")
    usual = {"identity": "bob", "vectors": vectors_of(1, 3)}
    with pytest.raises((InvalidSetting, InvalidData), match=says):
        gallery.enrol(**{**usual, **arguments})
    assert not path_of(store_of_vectors).exists()


def test_an_identity_is_kept_and_forgotten_as_an_ingest_keeps_a_label(store_of_vectors):
    gallery = Gallery.open(store_of_vectors, "people")
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    assert gallery.enrol(f" {decomposed}\u2003", vectors=vectors_of(1, 70)).identity == composed
    again = gallery.enrol(composed, vectors=vectors_of(1, 70))
    assert gallery.size.delta == 1
    gallery.update("photo 1", label=f"{decomposed} ")
    assert set(gallery.forget(identity=decomposed).ids) == {*again.ids, "photo 1"}


def test_images_need_a_model_and_a_reader_does_not_write(store_of_vectors):
    with pytest.raises(IncompatibleArtifact, match="An enrolment of images needs the model"):
        Gallery.open(store_of_vectors, "people").enrol("bob", images=[png(1)])
    with pytest.raises(InvalidSetting, match="opened to read"):
        Gallery.open(store_of_vectors, "people", readonly=True).forget("photo 1")


def test_of_many_images_the_one_that_cannot_be_enrolled_is_named(shop):
    gallery = Gallery.open(shop, "shop")
    before = gallery.size
    with pytest.raises(UnreadableImage, match=r"Image 2 of 3: An image must decode whole"):
        gallery.enrol("bob", images=[png(900), png(901)[:-30], png(902)])
    assert gallery.size == before


def test_many_enrolments_at_once_share_transactions_and_all_are_there(store_of_vectors):
    gallery = Gallery.open(store_of_vectors, "people")
    vectors = vectors_of(200, 5)

    def enrol(number):
        name = f"one {number}"
        done = gallery.enrol("crowd", vectors=vectors[number][None], ids=[name])
        assert name in ids(gallery, vectors[number], k=300)  # its own searches see it at once
        return done.revision

    with ThreadPoolExecutor(16) as pool:
        revisions = list(pool.map(enrol, range(200)))
    assert max(revisions) == gallery.revision == Log(path_of(store_of_vectors)).revision
    assert len(set(revisions)) < 200
    assert gallery.size.delta == 200
    reopened = Gallery.open(store_of_vectors, "people", readonly=True)
    assert reopened.live.items["id"].to_pylist() == gallery.live.items["id"].to_pylist()


def test_one_refused_enrolment_does_not_harm_those_that_share_its_transaction(store_of_vectors):
    gallery = Gallery.open(store_of_vectors, "people")
    vectors = vectors_of(40, 6)

    def enrol(number):
        id_ = "photo 1" if number % 4 == 0 else f"one {number}"
        try:
            return gallery.enrol("crowd", vectors=vectors[number][None], ids=[id_]).ids
        except InvalidSetting:
            return None

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(enrol, range(40)))
    assert [ids is None for ids in done] == [number % 4 == 0 for number in range(40)]
    assert gallery.size.delta == 30


def test_a_failure_after_the_commit_says_so_and_reads_the_log_again(store_of_vectors):
    failing = []

    def fail():
        if failing:
            raise RuntimeError(failing.pop())

    gallery = Gallery.open(store_of_vectors, "people", after_commit=fail)
    gallery.enrol("bob", vectors=vectors_of(1, 1), ids=["before"])
    failing.append("out of memory")
    with pytest.raises(WriteCommitted, match=r"durable as revision 2.*out of memory") as failed:
        gallery.enrol("bob", vectors=vectors_of(1, 2), ids=["b"])
    assert failed.value.revision == gallery.revision == 2
    assert gallery.item("b").label == "bob"
    assert gallery.enrol("bob", vectors=vectors_of(1, 3), ids=["after"]).revision == 3


def test_a_writer_waits_for_another_process_and_then_says_that_it_is_busy(store_of_vectors):
    gallery = Gallery.open(store_of_vectors, "people", busy_timeout_s=0.2)
    gallery.enrol("bob", vectors=vectors_of(1, 1), ids=["a"])
    with Log(path_of(store_of_vectors)).transaction():
        with pytest.raises(GalleryBusy, match=r"another process has been writing .* for 0.2 s. Try again"):
            gallery.enrol("bob", vectors=vectors_of(1, 2), ids=["b"])
        assert gallery.item("a").label == "bob"  # searches go on
    assert gallery.enrol("bob", vectors=vectors_of(1, 2), ids=["b"]).revision == 2


def test_nothing_of_what_was_forgotten_is_left_in_the_files_of_the_log(store_of_vectors):
    gallery = Gallery.open(store_of_vectors, "people")
    reader = Gallery.open(store_of_vectors, "people", readonly=True)
    vector = np.array([0.5, -0.5, 0.5, 0.5, 0, 0, 0, 0], np.float32)
    for number in range(50):
        gallery.enrol("crowd", vectors=vectors_of(1, number)[:, ::-1], ids=[f"one {number}"])
    secret = {"attributes": {"region": "Schlaraffenland"}, "ids": ["secret"]}
    gallery.enrol("Rumpelstiltskin", vectors=vector[None], **secret)
    gallery.update("secret", attributes={"region": "Atlantis"})
    assert reader.refresh() is False
    gallery.forget(identity="Rumpelstiltskin")
    folder = path_of(store_of_vectors).parent
    content = b"".join(file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm"))
    for trace in (b"Rumpelstiltskin", b"Schlaraffenland", b"Atlantis", vector.tobytes()):
        assert trace not in content
    reader.refresh()
    with pytest.raises(MissingArtifact):
        reader.item("secret")


def test_a_damaged_log_is_refused_by_searches_too(store_of_vectors):
    Gallery.open(store_of_vectors, "people").enrol("bob", vectors=vectors_of(1, 1))
    for file in path_of(store_of_vectors).parent.iterdir():
        file.write_bytes(b"no database " * 1000)
    with pytest.raises(CorruptArtifact, match="as SQLite wrote it"):
        Searcher.open(store_of_vectors, "people")


def test_a_newly_published_version_is_taken_before_the_next_write(store_of_vectors, tmp_path):
    gallery = Gallery.open(store_of_vectors, "people")
    gallery.enrol("bob", vectors=vectors_of(1, 1), ids=["b"])
    gallery.forget("photo 3")
    gallery.update("photo 4", attributes={"region": "north"})
    items, vectors = items_of(ROWS + 5), vectors_of(ROWS + 5, 8)
    gone = [item for item in items if item["id"] != "photo 4"]
    publish(store_of_vectors, tmp_path / "next", "people", gone, vectors[:-1])
    with pytest.raises(InvalidSetting, match="other content"):
        gallery.enrol("bob", vectors=vectors_of(1, 2), ids=[f"photo {ROWS + 1}"])
    assert gallery.ref.rows == ROWS + 4
    present = gallery.live.items["id"].to_pylist()
    assert "b" in present  # what was enrolled stays
    assert "photo 3" not in present  # what was forgotten does not come back
    assert "photo 4" not in present  # what the source has no more is not kept for having been changed
    assert gallery.live.num_rows == ROWS + 4


WRITER = """
import sys
import numpy as np
from dml.retrieval.gallery import Gallery, collect_changes, forgotten_ids, publish_index
store, first, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
sys.path.insert(0, sys.argv[4])
from tests.retrieval.gallery.people import vectors_of
gallery = Gallery.open(store, "people")
for number in range(first, first + count):
    gallery.enrol("crowd", vectors=vectors_of(1, number), ids=[f"one {number}"])
    print(number, flush=True)
"""


def writer(store, first, count):
    root = str(Path(__file__).parents[3])
    command = [sys.executable, "-c", WRITER, store, str(first), str(count), root]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
    )


@pytest.mark.slow
def test_two_processes_write_at_once_and_a_killed_one_loses_nothing_that_it_acknowledged(store_of_vectors):
    reader = Gallery.open(store_of_vectors, "people", readonly=True)
    killed, other = writer(store_of_vectors, 0, 100_000), writer(store_of_vectors, 1_000_000, 60)
    acknowledged = [int(killed.stdout.readline()) for _ in range(30)]
    killed.send_signal(signal.SIGKILL)
    acknowledged += [int(line) for line in killed.communicate()[0].split()]
    acknowledged += [int(line) for line in other.communicate()[0].split()]
    assert other.returncode == 0
    time.sleep(0.2)
    present = [id_ for id_ in reader.live.items["id"].to_pylist() if id_.startswith("one ")]
    assert len(set(present)) == len(present)
    assert {f"one {number}" for number in acknowledged} <= set(present)
    assert len(present) <= len(acknowledged) + 1


HALF = "half \ud800"
LONG = "x" * 5000


def test_a_new_name_is_not_blank(store_of_vectors):
    gallery = Gallery.open(store_of_vectors, "people")
    for write in (
        lambda: gallery.enrol(" ", vectors=vectors_of(1, 3)),
        lambda: gallery.enrol("bob", vectors=vectors_of(1, 3), ids=["\t"]),
        lambda: gallery.update("photo 1", label="\u3000"),
    ):
        with pytest.raises(InvalidSetting, match="a character that is no space"):
            write()
    assert gallery.revision == 0
    gallery.close()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("bob\nsmith", r"must be without control characters and line breaks; got U\+000A in 'bob\\nsmith'"),
        ("bob\x1b[31m", r"got U\+001B in 'bob\\x1b\[31m'"),
        ("bob\u2028smith", r"got U\+2028"),
        ("bob\0", "must be a text in Unicode without NUL; got 'bob"),
        ("b" * 1001, "must be at most 1000 characters; got 1001. Shorten it"),
    ],
)
def test_what_is_wrong_with_a_new_name_is_said(store_of_vectors, text, message):
    with closing(Gallery.open(store_of_vectors, "people")) as gallery:
        for what, write in (
            ("An identity", lambda: gallery.enrol(text, vectors=vectors_of(1, 3))),
            ("An id", lambda: gallery.enrol("bob", vectors=vectors_of(1, 3), ids=[text])),
            ("A label", lambda: gallery.update("photo 1", label=text)),
        ):
            with pytest.raises(InvalidSetting, match=f"{what} .*{message}"):
                write()
        with pytest.raises(InvalidSetting, match=r"at most 987 characters, to which ids add 13; got 988"):
            gallery.enrol("b" * 988, vectors=vectors_of(1, 3))
        assert gallery.enrol("b" * 987, vectors=vectors_of(1, 3)).ids
        gallery.forget(identity="b" * 987)


@pytest.mark.parametrize(
    "write",
    [
        lambda gallery, text: gallery.enrol(text, vectors=vectors_of(1, 3)),
        lambda gallery, text: gallery.enrol("bob", vectors=vectors_of(1, 3), ids=[text]),
        lambda gallery, text: gallery.enrol("bob", vectors=vectors_of(1, 3), who=text),
        lambda gallery, text: gallery.enrol(
            "bob", vectors=vectors_of(1, 3), attributes={"region": 20 * text}
        ),
        lambda gallery, text: gallery.update("photo 1", label=text),
        lambda gallery, text: gallery.update("photo 1", attributes={"region": 20 * text}),
        lambda gallery, text: gallery.update(text, label="bob"),
        lambda gallery, text: gallery.forget(text),
        lambda gallery, text: gallery.forget(identity=text),
        lambda gallery, text: gallery.forget("photo 1", who=text),
    ],
)
@pytest.mark.parametrize("text", [HALF, "nul \0", LONG, 3], ids=["half", "nul", "long", "number"])
def test_a_text_that_no_log_or_search_could_hold_is_refused_before_it_is_durable(
    store_of_vectors, write, text
):
    with pytest.raises(InvalidSetting, match="must be"):
        write(Gallery.open(store_of_vectors, "people"), text)
    assert not path_of(store_of_vectors).exists()


def test_an_item_whose_id_is_a_digest_is_forgotten_as_any_other(store_of_vectors):
    gallery = Gallery.open(store_of_vectors, "people")
    id_ = "sha256:" + 64 * "0"
    gallery.enrol("bob", vectors=vectors_of(1, 3), ids=[id_])
    gallery.forget(id_)
    assert forgotten_ids(store_of_vectors, "people") == [id_]


# The files of the log


def enrolled(store, count):
    """A gallery with that many enrolments, each a transaction; and the names of its items."""
    gallery = Gallery.open(store, "people")
    names = [f"one {number}" for number in range(count)]
    for number, name in enumerate(names):
        gallery.enrol("crowd", vectors=vectors_of(1, number), ids=[name], attributes={"floor": number})
    return gallery, names


@pytest.mark.parametrize("left", [0, 1, 31, 32, 33, 4151, 4152, 10_007, 50_001, -4097, -4096, -1])
def test_of_a_torn_tail_every_transaction_before_the_tear_is_whole(store_of_vectors, tmp_path, left):
    gallery, names = enrolled(store_of_vectors, 8)
    copy = str(tmp_path / "copy")
    shutil.copytree(store_of_vectors, copy)  # while it is open: as after a power failure
    gallery.close()
    tail = path_of(copy).with_name(LOG_FILE + "-wal")
    content = tail.read_bytes()
    tail.write_bytes(content[: left or len(content)])
    tail.with_name(LOG_FILE + "-shm").unlink()
    torn = Gallery.open(copy, "people")
    present = [id_ for id_ in torn.live.items["id"].to_pylist() if id_.startswith("one")]
    assert present == names[: torn.revision]
    assert torn.revision == (8 if left == 0 else min(torn.revision, 7))
    done = torn.enrol("crowd", vectors=vectors_of(1, 100), ids=["after"])
    assert done.revision == len(present) + 1
    assert Gallery.open(copy, "people").live.num_rows == ROWS + len(present) + 1


def test_replaying_the_log_twice_gives_the_same_gallery(store_of_vectors):
    gallery, _ = enrolled(store_of_vectors, 5)
    gallery.forget(["one 1", "photo 3"])
    gallery.update("one 2", attributes={"region": "north"})
    before = gallery.live.items
    for _ in range(2):
        gallery.rebuild()
        assert gallery.live.items == before
    reopened = Gallery.open(store_of_vectors, "people")
    assert reopened.live.items == before
    assert reopened.revision == gallery.revision == 7


def test_the_log_of_another_gallery_is_refused(store_of_vectors, tmp_path):
    publish(store_of_vectors, tmp_path / "other", "other", items_of(ROWS), vectors_of(ROWS, 1))
    gallery, _ = enrolled(store_of_vectors, 1)
    gallery.close()
    path_of(store_of_vectors, "other").parent.mkdir(parents=True)
    shutil.copy(path_of(store_of_vectors), path_of(store_of_vectors, "other"))
    with pytest.raises(CorruptArtifact, match=r"must be its own; .* is of gallery people"):
        Gallery.open(store_of_vectors, "other")


def test_what_an_index_covers_is_not_built_away_when_the_log_is_lost_or_an_older_one(
    store_of_vectors, tmp_path
):
    gallery, _ = enrolled(store_of_vectors, 2)
    gallery.close()
    shutil.copytree(path_of(store_of_vectors).parent, tmp_path / "backup")
    gallery = Gallery.open(store_of_vectors, "people")
    gallery.enrol("crowd", vectors=vectors_of(1, 9), ids=["later"])
    table = gallery.ref.embeddings
    changes = collect_changes(store_of_vectors, "people", table)
    publish_index(
        store_of_vectors,
        build_index(store_of_vectors, "people", table, IndexConfig(), changes=changes),
    )
    gallery.refresh()

    def refuses(says):
        for opened in (gallery, Gallery.open(store_of_vectors, "people")):
            assert opened.live.num_rows == ROWS + 3  # searches go on
            with pytest.raises(CorruptArtifact, match=says):
                opened.enrol("crowd", vectors=vectors_of(1, 10), ids=["more"])
        with pytest.raises(CorruptArtifact, match=says):
            collect_changes(store_of_vectors, "people", table)

    saved = path_of(store_of_vectors).parent
    saved.rename(tmp_path / "saved")
    refuses("must reach revision 3, which was acknowledged; there is none. Restore it")
    assert not path_of(store_of_vectors).exists()
    shutil.copytree(tmp_path / "backup", saved)
    refuses("must reach revision 3, which was acknowledged; it ends at 2. Restore it")
    shutil.rmtree(saved)
    (tmp_path / "saved").rename(saved)
    assert gallery.enrol("crowd", vectors=vectors_of(1, 10), ids=["more"]).revision == 4
    assert gallery.live.num_rows == Gallery.open(store_of_vectors, "people").live.num_rows == ROWS + 4


def test_a_write_to_a_log_that_was_removed_is_not_acknowledged(store_of_vectors):
    gallery, _ = enrolled(store_of_vectors, 2)
    shutil.rmtree(path_of(store_of_vectors).parent)
    with pytest.raises(CorruptArtifact, match="must reach revision 2"):
        gallery.enrol("crowd", vectors=vectors_of(1, 9), ids=["later"])


@contextmanager
def without_rights():
    """As a user who owns nothing."""
    if os.getuid() != 0:
        pytest.skip("only root can become another user")
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def readable(store_of_vectors, tmp_path):
    """A store that others can read and nobody else can write to."""
    for folder in (tmp_path, *tmp_path.parents[:-1]):
        if not folder.stat().st_mode & 0o001:
            folder.chmod(folder.stat().st_mode | 0o055)
    return store_of_vectors


def test_a_store_that_cannot_be_written_to_is_searched_and_refuses_writes(readable):
    gallery, names = enrolled(readable, 2)
    gallery.close()
    assert not path_of(readable).with_name(LOG_FILE + "-wal").exists()
    with without_rights():
        reader = Gallery.open(readable, "people")
        assert ids(reader, vectors_of(1, 1)[0], k=100).count(names[1]) == 1
        with pytest.raises(GalleryUnavailable, match="read and write"):
            reader.enrol("bob", vectors=vectors_of(1, 9))
        reader.close()


def test_a_first_write_to_a_store_that_cannot_be_written_to_is_refused(readable):
    with without_rights(), pytest.raises(GalleryUnavailable, match="read and write"):
        Gallery.open(readable, "people").enrol("bob", vectors=vectors_of(1, 9))


FULL = """
import resource, signal, sys
from dml.errors import GalleryUnavailable
from dml.retrieval.gallery import Gallery, collect_changes, forgotten_ids, publish_index
from tests.retrieval.gallery.people import vectors_of
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
gallery = Gallery.open(sys.argv[1], "people")
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))
for number in range(100):
    try:
        gallery.enrol("crowd", vectors=vectors_of(1, number), ids=[f"one {number}"])
    except GalleryUnavailable as error:
        assert "Nothing was written" in str(error), error
        assert gallery.revision == number and gallery.live.num_rows == 60 + number
        print(number)
        sys.exit(0)
sys.exit("the disk was not full")
"""


@pytest.mark.slow
def test_on_a_full_disk_a_write_is_refused_and_what_was_acknowledged_stays(store_of_vectors):
    root = str(Path(__file__).parents[3])
    command = [sys.executable, "-c", FULL, store_of_vectors]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": root})
    assert done.returncode == 0, done.stderr
    acknowledged = int(done.stdout)
    assert acknowledged
    gallery = Gallery.open(store_of_vectors, "people")
    assert gallery.live.num_rows == ROWS + acknowledged
    assert gallery.enrol("crowd", vectors=vectors_of(1, 999)).revision == acknowledged + 1
