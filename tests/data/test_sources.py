"""Every layout is recognised by its files and read as its field reads it."""

import gzip
import pickle
import re
import resource
import shutil
import struct
import time
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from pyarrow import csv, parquet
from scipy.io import savemat

from dml import storage
from dml.config import AttributeSplit, ClassSplit, EvaluationConfig, IngestConfig, OfficialSplit
from dml.data.evaluable import require_evaluable
from dml.data.ingest import ingest
from dml.data.sources.detect import open_source
from dml.data.sources.glyphs import GlyphsSource, distinct_characters
from dml.data.sources.sample import LEFT_OUT
from dml.errors import InvalidData, InvalidSetting, MissingArtifact
from dml.preprocessing import decode
from dml.progress import Ticker
from tests.data.pictures import class_folders, picture, write


def zipped(folder, target):
    with zipfile.ZipFile(target, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, path.relative_to(folder.parent))
    return target


def by_id(source):
    return {sample.id: sample for sample in source.list().samples}


def test_class_folders_may_be_nested_and_hidden_files_do_not_count(tmp_path):
    write(
        tmp_path,
        {
            "birds/owl/1.jpg": picture(form="JPEG"),
            "birds/owl/.DS_Store": b"x",
            "__MACOSX/birds/owl/1.jpg": b"x",
            "cat/2.PNG": picture(),
            "cat/notes.txt": b"x",
            "readme.md": b"x",
            "lost.png": picture(),
        },
    )
    (tmp_path / "empty" / "deeper").mkdir(parents=True)
    listing = open_source(str(tmp_path)).list()
    assert {s.id: s.label for s in listing.samples} == {
        "birds/owl/1.jpg": "birds/owl",
        "cat/2.PNG": "cat",
        "lost.png": "",
    }
    assert {(p.reason, p.locator) for p in listing.problems} == {
        ("another kind of file", "cat/notes.txt"),
        ("empty class", "empty/deeper"),
    }


def test_a_zip_and_its_folder_are_the_same_source(tmp_path):
    folder = class_folders(tmp_path / "data")
    from_zip, from_folder = open_source(str(zipped(folder, tmp_path / "d.zip"))), open_source(str(folder))
    assert {id_: s.label for id_, s in by_id(from_zip).items()} == {
        id_: s.label for id_, s in by_id(from_folder).items()
    }
    assert by_id(from_zip)["class1/2.png"].locator == "data/class1/2.png"
    assert from_zip.read("data/class1/2.png") == from_folder.read("class1/2.png")
    assert pickle.loads(pickle.dumps(from_zip)).read("data/class1/2.png") == from_folder.read("class1/2.png")


def test_folders_train_and_test_are_the_split_and_no_part_of_the_label(tmp_path):
    write(tmp_path, {"train/cat/1.png": picture(1), "test/dog/2.png": picture(2), "readme.txt": b"x"})
    listing = open_source(str(tmp_path)).list()
    assert [(s.id, s.label, s.split) for s in listing.samples] == [
        ("test/dog/2.png", "dog", "test"),
        ("train/cat/1.png", "cat", "train"),
    ]
    assert listing.split == OfficialSplit()


def test_a_zip_of_one_class_keeps_its_label(tmp_path):
    folder = write(tmp_path / "cat", {"1.png": picture(1), "2.png": picture(2)})
    assert {s.label for s in open_source(str(zipped(folder, tmp_path / "z.zip"))).list().samples} == {"cat"}


def test_omniglot_ids_do_not_depend_on_how_it_is_packed(tmp_path):
    files = {
        f"images_background/{alphabet}/character0{c}/0{c}_0{i}.png": picture(i)
        for alphabet in ("Latin", "Greek")
        for c in (1, 2)
        for i in (1, 2)
    }
    folder = write(tmp_path / "omniglot", files)
    source = open_source(str(folder))
    samples = by_id(source)
    assert samples["Latin/character02/02_01"].label == "Latin/character02"
    assert samples["Latin/character02/02_01"].attributes == {"alphabet": "Latin"}
    assert source.list().split == AttributeSplit(name="alphabet", test_values=10)
    assert {sample.split for sample in samples.values()} == {None}, "one half has no official split"
    assert set(by_id(open_source(str(folder / "images_background")))) == set(samples)
    assert set(by_id(open_source(str(zipped(folder, tmp_path / "o.zip"))))) == set(samples)


CARS = ["AM General Hummer SUV 2000", "Jaguar XK XKR 2012", "Ford F-150 Regular Cab 2007"]


def annotations(rows, names):
    """A struct array as the devkit's."""
    kind = [(name, object) for name in names]
    return np.array([tuple(row) for row in rows], dtype=kind)


def cars_class_names():
    names = [f"Make Model{number} Sedan {1990 + number % 20}" for number in range(1, 197)]
    names[:3] = CARS
    return np.array(names, dtype=object)


def test_cars196_is_read_from_its_devkit(tmp_path):
    write(
        tmp_path,
        {
            f"{half}/0000{i}.jpg": picture(i, form="JPEG")
            for half in ("cars_train", "cars_test")
            for i in (1, 2, 3)
        },
    )
    devkit = tmp_path / "devkit"
    devkit.mkdir()
    fields = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "fname")
    train = annotations([(1, 1, 5, 5, 1, "00001.jpg"), (1, 1, 5, 5, 99, "00002.jpg")], fields)
    test = annotations([(1, 1, 5, 5, 98, "00001.jpg"), (1, 1, 5, 5, 99, "00009.jpg")], fields)
    savemat(devkit / "cars_meta.mat", {"class_names": cars_class_names()})
    savemat(devkit / "cars_train_annos.mat", {"annotations": train})
    savemat(devkit / "cars_test_annos_withlabels.mat", {"annotations": test})
    listing = open_source(str(tmp_path)).list()
    assert [(s.id, s.split) for s in listing.samples] == [
        ("cars_train/00001.jpg", "train"),
        ("cars_train/00002.jpg", "test"),
        ("cars_test/00001.jpg", "train"),
    ]
    assert listing.samples[0].label == "AM General Hummer SUV 2000"
    assert listing.samples[0].attributes == {"make": "AM General", "body": "SUV", "year": 2000}
    assert [(p.reason, p.id) for p in listing.problems] == [
        ("missing file", "cars_test/00009.jpg"),
        ("missing label", "cars_test/00002.jpg"),
        ("missing label", "cars_test/00003.jpg"),
        ("missing label", "cars_train/00003.jpg"),
    ]
    assert listing.split == OfficialSplit()


def test_cars196_is_read_from_its_whole_form(tmp_path):
    write(tmp_path, {f"car_ims/00000{i}.jpg": picture(i, form="JPEG") for i in (1, 2)})
    fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    rows = [("car_ims/000001.jpg", 1, 1, 5, 5, 2, 0), ("car_ims/000002.jpg", 1, 1, 5, 5, 196, 1)]
    matrix = {"annotations": annotations(rows, fields), "class_names": cars_class_names()}
    savemat(tmp_path / "cars_annos.mat", matrix)
    listing = open_source(str(tmp_path)).list()
    assert [(s.label, s.split) for s in listing.samples] == [
        ("Jaguar XK XKR 2012", "train"),
        (cars_class_names()[195], "test"),
    ]
    assert listing.samples[0].attributes == {"make": "Jaguar", "body": None, "year": 2012}


def test_a_damaged_list_of_cars_is_refused_for_what_its_reader_says(tmp_path):
    (tmp_path / "cars_annos.mat").write_bytes(b"x" * 999)
    with pytest.raises(InvalidData, match="it is not: ValueError: Unknown mat file type"):
        open_source(str(tmp_path)).list()


@pytest.mark.parametrize("damage", ["cut", "text", "types", "nothing"])
def test_a_damaged_list_of_cars_is_refused_and_runs_no_code(tmp_path, damage):
    fields = ("relative_im_path", "class")
    rows = [("car_ims/000001.jpg", 2), ("car_ims/000002.jpg", 196)]
    path = tmp_path / "cars_annos.mat"
    savemat(path, {"annotations": annotations(rows, fields), "class_names": cars_class_names()})
    content = bytearray(path.read_bytes())
    if damage == "types":  # with these, the reader ends its process
        for place in range(128, len(content), 8):
            content[place] = 0x0E
    path.write_bytes({"cut": content[:200], "text": b"x" * 999, "types": content, "nothing": b""}[damage])
    with pytest.raises(InvalidData, match="Download it again"):
        open_source(str(tmp_path)).list()


def test_cub200_is_read_by_its_lists(tmp_path):
    root = tmp_path / "CUB_200_2011"
    write(
        root,
        {
            "images.txt": "1 001.Albatross/a.jpg\n2 101.Pelican/b.jpg\n3 101.Pelican/lost.jpg\n",
            "image_class_labels.txt": "1 1\n2 101\n3 101\n",
            "classes.txt": "1 001.Albatross\n101 101.Pelican\n",
            "images/001.Albatross/a.jpg": picture(form="JPEG"),
            "images/101.Pelican/b.jpg": picture(1, form="JPEG"),
        },
    )
    for uri in (tmp_path, root):
        listing = open_source(str(uri)).list()
        assert [(s.id, s.label, s.split) for s in listing.samples] == [
            ("001.Albatross/a.jpg", "001.Albatross", "train"),
            ("101.Pelican/b.jpg", "101.Pelican", "test"),
        ]
        assert [p.reason for p in listing.problems] == ["missing file"]


MARKET = {
    "bounding_box_train/0002_c1s1_000451_03.jpg": ("0002", "train", "c1", None),
    "bounding_box_train/0002_c2s1_000301_01.jpg": ("0002", "train", "c2", None),
    "bounding_box_test/0000_c3s2_000001_00.jpg": ("0000", "test", "c3", "gallery"),
    "bounding_box_test/0007_c1s1_000002_01.jpg": ("0007", "test", "c1", "gallery"),
    "bounding_box_test/0007_c2s1_000002_01.jpg": ("0007", "test", "c2", "gallery"),
    "bounding_box_test/0009_c4s1_000002_01.jpg": ("0009", "test", "c4", "gallery"),
    "query/0007_c1s1_000002_00.jpg": ("0007", "test", "c1", "query"),
    "query/0009_c5s1_000002_00.jpg": ("0009", "test", "c5", "query"),
}


def market1501(root: Path) -> Path:
    files = [*MARKET, "bounding_box_test/-1_c1s1_000001_00.jpg", "gt_query/0007_c1s1_000002_00_good.mat"]
    content = {name: picture(number, form="JPEG") for number, name in enumerate(files)}
    return write(root, {**content, "query/Thumbs.db": b"x", "readme.txt": "Market-1501"})


def test_market_1501_is_read_by_its_file_names(tmp_path):
    root = market1501(tmp_path / "Market-1501-v15.09.15")
    for uri in (tmp_path, root):
        listing = open_source(str(uri)).list()
        assert {
            s.id: (s.label, s.split, s.attributes["camera"], s.attributes["role"]) for s in listing.samples
        } == MARKET
        assert [(p.id, p.reason) for p in listing.problems] == [
            ("bounding_box_test/-1_c1s1_000001_00.jpg", LEFT_OUT)
        ]


def test_market_1501_is_ingested_and_can_be_evaluated_by_its_protocol(tmp_path):
    source = str(market1501(tmp_path / "market"))
    dataset = ingest(IngestConfig(name="market", source=source), str(tmp_path / "store"))
    assert (dataset.splits["train"].rows, dataset.splits["test"].rows, dataset.quarantined) == (2, 6, 1)
    require_evaluable(dataset, EvaluationConfig(role_attribute="role", same_camera_attribute="camera"))


def in_shop(root: Path, images: str) -> Path:
    lines = [
        "img/WOMEN/Dresses/id_00000001/01_1_front.jpg id_00000001 train",
        "img/WOMEN/Dresses/id_00000001/01_2_side.jpg id_00000001 train",
        "img/MEN/Denim/id_00000002/01_1_front.jpg id_00000002 query",
        "img/MEN/Denim/id_00000002/02_1_front.jpg id_00000002 gallery",
        "img/MEN/Denim/id_00000002/03_lost.jpg id_00000002 gallery",
    ]
    listed = "5\nimage_name item_id evaluation_status\n" + "\n".join(lines) + "\n"
    paths = [line.split()[0] for line in lines[:-1]]
    write(root, {f"{images}{path}": picture(n, form="JPEG") for n, path in enumerate(paths)})
    return write(root, {"Eval/list_eval_partition.txt": listed})


@pytest.mark.parametrize("images", ["", "Img/", "Eval/"])
def test_in_shop_is_read_by_its_list_wherever_the_images_were_unpacked(tmp_path, images):
    source = open_source(str(in_shop(tmp_path / "in_shop", images)))
    listing = source.list()
    assert [
        (s.label, s.split, s.attributes["role"], s.attributes["department"], s.attributes["category"])
        for s in listing.samples
    ] == [
        ("id_00000001", "train", None, "WOMEN", "Dresses"),
        ("id_00000001", "train", None, "WOMEN", "Dresses"),
        ("id_00000002", "test", "query", "MEN", "Denim"),
        ("id_00000002", "test", "gallery", "MEN", "Denim"),
    ]
    assert [p.id for p in listing.problems] == ["img/MEN/Denim/id_00000002/03_lost.jpg"]
    assert source.read(listing.samples[2].locator) == picture(2, form="JPEG")


def test_a_list_of_in_shop_that_says_something_else_is_refused(tmp_path):
    write(tmp_path, {"list_eval_partition.txt": "1\nimage item status\nimg/a.jpg id_1 validation\n"})
    with pytest.raises(InvalidData, match=r"train, query, gallery.*validation"):
        open_source(str(tmp_path)).list()


def test_stanford_online_products_is_read_by_its_lists(tmp_path):
    header = "image_id class_id super_class_id path\n"
    write(
        tmp_path / "Stanford_Online_Products",
        {
            "Ebay_train.txt": header + "1 1 1 bicycle_final/111_0.JPG\n2 1 1 bicycle_final/111_1.JPG\n",
            "Ebay_test.txt": header + "59552 11319 5 coffee_maker_final/222_0.JPG\n",
            "bicycle_final/111_0.JPG": picture(form="JPEG"),
            "coffee_maker_final/222_0.JPG": picture(1, form="JPEG"),
        },
    )
    source = open_source(str(tmp_path))
    listing = source.list()
    assert [(s.label, s.split, s.attributes["super_class"]) for s in listing.samples] == [
        ("bicycle/1", "train", "bicycle"),
        ("coffee_maker/11319", "test", "coffee_maker"),
    ]
    assert [p.id for p in listing.problems] == ["bicycle_final/111_1.JPG"]
    assert source.read(listing.samples[0].locator) == picture(form="JPEG")


def idx(array):
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


@pytest.mark.parametrize("pack", [gzip.compress, bytes])
def test_mnist_is_read_from_idx_files(tmp_path, pack):
    ending = ".gz" if pack is gzip.compress else ""
    images = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    labels = np.array([7, 0, 3, 3, 9], dtype=np.uint8)
    write(
        tmp_path,
        {
            f"train-images-idx3-ubyte{ending}": pack(idx(images)),
            f"train-labels-idx1-ubyte{ending}": pack(idx(labels)),
            f"t10k-images-idx3-ubyte{ending}": pack(idx(images[:1])),
        },
    )
    source = open_source(str(tmp_path))
    listing = source.list()
    assert [s.label for s in listing.samples] == ["7", "0", "3", "3", "9"]
    assert {s.attributes["part"] for s in listing.samples} == {"train"}
    assert [p.reason for p in listing.problems] == ["missing file"], "t10k has no labels"
    np.testing.assert_array_equal(np.asarray(decode(source.read(listing.samples[2].locator), "L")), images[2])
    assert listing.split == ClassSplit()


def test_mnists_four_files_are_two_parts_of_the_same_classes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    files = {}
    for prefix, labels in (("train", [0, 1, 2]), ("t10k", [2, 1, 0])):
        files[f"raw/{prefix}-images-idx3-ubyte"] = idx(images)
        files[f"raw/{prefix}-images-idx3-ubyte.gz"] = gzip.compress(idx(images))
        files[f"raw/{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(idx(np.array(labels, np.uint8)))
    listing = open_source(str(write(tmp_path, files))).list()
    assert [(s.id, s.label, s.attributes["part"]) for s in listing.samples] == [
        ("t10k/000000", "2", "test"),
        ("t10k/000001", "1", "test"),
        ("t10k/000002", "0", "test"),
        ("train/000000", "0", "train"),
        ("train/000001", "1", "train"),
        ("train/000002", "2", "train"),
    ]
    assert (listing.split, listing.problems) == (ClassSplit(), [])


def test_the_ids_of_mnists_in_two_folders_begin_with_the_folder(tmp_path):
    one = {
        "train-images-idx3-ubyte": idx(np.zeros((1, 28, 28), np.uint8)),
        "train-labels-idx1-ubyte": idx(np.array([4], np.uint8)),
    }
    write(tmp_path, {f"{folder}/{name}": content for folder in "ab" for name, content in one.items()})
    assert list(by_id(open_source(str(tmp_path)))) == ["a/train/000000", "b/train/000000"]


def test_an_idx_file_that_unpacks_to_more_than_it_says_is_not_unpacked(tmp_path):
    header = struct.pack(">HBB2I", 0, 8, 2, 5, 5)
    bomb = gzip.compress(header + bytes(1 << 28), compresslevel=1)
    files = {"train-images-idx3-ubyte.gz": bomb, "train-labels-idx1-ubyte": idx(np.zeros(5, np.uint8))}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InvalidData, match="got more"):
        open_source(str(write(tmp_path, files))).list()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_a_short_idx_file_is_refused(tmp_path):
    labels = np.zeros(5, dtype=np.uint8)
    write(
        tmp_path,
        {"train-images-idx3-ubyte": idx(labels)[:-2], "train-labels-idx1-ubyte": idx(labels)},
    )
    with pytest.raises(InvalidData, match="Download it again"):
        open_source(str(tmp_path)).list()


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_manifest_names_images_labels_and_typed_attributes(tmp_path, form):
    write(tmp_path, {"pictures/a.png": picture(1), "elsewhere/b.png": picture(2)})
    there = str(tmp_path / "elsewhere" / "b.png")
    columns = {
        "image": ["pictures/a.png", there, f"file://{there}"],
        "label": ["007", "8", ""],
        "id": ["x", "y", "z"],
        "year": [1999, None, 2001],
        "price": [1.5, 2.0, None],
        "sold": [True, False, True],
        "camera": ["left", "right", "left"],
    }
    manifest = tmp_path / f"manifest.{form}"
    if form == "csv":
        csv.write_csv(pa.table(columns), manifest)
    else:
        parquet.write_table(pa.table(columns), manifest)
    source = open_source(str(manifest))
    samples = source.list().samples
    assert [s.label for s in samples] == ["007", "8", ""]
    assert samples[0].attributes == {"year": 1999, "price": 1.5, "sold": True, "camera": "left"}
    assert samples[1].attributes["year"] is None
    assert source.read(samples[0].locator) == picture(1)
    assert source.read(samples[1].locator) == source.read(samples[2].locator) == picture(2)
    assert source.list().split == ClassSplit()


def test_a_manifest_may_bring_its_split_and_ids_default_to_the_image(tmp_path):
    manifest = tmp_path / "m.csv"
    manifest.write_text("image,label,split\na.png,cat,train\nb.png,dog,test\nc.png,dog,val\n,dog,test\n")
    listing = open_source(str(manifest)).list()
    assert [(s.id, s.split) for s in listing.samples] == [("a.png", "train"), ("b.png", "test")]
    assert [p.reason for p in listing.problems] == ["unknown split", "missing file"]
    assert listing.split == OfficialSplit()


def test_folders_and_manifests_may_be_on_s3(s3_store):
    for number, label in enumerate(("cat", "cat", "dog")):
        uri = storage.join(s3_store, "raw", label, f"{number}.png")
        storage.write_bytes(uri, picture(number))
    folder = open_source(storage.join(s3_store, "raw"))
    assert {s.id: s.label for s in folder.list().samples} == {
        "cat/0.png": "cat",
        "cat/1.png": "cat",
        "dog/2.png": "dog",
    }
    assert folder.read("dog/2.png") == picture(2)
    lines = f"image,label\nraw/cat/0.png,cat\n{s3_store}/raw/dog/2.png,dog\n"
    storage.write_bytes(storage.join(s3_store, "m.csv"), lines.encode())
    manifest = open_source(storage.join(s3_store, "m.csv"))
    assert [manifest.read(s.locator) for s in manifest.list().samples] == [picture(0), picture(2)]


def test_a_manifest_without_label_is_refused(tmp_path):
    (tmp_path / "m.csv").write_text("image,class\na.png,cat\n")
    with pytest.raises(InvalidData, match="columns image and label"):
        open_source(str(tmp_path / "m.csv")).list()


def test_glyphs_are_many_distinct_characters_of_many_scripts():
    begin = time.process_time()
    distinct_characters.cache_clear()
    listing = open_source("glyphs:").list()
    assert time.process_time() - begin < 15
    labels = Counter(sample.label for sample in listing.samples)
    assert len(labels) == 400
    assert set(labels.values()) == {20}
    assert {"Latin", "Greek", "Cyrillic", "Hebrew"} <= {s.attributes["script"] for s in listing.samples}
    assert len({s.attributes["style"] for s in listing.samples}) == 12
    assert all(re.fullmatch(r"U\+[0-9A-F]{4,5} .+", label) for label in labels)


def test_glyphs_leave_out_what_looks_alike():
    names = {unicodedata.name(character) for character in distinct_characters()}
    assert "LATIN CAPITAL LETTER A" in names
    assert not names & {"GREEK CAPITAL LETTER ALPHA", "CYRILLIC CAPITAL LETTER A", "LATIN SMALL LETTER O"}


def test_a_glyph_is_a_function_of_its_id_and_the_seed():
    source = GlyphsSource(classes=3, per_class=4)
    samples = source.list().samples
    first = source.read(samples[0].locator)
    assert first == GlyphsSource(classes=300, per_class=9).read(samples[0].locator)
    assert first != source.read(samples[12 // 4 - 1].locator)
    assert first != GlyphsSource(seed=1).read(samples[0].locator)
    assert decode(first, "L").size == (48, 48)


def test_a_glyph_is_drawn_around_the_middle():
    source = GlyphsSource(classes=20, per_class=5)
    rows, columns = np.mgrid[:48, :48]
    centers = []
    for sample in source.list().samples:
        image = np.asarray(decode(source.read(sample.locator), "L"), dtype=float)
        ink = np.abs(image - np.median(image))
        ink[ink < 0.5 * ink.max()] = 0  # the noise of the background
        centers.append([(rows * ink).sum() / ink.sum(), (columns * ink).sum() / ink.sum()])
    np.testing.assert_allclose(np.mean(centers, axis=0), 23.5, atol=1.5)
    assert np.abs(np.array(centers) - 23.5).max() < 12


@pytest.mark.parametrize("uri", ["glyphs:classes=x", "glyphs:colour=3", "glyphs:classes", "glyphs:classes=1"])
def test_a_glyphs_uri_that_cannot_be_followed_is_refused(uri):
    with pytest.raises(InvalidSetting, match="glyphs:"):
        open_source(uri).list()


def test_what_is_no_source_is_refused_with_what_was_looked_for(tmp_path):
    with pytest.raises(MissingArtifact, match="no folder"):
        open_source(str(tmp_path / "nothing"))
    with pytest.raises(MissingArtifact, match="no file"):
        open_source(str(tmp_path / "nothing.zip"))
    write(tmp_path, {"a.txt": b"x", "b.zip": b"not a zip"})
    with pytest.raises(InvalidData, match=r"Ebay_train\.txt.*a\.txt"):
        open_source(str(tmp_path))
    with pytest.raises(InvalidData, match="Download it again"):
        open_source(str(tmp_path / "b.zip"))
    with pytest.raises(InvalidData, match="cub200"):
        open_source(str(tmp_path), "cub200")


@pytest.mark.parametrize("kind", ["folder", "zip", "manifest"])
def test_listing_counts_what_it_has_seen(tmp_path, kind):
    class_folders(tmp_path / "source")
    source = tmp_path / "source"
    if kind == "zip":
        source = Path(shutil.make_archive(str(tmp_path / "source"), "zip", source))
    if kind == "manifest":
        rows = [f"{path.relative_to(tmp_path)},a" for path in sorted(source.rglob("*.png"))]
        source = tmp_path / "m.csv"
        source.write_text("\n".join(["image,label", *rows]))
    with Ticker("ingest") as ticker:
        listing = open_source(str(source)).list()
        assert f"{len(listing.samples)} of {len(listing.samples)} " in ticker.line()


def test_images_in_no_folder_are_reported_as_such(tmp_path):
    write(tmp_path / "flat", {f"{number}.png": picture(number) for number in range(3)})
    with pytest.raises(InvalidData, match=r"must be in a folder of its name; .* 3 are in no folder"):
        open_source(str(tmp_path / "flat"))
