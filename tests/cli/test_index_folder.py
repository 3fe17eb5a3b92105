"""`dml index FOLDER --embedder ...`: from photos to an index in one command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dml.cli.datasets import ingest_place, is_place
from dml.config import IngestConfig
from dml.data.dataset import find_dataset
from dml.data.ingest import ingest
from dml.embedding.external import import_vectors
from dml.errors import InvalidData, InvalidSetting, MissingArtifact
from tests.data.pictures import class_folders, picture

FUNCTION = """
import numpy as np

def embed(images):
    return np.stack([np.resize(image, (8, 8, 3)).reshape(-1) for image in images]).astype("float32")
"""


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return class_folders(tmp_path / "My Photos", classes=6)


@pytest.fixture
def store(tmp_path):
    return str(tmp_path / "store")


def ingest_folder(store, place, *, has_embedder=True):
    return ingest_place(store, str(place), has_embedder=has_embedder, num_workers=1)


@pytest.mark.slow
def test_one_command_makes_an_index_of_a_folder_that_finds_its_photos(photos, store, tmp_path):
    (tmp_path / "small.py").write_text(FUNCTION)
    command = [sys.executable, "-m", "dml.cli"]
    index = [*command, "index", "My Photos", "--embedder", "python:small:embed", "--store", store]
    environment = {
        "PYTHONPATH": f"{Path(__file__).parents[2]}:{tmp_path}",
        "PATH": "/usr/bin:/bin",
        "DML_CACHE": str(tmp_path / "cache"),
    }
    done = subprocess.run(index, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "ingesting My Photos as the dataset my-photos" in done.stderr
    assert done.stdout.startswith("my-photos@")
    query = [*command, "search", "My Photos/class2/3.png", "--index", "my-photos", "--store", store, "--json"]
    found = subprocess.run(query, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["answers"][0]["id"] == "class2/3.png"


def test_the_dataset_is_named_after_the_folder_and_takes_in_what_is_new_there(photos, store, capsys):
    assert ingest_folder(store, photos) == "my-photos"
    assert "ingesting" in capsys.readouterr().err
    before = find_dataset(store, "my-photos")
    (photos / "class0" / "new.png").write_bytes(picture(777))
    assert ingest_folder(store, photos, has_embedder=False) == "my-photos"  # it has a model by now
    assert find_dataset(store, "my-photos").rows == before.rows + 1


def test_what_was_said_of_the_split_before_still_holds(photos, store):
    ingest(IngestConfig(name="my-photos", source=str(photos), split={"kind": "none"}), store)
    ingest_folder(store, photos)
    assert set(find_dataset(store, "my-photos").splits) == {"train"}


def test_a_folder_called_as_a_dataset_of_another_source_is_refused(photos, store):
    ingest(IngestConfig(name="my-photos", source="glyphs:classes=4,per_class=3"), store)
    with pytest.raises(InvalidSetting, match=r"another source, glyphs:.*dml ingest .* --name OTHER"):
        ingest_folder(store, photos)


def test_a_new_folder_without_anything_that_embeds_is_refused_before_it_is_read(photos, store):
    with pytest.raises(InvalidSetting, match=r"--embedder timm:resnet50; or train one"):
        ingest_folder(store, photos, has_embedder=False)
    assert not Path(store).exists()


def test_a_name_of_the_store_is_that_and_not_the_folder_and_says_so(photos, store, tmp_path, capsys):
    (tmp_path / "shop").mkdir()
    assert is_place(store, "shop")
    ingest(IngestConfig(name="shop", source="glyphs:classes=4,per_class=3"), store)
    assert not is_place(store, "shop")
    assert "dml index ./shop reads it" in capsys.readouterr().err
    assert not is_place(store, "shop@0123456789ab")
    assert is_place(store, "./shop")
    assert not is_place(store, "nothing-of-the-kind")


@pytest.mark.parametrize("place", ["no/where", "Photos", "./none.zip"])
def test_a_place_where_nothing_is_is_named(photos, store, place):
    assert is_place(store, place)
    with pytest.raises(MissingArtifact, match=f"there is no {place}"):
        ingest_folder(store, place)


def test_a_dataset_cannot_take_the_name_of_imported_vectors(photos, store, tmp_path):
    import numpy as np

    np.save(tmp_path / "v.npy", np.eye(4, dtype=np.float32))
    import_vectors(store, "my-photos", tmp_path / "v.npy")
    with pytest.raises(InvalidSetting, match="'my-photos' is that of imported vectors"):
        ingest_folder(store, photos)


def test_a_folder_whose_name_gives_no_dataset_name_is_refused_with_the_command_that_names_it(photos, store):
    folder = photos.rename(photos.parent / "日本")
    with pytest.raises(InvalidSetting, match=rf"Give one: dml ingest {folder} --name NAME, then dml index"):
        ingest_folder(store, folder)


def test_a_folder_of_one_class_is_refused_with_the_command_that_takes_a_split(tmp_path, store):
    folder = class_folders(tmp_path / "one", classes=1)
    with pytest.raises(InvalidData, match="choose another, dml ingest SOURCE --split"):
        ingest_folder(store, folder)
