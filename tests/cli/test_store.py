"""A store is verified, cleaned and taken back by a verb each; a name that is a path reaches none of them."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import prefect.logging  # noqa: F401 - its handler keeps the stream it finds, which must outlive a test
import pytest

from dml.cli.store import receipt_lines
from dml.config import IndexConfig
from dml.data.dataset import find_dataset
from dml.embedding.embed import embed
from dml.registry.catalog import list_models
from dml.reports import Erasure
from dml.retrieval.build import build_index
from dml.retrieval.index import publish_index
from tests.embedding.parts import make_dataset, make_package

HOSTILE = ["../..", "", ".hidden", "shelves@../../.."]  # more in tests/test_names.py


def make_store(folder):
    store = str(folder / "project" / "dml-store")
    package = make_package(store)
    for rows, factory in ((30, "Flat"), (60, "Flat"), (60, "HNSW8")):
        dataset = make_dataset(folder / "images", store, rows=rows)
        table = embed(store, package, dataset)
        publish_index(store, build_index(store, "shelves", table, IndexConfig(factory=factory)))
    return store


@pytest.fixture
def small(tmp_path):
    """A store with two versions of a dataset, the second indexed twice."""
    return make_store(tmp_path)


@pytest.fixture(scope="module")
def around(tmp_path_factory):
    """Such a store in a project, with old dot-folders beside and inside it."""
    folder = tmp_path_factory.mktemp("around")
    store = make_store(folder)
    (folder / "query.png").write_bytes((folder / "images" / "00000.png").read_bytes())
    for path in (folder / "project" / ".git", folder / ".venv", Path(store, "indexes", ".git")):
        path.mkdir()
        os.utime(path, (0, 0))
    return folder


def paths_below(folder):
    """All but MLflow's database, which the first look at it makes."""
    return sorted(str(path) for path in folder.rglob("*") if not path.name.startswith("mlflow"))


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "verb",
    [
        ["index", "NAME", "--model", "shelves", "--dataset", "shelves"],
        ["ingest", "images/images.csv", "--name", "NAME"],
        ["train", "NAME"],
        ["embed", "shelves", "NAME"],
        ["reindex", "NAME"],
        ["schedule", "NAME", "--cron", "0 3 * * *"],
        ["rm", "dataset", "NAME"],
        ["rm", "index", "NAME"],
        ["rm", "run", "NAME"],
        ["rollback", "index", "NAME"],
        ["verify", "NAME"],
        ["search", "query.png", "--index", "NAME"],
    ],
    ids=lambda verb: " ".join(verb),
)
def test_a_name_that_is_a_path_is_refused_and_touches_nothing(dml, around, monkeypatch, verb, name):
    monkeypatch.chdir(around)
    before = paths_below(around)
    done = dml(*[name if word == "NAME" else word for word in verb], "--store", "project/dml-store")
    assert done.status == 2, done.err
    assert done.err.splitlines()[-1].startswith("error: ")
    assert verb[0] != "index" or "index" in done.err.splitlines()[-1], "the name is looked at before the work"
    assert paths_below(around) == before


def test_gc_shows_then_removes_what_is_superseded_and_search_continues(dml, small):
    shown = dml("gc", "--dry-run", "--keep", "1", "--grace-hours", "0", "--store", small, "--json")
    assert shown.status == 0
    kinds = sorted(entry["kind"] for entry in shown.json["removed"])
    assert kinds == ["dataset", "embeddings", "index", "index"]
    assert all(os.path.exists(entry["uri"]) for entry in shown.json["removed"])
    done = dml("gc", "--keep", "1", "--grace-hours", "0", "--store", small, "--json")
    assert done.json["removed"] == shown.json["removed"]
    assert not any(os.path.exists(entry["uri"]) for entry in done.json["removed"])
    again = dml("gc", "--keep", "1", "--grace-hours", "0", "--store", small)
    assert "nothing to remove" in again.out
    assert find_dataset(small, "shelves").rows == 60


def test_gc_where_there_is_no_store_is_the_users_mistake(dml, tmp_path):
    done = dml("gc", "--store", str(tmp_path / "nothing"))
    assert done.status == 2
    assert "A store must" in done.err
    assert not (tmp_path / "nothing").exists()


def test_verify_names_the_damaged_file_and_repair_makes_it_again(dml, small):
    assert dml("verify", "--store", small).status == 0
    victim = next(Path(small, "indexes").rglob("index.faiss"))
    content = bytearray(victim.read_bytes())
    content[-5] ^= 4
    victim.write_bytes(content)
    done = dml("verify", "shelves", "--store", small)
    assert done.status == 2
    assert "index.faiss: damaged" in done.out
    done = dml("verify", "shelves", "--store", small, "--json")
    assert (done.status, "damaged" in [each["state"] for each in done.json["artifacts"]]) == (2, True)
    assert "--repair" in done.json["error"]
    repaired = dml("verify", "--repair", "--store", small)
    assert repaired.status == 0
    assert "index.faiss: made again" in repaired.out
    assert dml("verify", "--store", small).status == 0


def test_rollback_takes_an_index_back(dml, small):
    done = dml("rollback", "index", "shelves", "--store", small)
    assert done.status == 0
    shown = dml("indexes", "--store", small, "--json").json["indexes"]
    assert [ref["factory"] for ref in shown if ref["current"]] == ["Flat"]


def test_a_copied_store_needs_nothing_of_the_original(dml, small, tmp_path):
    (tmp_path / "query.png").write_bytes((tmp_path / "images" / "00000.png").read_bytes())
    copy = str(tmp_path / "elsewhere" / "a 100% copy")
    shutil.copytree(small, copy)
    shutil.rmtree(small)
    done = dml("search", "query.png", "--index", "shelves", "--store", copy, "--picture", "p.png", "--json")
    assert done.status == 0, done.err
    assert done.json["answers"][0]["id"] == "00000.png"
    assert dml("verify", "--store", copy).status == 0
    for uri in [dml("datasets", "--store", copy, "--json").json["datasets"][0]["uri"]]:
        assert uri.startswith(copy)


@pytest.mark.parametrize(
    "verb",
    [
        ["models"],
        ["index", "shelves"],
        ["embed", "shelves", "shelves"],
        ["evaluate", "shelves", "shelves"],
        ["rm", "model", "shelves"],
        ["rm", "model", "shelves/1"],
        ["rollback", "model", "shelves"],
    ],
    ids=" ".join,
)
def test_looking_for_a_model_makes_no_store_of_a_folder(dml, tmp_path, verb):
    photos = tmp_path / "photos"
    photos.mkdir()
    assert dml(*verb, "--store", str(photos)).status == (0 if verb == ["models"] else 2)
    assert dml(*verb, "--store", str(tmp_path / "nowhere")).status == 2
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]
    assert list(photos.iterdir()) == []


@pytest.mark.parametrize(
    "verb",
    [
        ["rm", "dataset", "shelvs"],
        ["rm", "index", "shelvs"],
        ["rm", "run", "shelvs"],
        ["rollback", "index", "shelvs"],
        ["verify", "shelvs"],
        ["verify", "shelvs@0123456789ab"],
        ["forget", "shelvs", "00003.png"],
        ["reindex", "shelvs"],
        ["schedule", "shelvs", "--cron", "0 3 * * *"],
        ["train", "shelvs"],
    ],
    ids=" ".join,
)
def test_a_name_that_is_not_there_brings_the_nearest(dml, small, verb):
    Path(small, "runs", "shelves").mkdir(parents=True)
    done = dml(*verb, "--store", small)
    assert done.status == 2
    assert "must exist in the store" in done.err
    assert "Did you mean 'shelves'?" in done.err


@pytest.mark.slow
def test_a_store_that_can_only_be_read_is_read_and_says_so_to_who_would_write(small, tmp_path):
    def mounted(*verb):
        words = " ".join([sys.executable, "-m", "dml.cli", *verb, "--store", small])
        mount = f"mount --bind {small} {small} && mount -o remount,ro,bind {small} && {words}"
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(
            ["unshare", "-rm", "sh", "-c", mount],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
        )

    if subprocess.run(["unshare", "-rm", "mount", "--bind", small, small], check=False).returncode:
        pytest.skip("needs to mount in a namespace of its own")
    list_models(small)  # makes the database
    for verb in (["datasets"], ["models"], ["indexes"], ["verify"], ["gc", "--dry-run"]):
        assert mounted(*verb).returncode == 0
    for verb in (["rollback", "index", "shelves"], ["gc", "--keep", "1", "--grace-hours", "0"]):
        refused = mounted(*verb)
        assert refused.returncode == 1
        assert refused.stderr.splitlines()[-1].startswith("error: The system refused: ")


@pytest.mark.parametrize("hours", ["inf", "1e300", "nan", "-1"])
def test_hours_of_grace_that_no_calendar_holds_are_refused(dml, small, hours):
    done = dml("gc", "--dry-run", "--grace-hours", hours, "--store", small)
    assert done.status == 2
    assert "Traceback" not in done.err


@pytest.mark.parametrize("folder", ["indexes", "datasets"])
def test_verify_names_a_damaged_pointer(dml, small, folder):
    Path(small, folder, "shelves", "current.json").write_bytes(b"")
    for extra in ([], ["--repair"], ["shelves"]):
        done = dml("verify", *extra, "--store", small)
        assert done.status == 2
        assert "shelves@current: current.json: damaged" in done.out


def test_an_s3_that_does_not_answer_is_one_line(dml, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "testing")
    done = dml("datasets", "--store", "s3://bucket/store")
    assert done.status == 2
    assert done.err.splitlines()[-1].startswith(
        "error: S3 at http://127.0.0.1:9 must answer for bucket 'bucket'"
    )
    assert "Traceback" not in done.err


def test_of_many_segments_that_were_written_again_a_person_reads_the_first_and_the_last():
    def erased(*names):
        return [Erasure(place="segment", name=name, erased=True) for name in names]

    log = Erasure(place="log", name="shop", erased=True)
    index = Erasure(place="index", name="shop@0123456789ab", erased=False, until="dml reindex")
    dataset = Erasure(place="dataset", name="shop", erased=False, until="dml reindex")
    assert receipt_lines([log, *erased(*map(str, range(2000))), index, dataset]) == [
        "written again without them: 2000 segments, 0 to 1999",
        "dataset shop holds some until: dml reindex",
    ]
    assert receipt_lines([log, *erased("7")]) == ["written again without them: segment 7"]
    assert receipt_lines([log, index]) == []
