"""What the environment decides: the store, and where MLflow's database and artefacts lie."""

import sqlite3
from pathlib import Path

import pytest

from dml import settings, storage
from dml.errors import InvalidSetting


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("DML_STORE", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)


def test_the_store_is_the_given_one_else_the_environments_else_a_folder_here(monkeypatch, tmp_path):
    assert settings.store_uri() == str(tmp_path / "dml-store")
    monkeypatch.setenv("DML_STORE", "s3://bucket/store/")
    assert settings.store_uri() == "s3://bucket/store"
    assert settings.store_uri("other") == str(tmp_path / "other")


def test_a_store_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidSetting, match=r"A store must be a folder .* is a file"):
        settings.store_uri("file")


def test_mlflow_is_the_configured_one_else_a_database_in_the_store(monkeypatch, tmp_path):
    assert settings.tracking_uri(str(tmp_path / "s")) == f"sqlite:///{tmp_path}/s/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert settings.tracking_uri(str(tmp_path / "s")) == "http://host:5000"
    assert settings.store_tracking_uri(str(tmp_path / "s")) == f"sqlite:///{tmp_path}/s/mlflow.db"


def test_there_can_be_models_where_a_database_or_a_server_is_and_on_s3(monkeypatch, tmp_path):
    store = tmp_path / "s"
    assert not settings.has_registry(str(store))
    assert not store.exists(), "to look makes no store"
    assert settings.has_registry("s3://bucket/store")
    store.mkdir()
    (store / "mlflow.db").touch()
    assert settings.has_registry(str(store))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://host:5000")
    assert settings.has_registry(str(tmp_path / "elsewhere"))


@pytest.mark.parametrize("name", ["plain.db", "a b.db", "is it?.db"])
def test_the_uri_of_a_database_leads_to_it_whatever_its_path_holds(tmp_path, name):
    from sqlalchemy import create_engine, text

    engine = create_engine(settings.sqlite_uri(tmp_path / name))
    with engine.begin() as connection:
        connection.execute(text("create table t (x)"))
    engine.dispose()
    assert sqlite3.connect(tmp_path / name).execute("select name from sqlite_master").fetchall() == [("t",)]


def test_local_files_are_in_the_store_or_for_a_remote_one_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("DML_CACHE", str(tmp_path / "cache"))
    assert settings.local_folder(str(tmp_path / "s")) == tmp_path / "s"
    storage.require_store(str(tmp_path / "s"))
    one, other = (settings.local_folder(f"s3://bucket/{name}") for name in "ab")
    assert one.parent == other.parent == tmp_path / "cache" / "stores"
    assert one != other
    assert one.is_dir()
    assert len(one.name) == 12


def test_artefacts_are_in_the_store_and_mlflow_reads_their_path_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setenv("DML_CACHE", str(tmp_path / "cache"))
    assert settings.artifact_root("s3://bucket/a%41") == "s3://bucket/a%41/mlflow-artifacts"
    assert settings.artifact_root(str(tmp_path / "50%")) == f"{tmp_path}/50%/mlflow-artifacts"
    escaped = tmp_path / "a%41"
    for _ in range(2):  # the link may be there already
        root = Path(settings.artifact_root(str(escaped)))
        assert "%" not in str(root)
        assert root.parent.resolve() == escaped
