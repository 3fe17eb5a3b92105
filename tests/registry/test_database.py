"""MLflow's database in a store: created once by several processes, and valid after the store is moved."""

import hashlib
import shutil
import sqlite3
from pathlib import Path

import pytest

from dml.config import GateConfig
from dml.errors import CorruptArtifact
from dml.registry import catalog
from dml.registry.champion import apply_gate
from dml.registry.connection import connect
from dml.registry.database import prepared_database, sqlite_file
from dml.settings import local_folder, sqlite_uri, tracking_uri
from dml.storage import exclusive
from tests.registry.parts import new_run, new_version, python

LOAD = """
import sys, mlflow
mlflow.set_tracking_uri(sys.argv[1])
mlflow.pyfunc.load_model(f"models:/{sys.argv[2]}@champion")
print("loaded")
"""


@pytest.fixture(scope="module")
def crowd(tmp_path_factory):
    """Four processes that start their first run in the same new store and register the same package."""
    store = str(tmp_path_factory.mktemp("crowd") / "store")
    code = """
import sys
from dml.registry import catalog
from tests.registry.parts import new_package, new_run
store, identity = sys.argv[1:]
run = new_run(store, "crowd", identity)
print(run.id, catalog.register(store, run, "crowd", new_package(store, 1), {"recall_at_1": 0.5}))
"""
    processes = [python(code, store, identity) for identity in ("a", "b", "c", "a")]
    results = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    return store, results


@pytest.mark.slow
def test_the_first_runs_of_several_processes_share_a_new_database(crowd):
    _, results = crowd
    assert [status for _, _, status in results] == [0, 0, 0, 0], "\n".join(err for _, err, _ in results)
    runs = [out.split()[0] for out, _, _ in results]
    assert runs[0] == runs[3], "the same identity continues the same run"
    assert len(set(runs)) == 3


@pytest.mark.slow
def test_one_package_that_several_register_at_once_is_one_version(crowd):
    store, results = crowd
    assert {out.split()[1] for out, _, _ in results} == {"crowd/1"}
    assert [str(model) for model in catalog.list_models(store)] == ["crowd/1"]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store with a champion."""
    store = str(tmp_path_factory.mktemp("original") / "store")
    apply_gate(store, new_version(store, "shop", 1, 0.5), GateConfig(), None)
    return store


def content_of(folder: Path) -> dict[str, str]:
    return {
        str(file.relative_to(folder)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_a_copied_store_works_without_the_original_and_never_writes_to_it(original, tmp_path):
    before = content_of(Path(original))
    copy = str(shutil.copytree(original, tmp_path / "elsewhere" / "copy"))
    hidden = Path(original).rename(Path(original).with_name("hidden"))
    try:
        model = catalog.find_model(copy, "shop")
        assert model.package.uri.startswith(copy)
        loaded = python(LOAD, tracking_uri(copy), "shop")
        assert loaded.communicate(timeout=120)[0].strip() == "loaded"
        assert str(new_version(copy, "shop", 2, 0.6)) == "shop/2"
        assert not Path(original).exists(), "nothing is written to the former location"
    finally:
        hidden.rename(original)
    second = new_version(copy, "shop", 3, 0.7)
    assert str(second) == "shop/3"
    assert content_of(Path(original)) == before
    assert not any(original in line for line in texts_of(copy))


def texts_of(store: str) -> list[str]:
    """Every text in the database, except the tag that holds the store a version was registered from."""
    with sqlite3.connect(f"{store}/mlflow.db") as database:
        return [line for line in database.iterdump() if "dml.store" not in line]


def test_addresses_are_right_after_each_move_of_a_store(original, tmp_path):
    first, second = tmp_path / "store", tmp_path / "store" / "store"
    shutil.copytree(original, first)
    for location, previous in [(first, None), (second, first), (first, second)]:
        if previous is not None:
            temporary = shutil.move(previous, tmp_path / "temporary")
            shutil.rmtree(first, ignore_errors=True)
            location.parent.mkdir(exist_ok=True)
            shutil.move(temporary, location)
        with prepared_database(location / "mlflow.db"), sqlite3.connect(location / "mlflow.db") as database:
            addresses = [row[0] for row in database.execute("SELECT artifact_uri FROM runs")]
            assert all(Path(address).parents[1] == location / "mlflow-artifacts" for address in addresses)
            assert addresses


@pytest.mark.parametrize("name", ["100% wool #2", "%41?ö' \"%20"])
def test_special_characters_in_a_stores_path_are_supported(tmp_path, name):
    store = str(tmp_path / "parent" / name)
    apply_gate(store, new_version(store, "shop", 1, 0.5), GateConfig(), None)
    assert catalog.find_champion(store, "shop").package.uri.startswith(store)
    assert [entry.name for entry in (tmp_path / "parent").iterdir()] == [name]
    assert sqlite_file(tracking_uri(store)) == local_folder(store) / "mlflow.db"
    loaded = python(LOAD, tracking_uri(store), "shop")
    out, err = loaded.communicate(timeout=120)
    assert out.strip() == "loaded", err


def test_an_unfinished_database_of_a_killed_process_is_removed(tmp_path):
    store = str(tmp_path)
    half, others = tmp_path / f".mlflow.db.{'0' * 32}", tmp_path / ".mlflow.db.backup"
    half.write_bytes(b"half of it")
    others.write_bytes(b"mine")
    new_run(store, "shop", "a")
    assert not half.exists()
    assert others.read_bytes() == b"mine"


def test_a_damaged_database_is_reported_with_its_file(tmp_path):
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(CorruptArtifact, match=str(file)):
        connect(sqlite_uri(file))


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    code = """
import os, sys, pathlib
from dml.storage import exclusive
with exclusive(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    os.kill(os.getpid(), 9)
"""
    process = python(code, str(tmp_path / "lock"))
    assert process.communicate(timeout=60)[0] == "held\n"
    with exclusive(tmp_path / "lock"):
        pass
