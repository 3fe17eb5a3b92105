"""`dml enrol` and `dml forget` of what was enrolled, on the command line."""

from pathlib import Path

import numpy as np
import pytest

from dml.retrieval.gallery.fold import opened_log
from dml.retrieval.index import find_index
from tests.retrieval.gallery.people import ROWS, items_of, publish, upload, vectors_of


@pytest.fixture
def people(tmp_path):
    """A store with an index of vectors, and a file with two more."""
    publish(str(tmp_path / "store"), tmp_path, "people", items_of(ROWS), vectors_of(ROWS, 1))
    np.save(tmp_path / "new.npy", vectors_of(2, 7))
    return tmp_path


def ids(dml, folder, vector):
    np.save(folder / "query.npy", vector)
    found = dml(
        "search", "people", "--vector", str(folder / "query.npy"), "--store", str(folder / "store"), "--json"
    )
    assert found.status == 0, found.err
    return [answer["id"] for answer in found.json["answers"]]


def test_what_is_enrolled_is_found_by_the_next_command_and_what_is_forgotten_by_none(dml, people):
    store = ["--store", str(people / "store")]
    told = ["--attribute", "region=east", "--attribute", "floor=3", "--who", "me"]
    done = dml("enrol", "people", "alice", str(people / "new.npy"), *told, *store, "--json")
    assert (done.json["identity"], done.json["revision"], done.json["delta"]) == ("alice", 1, 2)
    first, second = done.json["ids"]
    assert first in ids(dml, people, vectors_of(2, 7)[0])
    again = dml("enrol", "people", "alice", str(people / "new.npy"), *told[:4], *store)
    assert "as of revision 1; items enrolled since it was built: 2" in again.out
    assert "2 items enrolled or changed since" in dml("indexes", "people", *store).out
    assert dml("forget", "people", first, "--who", "her", *store, "--json").json["items"] == 1
    with opened_log(store[1], "people") as log:
        assert (log.entry(first).who, log.entry(second).who) == ("her", "me")
    assert first not in ids(dml, people, vectors_of(2, 7)[0])
    assert second in ids(dml, people, vectors_of(2, 7)[1])
    assert dml("forget", "people", "--identity", "alice", *store).status == 0
    assert second not in ids(dml, people, vectors_of(2, 7)[1])


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["enrol", "people", "bob", "nowhere.jpg"], "nowhere.jpg"),
        (["enrol", "people", "bob", "{new}", "{new}"], "one .npy file of vectors"),
        (["enrol", "people", "bob", "{new}", "--attribute", "region"], "must be name=value; got 'region'"),
        (["enrol", "people", "bob", "{new}", "--attribute", "floor=high"], "floor must be a whole number"),
        (["enrol", "people", "bob", "{new}", "--attribute", "floor=1_000"], "whole number; got '1_000'"),
        (["enrol", "people", "bob", "{new}", "--attribute", "floor=\u0663"], "whole number; got '\u0663'"),
        (["enrol", "people", "bob", "{new}", "--attribute", "regoin=east"], "Did you mean 'region'"),
        (["enrol", "people", "bob", "{new}", *2 * ["--attribute", "floor=1"]], "got 'floor' twice"),
        (["enrol", "people", "bob\nsmith", "{new}"], "An identity must be without control characters"),
        (["enrol", "people", 1001 * "b", "{new}"], "An identity must be at most 1000 characters; got 1001"),
        (["enrol", "peopel", "bob", "{new}"], "people"),
        (["forget", "people"], "ids of items, or --identity LABEL"),
        (["forget", "people", "a", "--identity", "b"], "--identity goes without ids"),
        (["forget", "people", "--identity", "nobody"], "'nobody' has none"),
    ],
)
def test_what_cannot_be_enrolled_or_forgotten_is_refused(dml, people, words, says):
    words = [word.format(new=str(people / "new.npy")) for word in words]
    done = dml(*words, "--store", str(people / "store"))
    assert done.status == 2
    assert says in done.err


@pytest.mark.slow
def test_in_a_store_on_s3_what_is_enrolled_is_found_built_in_verified_and_forgotten(
    dml, people, s3_store, monkeypatch
):
    upload(people / "store", s3_store)
    monkeypatch.setenv("DML_STORE", s3_store)
    vector = vectors_of(2, 7)[0]
    np.save(people / "query.npy", vector)

    def found():
        return [answer["id"] for answer in done("search", "people", "--vector", "query.npy").json["answers"]]

    def done(*words):
        outcome = dml(*words, "--json")
        assert outcome.status == 0, outcome.err
        return outcome

    ids = done("enrol", "people", "alice", "new.npy").json["ids"]
    assert ids[0] in found()
    (refreshed,) = done("reindex", "people").json["refreshed"]
    assert (refreshed["rows"], find_index(s3_store, "people").covers_revision) == (ROWS + 2, 1)
    assert ids[0] in found()
    log = [each for each in done("verify").json["artifacts"] if each["kind"] == "log"]
    assert [(each["artifact"], each["state"]) for each in log] == [("people", "ok")]
    receipt = done("forget", "people", "--identity", "alice", "--now").json["receipt"]
    assert {"log", "segment", "index"} <= {line["place"] for line in receipt if line["erased"]}
    assert all(line["erased"] for line in receipt)
    assert ids[0] not in found()
    monkeypatch.setenv("DML_CACHE", str(people / "another machine"))
    assert ids[0] not in found()
    assert not Path("dml-store").exists()
