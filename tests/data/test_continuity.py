"""A folder that cannot be listed is not taken for removed, and marked items not for others with new ids."""

import os
import shutil
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet

from dml.config import IngestConfig, NoSplit
from dml.data.corrections import correct_label
from dml.data.dataset import find_dataset, read_images
from dml.data.forgotten import add_forgotten
from dml.data.ingest import ingest_source
from dml.errors import IncompatibleArtifact, InvalidData
from tests.data.pictures import class_folders, picture, write


def taken_in(source: Path, store: Path, **settings):
    config = IngestConfig(name="d", source=str(source), split=NoSplit(), **settings)
    return ingest_source(config, str(store))


def images(store: Path) -> list[bytes]:
    ref = find_dataset(str(store), "d")
    return read_images(ref, range(ref.rows))


@pytest.fixture
def mounted(tmp_path):
    """Class folders of which one is a link to another disk, and that disk."""
    source = class_folders(tmp_path / "source", classes=30, per_class=2)
    disk = shutil.move(source / "class3", tmp_path / "disk")
    (source / "class3").symlink_to(disk)
    return source, Path(disk)


def test_images_below_a_folder_that_cannot_be_listed_are_not_taken_for_removed(mounted, tmp_path):
    source, disk = mounted
    first = taken_in(source, tmp_path / "store", allowed_prefixes=(str(tmp_path),)).dataset
    disk.rename(tmp_path / "unmounted")
    with pytest.raises(InvalidData, match=r"2 images are below such as are not: 'class3', broken link"):
        taken_in(source, tmp_path / "store", allowed_prefixes=(str(tmp_path),))
    assert find_dataset(str(tmp_path / "store"), "d") == first
    (source / "class3").unlink()
    removed = taken_in(source, tmp_path / "store", allowed_prefixes=(str(tmp_path),))
    assert removed.changes.removed == 2


def test_a_folder_that_was_never_listed_goes_to_quarantine(mounted, tmp_path):
    source, disk = mounted
    disk.rename(tmp_path / "unmounted")
    report = taken_in(source, tmp_path / "store")
    assert [refusal.reason for refusal in report.refused] == ["broken link"]


def test_a_folder_is_found_also_where_outer_folders_are_no_part_of_the_ids(mounted, tmp_path):
    source, disk = mounted
    (tmp_path / "outer" / "data").mkdir(parents=True)
    source.rename(tmp_path / "outer" / "data" / "photos")
    settings = {"allowed_prefixes": (str(tmp_path),)}
    taken_in(tmp_path / "outer", tmp_path / "store", **settings)
    disk.rename(tmp_path / "unmounted")
    with pytest.raises(InvalidData, match="'data/photos/class3'"):
        taken_in(tmp_path / "outer", tmp_path / "store", **settings)


def test_a_forgotten_item_does_not_return_under_an_id_with_another_outer_folder(tmp_path):
    source, store = tmp_path / "source", tmp_path / "store"
    class_folders(source / "cats")
    taken_in(source, store)
    add_forgotten(str(store), "d", ["class0/0.png"])
    taken_in(source, store)
    write(source, {"dogs/x/1.png": picture(999)})
    with pytest.raises(IncompatibleArtifact, match="1 forgotten items are known by them; 19 would have"):
        taken_in(source, store)
    assert picture(0) not in images(store)
    shutil.rmtree(source / "dogs")
    assert taken_in(source, store).outcome == "current"


def test_a_corrected_item_keeps_its_id_where_an_outer_folder_is_lost(tmp_path):
    source, store = tmp_path / "source", tmp_path / "store"
    class_folders(source / "cats")
    write(source, {"dogs/x/1.png": picture(999)})
    taken_in(source, store)
    correct_label(str(store), "d", "cats/class0/1.png", "cats/class1", who="me")
    shutil.rmtree(source / "dogs")
    with pytest.raises(IncompatibleArtifact, match="1 corrected items are known by them"):
        taken_in(source, store)


def table_of(path: Path, numbers: list[int]) -> Path:
    content = {"image": [picture(n) for n in numbers], "label": [f"c{n % 4}" for n in numbers]}
    parquet.write_table(pa.table(content), path)
    return path


def test_a_forgotten_row_of_a_table_without_ids_does_not_return_when_rows_move(tmp_path):
    table, store = table_of(tmp_path / "m.parquet", list(range(12))), tmp_path / "store"
    taken_in(table, store)
    add_forgotten(str(store), "d", ["row-00000005"])
    taken_in(table, store)
    assert picture(5) not in images(store)
    table_of(table, [*range(12), 12])
    assert taken_in(table, store).changes.added == 1
    table_of(table, [100, *range(12)])
    with pytest.raises(IncompatibleArtifact, match="numbers of rows, of which 12 have another image"):
        taken_in(table, store)
    assert picture(5) not in images(store)


def replaced(path: Path, content: bytes) -> None:
    """Replace a file, so that neither size nor mtime show it."""
    status = path.stat()
    assert len(content) == status.st_size
    path.with_name("other").write_bytes(content)
    path.with_name("other").rename(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def of_one_size(seed: int) -> bytes:
    return picture(seed, form="BMP")


def test_a_table_of_images_that_was_replaced_is_read_from_the_new_file_in_the_same_process(tmp_path):
    def table(path: Path, seeds: list[int]) -> Path:
        content = {"image": list(map(of_one_size, seeds)), "label": ["x", "y", "x", "y"]}
        parquet.write_table(pa.table(content), path, compression="NONE", use_dictionary=False)
        return path

    source = table(tmp_path / "m.parquet", [0, 1, 2, 3])
    taken_in(source, tmp_path / "store")
    replaced(source, table(tmp_path / "new.parquet", [0, 1, 7, 3]).read_bytes())
    assert taken_in(source, tmp_path / "store").changes.changed == 1
    assert of_one_size(7) in images(tmp_path / "store")


def test_a_zip_that_was_replaced_is_read_from_the_new_file_in_the_same_process(tmp_path):
    def zipped(path: Path, seeds: list[int]) -> Path:
        with zipfile.ZipFile(path, "w") as archive:
            for number, seed in enumerate(seeds):
                archive.writestr(f"class{number % 2}/{number}.bmp", of_one_size(seed))
        return path

    source = zipped(tmp_path / "photos.zip", [0, 1, 2, 3])
    taken_in(source, tmp_path / "store")
    replaced(source, zipped(tmp_path / "new.zip", [0, 1, 7, 3]).read_bytes())
    assert taken_in(source, tmp_path / "store").changes.changed == 1
    assert of_one_size(7) in images(tmp_path / "store")
