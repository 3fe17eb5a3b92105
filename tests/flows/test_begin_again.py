"""A build beside a command that forgets begins again by itself, and a bounded number of times."""

import logging
from contextlib import closing

import pytest

from dml.config import IndexConfig
from dml.errors import ForgottenMeanwhile, MissingArtifact
from dml.retrieval.build import build_index
from dml.retrieval.gallery import Gallery, collect_changes, publish_index, version_and_forgotten
from dml.retrieval.index import index_config_of, published_index
from flows.forget import forget_enrolled_flow
from flows.index import index_vectors_flow
from flows.policy import begin_again
from flows.reindex import reindex_flow
from tests.retrieval.gallery.people import ROWS, items_of, publish, vectors_of


@pytest.fixture
def people(tmp_path):
    """A store with an index of vectors, in whose gallery somebody was enrolled."""
    store = str(tmp_path / "store")
    publish(store, tmp_path / "vectors", "people", items_of(ROWS), vectors_of(ROWS, 1))
    enrol(store, "Rumpelstiltskin")
    return store


def enrol(store, name):
    with closing(Gallery.open(store, "people")) as gallery:
        gallery.enrol(name, vectors=vectors_of(1, 7), ids=[name])


def test_a_build_of_what_was_forgotten_meanwhile_is_made_again_without_it(people, caplog):
    caplog.set_level("INFO", "dml.flows")
    attempts = []

    def build():
        table = published_index(people, "people").embeddings
        changes = collect_changes(people, "people", table)
        if not attempts:
            forget_enrolled_flow.fn("people", None, "Rumpelstiltskin", True, people)
        attempts.append(changes)
        built = build_index(people, "people", table, IndexConfig(), changes=changes)
        publish_index(people, built)
        return built

    built = begin_again(build, lambda: version_and_forgotten(people, "people"))
    assert len(attempts) == 2
    assert (published_index(people, "people"), built.rows) == (built, ROWS)
    assert "another command forgot items meanwhile, so it begins again" in caplog.text


def test_it_begins_again_twice_and_then_says_what_is_wrong():
    attempts = []

    def attempt():
        attempts.append(None)
        raise ForgottenMeanwhile(f"number {len(attempts)}")

    with pytest.raises(ForgottenMeanwhile, match="number 3"):
        begin_again(attempt)
    assert len(attempts) == 3


def test_an_error_beside_which_nothing_was_replaced_is_raised_at_once():
    attempts = []

    def attempt():
        attempts.append(None)
        raise MissingArtifact("it is not there")

    with pytest.raises(MissingArtifact):
        begin_again(attempt, lambda: "the same version")
    assert len(attempts) == 1


def test_what_misses_a_version_that_was_replaced_begins_again():
    versions, attempts = iter(["one", "another", "another"]), []

    def attempt():
        attempts.append(None)
        if len(attempts) == 1:
            raise MissingArtifact("it was removed")
        return len(attempts)

    assert begin_again(attempt, lambda: next(versions)) == 2


def test_what_it_changes_itself_beforehand_is_no_reason_to_begin_again():
    erased = []

    def attempt():
        raise MissingArtifact("the source is away")

    with pytest.raises(MissingArtifact):
        begin_again(attempt, lambda: len(erased), prepare=lambda: erased.append(None))
    assert len(erased) == 1


class Forgets(logging.Handler):
    """Forgets somebody once a build says that it is done."""

    def __init__(self, store):
        super().__init__()
        self.store, self.reports = store, []

    def emit(self, record):
        if "is built already" in record.getMessage() and not self.reports:
            self.reports.append(None)
            self.reports[0] = forget_enrolled_flow.fn("people", None, "Rumpelstiltskin", True, self.store)


@pytest.fixture
def forgets(people, caplog):
    """The same version is built before, so the next build of it says so, and then somebody is forgotten."""
    caplog.set_level("INFO", "dml")
    former = published_index(people, "people")
    changes = collect_changes(people, "people", former.embeddings)
    build_index(people, "people", former.embeddings, index_config_of(former), changes=changes)
    handler = Forgets(people)
    logging.getLogger("dml.retrieval.build").addHandler(handler)
    yield handler
    logging.getLogger("dml.retrieval.build").removeHandler(handler)


@pytest.mark.parametrize(
    "build",
    [reindex_flow.fn, lambda name, store: index_vectors_flow.fn(name, name, store=store)],
    ids=["reindex", "index"],
)
def test_a_command_that_builds_begins_again_where_somebody_was_forgotten_before_it_published(
    people, forgets, caplog, build
):
    built = build("people", store=people)
    assert forgets.reports[0].items == 1
    assert "so it begins again" in caplog.text
    assert (published_index(people, "people").version, built.rows) == (built.version, ROWS)
