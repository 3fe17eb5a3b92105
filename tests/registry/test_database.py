"""MLflow's own database in a store: made by one of many processes, and valid wherever the store lies."""

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
from dml.registry.database import first_contact, sqlite_file
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
    """Four processes whose first run is on the same new store, and who all register the same package."""
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
    said = [(*process.communicate(timeout=300), process.returncode) for process in processes]
    return store, said


@pytest.mark.slow
def test_the_first_runs_of_several_processes_share_a_new_database(crowd):
    _, said = crowd
    assert [status for _, _, status in said] == [0, 0, 0, 0], "\n".join(err for _, err, _ in said)
    runs = [out.split()[0] for out, _, _ in said]
    assert runs[0] == runs[3], "the same identity continues the same run"
    assert len(set(runs)) == 3


@pytest.mark.slow
def test_one_package_that_several_register_at_once_is_one_version(crowd):
    store, said = crowd
    assert {out.split()[1] for out, _, _ in said} == {"crowd/1"}
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


def test_a_copied_store_is_whole_without_the_original_and_never_touches_it(original, tmp_path):
    before = content_of(Path(original))
    copy = str(shutil.copytree(original, tmp_path / "elsewhere" / "copy"))
    hidden = Path(original).rename(Path(original).with_name("hidden"))
    try:
        model = catalog.find_model(copy, "shop")
        assert model.package.uri.startswith(copy)
        loaded = python(LOAD, tracking_uri(copy), "shop")
        assert loaded.communicate(timeout=120)[0].strip() == "loaded"
        assert str(new_version(copy, "shop", 2, 0.6)) == "shop/2"
        assert not Path(original).exists(), "nothing is written to where the store was"
    finally:
        hidden.rename(original)
    second = new_version(copy, "shop", 3, 0.7)
    assert str(second) == "shop/3"
    assert content_of(Path(original)) == before
    assert not any(original in line for line in texts_of(copy))


def texts_of(store: str) -> list[str]:
    """Every text in the database, the tag aside that says where a version was registered."""
    with sqlite3.connect(f"{store}/mlflow.db") as database:
        return [line for line in database.iterdump() if "dml.store" not in line]


def test_a_store_moved_below_where_it_was_and_back_is_right_each_time(original, tmp_path):
    first, second = tmp_path / "store", tmp_path / "store" / "store"
    shutil.copytree(original, first)
    for here, there in [(first, None), (second, first), (first, second)]:
        if there is not None:
            aside = shutil.move(there, tmp_path / "aside")
            shutil.rmtree(first, ignore_errors=True)
            here.parent.mkdir(exist_ok=True)
            shutil.move(aside, here)
        with first_contact(here / "mlflow.db"), sqlite3.connect(here / "mlflow.db") as database:
            addresses = [row[0] for row in database.execute("SELECT artifact_uri FROM runs")]
            assert all(Path(address).parents[1] == here / "mlflow-artifacts" for address in addresses)
            assert addresses


@pytest.mark.parametrize("name", ["100% wool #2", "%41?ö' \"%20"])
def test_whatever_a_stores_path_holds_everything_is_in_it(tmp_path, name):
    store = str(tmp_path / "here" / name)
    apply_gate(store, new_version(store, "shop", 1, 0.5), GateConfig(), None)
    assert catalog.find_champion(store, "shop").package.uri.startswith(store)
    assert [entry.name for entry in (tmp_path / "here").iterdir()] == [name]
    assert sqlite_file(tracking_uri(store)) == local_folder(store) / "mlflow.db"
    loaded = python(LOAD, tracking_uri(store), "shop")
    out, err = loaded.communicate(timeout=120)
    assert out.strip() == "loaded", err


def test_a_process_killed_while_the_tables_were_made_leaves_nothing_half_made(tmp_path):
    store = str(tmp_path)
    half, others = tmp_path / f".mlflow.db.{'0' * 32}", tmp_path / ".mlflow.db.backup"
    half.write_bytes(b"half of it")
    others.write_bytes(b"mine")
    new_run(store, "shop", "a")
    assert not half.exists()
    assert others.read_bytes() == b"mine"


def test_a_damaged_database_is_named(tmp_path):
    file = tmp_path / "mlflow.db"
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(CorruptArtifact, match=str(file)):
        connect(sqlite_uri(file))


def test_a_lock_outlives_no_process(tmp_path):
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
