"""Class folders in every arrangement people publish them in, and one rule for all of them."""

import io
import shutil

import pytest
from PIL import Image

from dml.config import AttributeSplit, ClassSplit, IngestConfig, OfficialSplit
from dml.data.dataset import read_rows
from dml.data.ingest import ingest
from dml.data.sources.detect import open_source
from dml.errors import InvalidData
from tests.data.pictures import picture, write
from tests.data.test_ingest import config as strict
from tests.data.test_ingest import quarantine


def config(source, **others) -> IngestConfig:
    """However many rows are refused: here they are the subject."""
    return strict(source, max_quarantined=1, **others)


def rows(source) -> dict[str, tuple[str, str | None, str | None]]:
    """(label, split, part) by id."""
    return {
        s.id: (s.label, s.split, s.attributes.get("part")) for s in open_source(str(source)).list().samples
    }


def tree(root, *names: str):
    return write(root, {name: picture(number) for number, name in enumerate(names)})


@pytest.mark.parametrize(
    ("train", "val", "test"),
    [("train", "val", "test"), ("Train", "Valid", "TEST"), ("training", "validation", "testing")],
)
@pytest.mark.parametrize("outer", ["", "data/", "a/b c/"])
def test_train_val_and_test_of_the_same_classes_are_parts_and_the_split_is_by_class(
    tmp_path, train, val, test, outer
):
    names = [f"{part}/{label}/1.png" for part in (train, val, test) for label in ("cat", "dog")]
    source = tree(tmp_path, *(outer + name for name in names))
    assert rows(source) == {
        f"{train}/cat/1.png": ("cat", "train", "train"),
        f"{train}/dog/1.png": ("dog", "train", "train"),
        f"{val}/cat/1.png": ("cat", "train", "val"),
        f"{val}/dog/1.png": ("dog", "train", "val"),
        f"{test}/cat/1.png": ("cat", "test", "test"),
        f"{test}/dog/1.png": ("dog", "test", "test"),
    }
    assert open_source(str(source)).list().split == ClassSplit()
    ref = ingest(config(source), str(tmp_path / "store"))
    table = read_rows(ref, columns=["label", "split", "part"]).to_pylist()
    assert len({(row["label"], row["split"]) for row in table}) == ref.classes == 2
    assert {row["part"] for row in table} == {"train", "val", "test"}
    with pytest.raises(InvalidData, match="share no class"):
        ingest(config(source, split=OfficialSplit()), str(tmp_path / "store"))


def test_parts_share_a_class_also_where_its_name_has_two_unicode_forms(tmp_path):
    tree(tmp_path / "s", "train/e\u0301/1.png", "train/b/1.png", "test/\u00e9/2.png", "test/d/2.png")
    assert isinstance(open_source(str(tmp_path / "s")).list().split, ClassSplit)


def test_parts_that_share_no_class_are_the_sources_own_split(tmp_path):
    source = tree(tmp_path / "s", "train/cat/1.png", "val/cow/1.png", "test/dog/1.png")
    assert open_source(str(source)).list().split == OfficialSplit()
    ref = ingest(config(source), str(tmp_path / "store"))
    table = read_rows(ref, columns=["label", "split", "part"]).to_pylist()
    assert sorted((row["label"], row["split"], row["part"]) for row in table) == [
        ("cat", "train", "train"),
        ("cow", "train", "val"),
        ("dog", "test", "test"),
    ]


def test_train_and_val_alone_are_split_by_class_or_by_part(tmp_path):
    source = tree(tmp_path / "s", "train/ant/1.png", "train/dog/1.png", "val/cat/1.png", "val/cow/1.png")
    assert open_source(str(source)).list().split == ClassSplit()
    by_part = config(source, split=AttributeSplit(name="part", test_values=("val",)))
    table = read_rows(ingest(by_part, str(tmp_path / "store")), columns=["label", "split"]).to_pylist()
    assert {row["label"] for row in table if row["split"] == "test"} == {"cat", "cow"}


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["train/steam/1.png", "car/sedan/2.png"], {"train/steam/1.png": "train/steam"}),
        (["train/1.png", "car/2.png", "bus/3.png"], {"train/1.png": "train", "bus/3.png": "bus"}),
        (["x/train/cat/1.png", "x/train/dog/1.png"], {"train/cat/1.png": "cat", "train/dog/1.png": "dog"}),
        (["birds/owl/1.png", "cat/2.png"], {"birds/owl/1.png": "birds/owl", "cat/2.png": "cat"}),
        (["x/owl/1.png", "x/hawk/2.png"], {"owl/1.png": "owl", "hawk/2.png": "hawk"}),
        (["cat/1.png", "cat/2.png"], {"cat/1.png": "cat", "cat/2.png": "cat"}),
        (["train/a/b/1.png", "test/a/c/1.png"], {"train/a/b/1.png": "a/b", "test/a/c/1.png": "a/c"}),
    ],
    ids=["a class among groups", "a class among classes", "one part", "nested",
         "an outer folder", "one class", "nested classes in parts"],
)  # fmt: skip
def test_labels_are_what_a_reader_would_say(tmp_path, names, wanted):
    got = {id_: label for id_, (label, *_) in rows(tree(tmp_path, *names)).items()}
    assert got == {**got, **wanted}
    assert len(got) == len(names)


def test_images_beside_the_parts_and_without_a_class_are_reported(tmp_path):
    source = tree(
        tmp_path / "s", "train/cat/1.png", "train/dog/1.png", "test/1.png", "val/cat/2.png", "x/y/3.png"
    )
    ref = ingest(config(source), str(tmp_path / "store"))
    assert ref.rows == 3
    assert {row["locator"]: row["reason"] for row in quarantine(ref)} == {
        "test/1.png": "missing label",
        "x/y/3.png": "unknown split",
    }


def test_side_files_at_the_top_and_beside_parts_do_not_count(tmp_path):
    source = tree(tmp_path, "d/train/cat/1.png", "d/test/dog/1.png")
    noise = ["readme.txt", "d/LICENSE", "d/labels.csv", "d/train/list.json", "d/train/Thumbs.db",
             "d/train/cat/DESKTOP.INI", "d/train/cat/.DS_Store", "d/train/@eaDir/x",
             "d/annotations/1.xml"]  # fmt: skip
    write(source, dict.fromkeys(noise, b"x"))
    listing = open_source(str(source)).list()
    assert {s.id for s in listing.samples} == {"train/cat/1.png", "test/dog/1.png"}
    assert {p.locator for p in listing.problems} == {"d/annotations/1.xml"}


def encoded(form: str) -> bytes:
    content = io.BytesIO()
    Image.open(io.BytesIO(picture(7, size=(40, 30)))).save(content, form)
    return content.getvalue()


@pytest.mark.parametrize(
    ("name", "form"),
    [("1.jfif", "JPEG"), ("1.JPE", "JPEG"), ("1.avif", "AVIF"), ("1.jp2", "JPEG2000"), ("1", "PNG"),
     ("1", "JPEG"), ("1", "WEBP"), ("1", "AVIF"), ("1", "TIFF"), ("1", "GIF"), ("1", "BMP"), ("1", "PPM"),
     ("1", "JPEG2000"), ("img.0001", "JPEG"), ("1.dat", "PNG"), ("1.png", "JPEG")],
)  # fmt: skip
@pytest.mark.parametrize("zipped", [False, True])
def test_an_image_is_known_by_what_it_holds(tmp_path, name, form, zipped):
    content = encoded(form)
    source = write(tmp_path / "s", {f"cat/{name}": content, f"dog/{name}": content, "dog/blob": b"\0" * 99})
    if zipped:
        source = shutil.make_archive(str(tmp_path / "z"), "zip", source)
    ref = ingest(config(source), str(tmp_path / "store"))
    assert sorted(read_rows(ref)["label"].to_pylist()) == ["cat", "dog"]
    assert [(row["locator"], row["reason"]) for row in quarantine(ref)] == [
        ("dog/blob", "another kind of file")
    ]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("1.png", b"<html>not found</html>", "not an image"),
        ("1.jpg", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
        ("1.png", b"version https://git-lfs.github.com/spec/v1\n", "not an image"),
        ("1.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "another kind of file"),
        ("1.wmf", b"\xd7\xcd\xc6\x9a" + bytes(80), "another kind of file"),
        ("1.svg", b"<svg/>", "another kind of file"),
        ("1", b"", "another kind of file"),
    ],
)
def test_what_is_no_image_is_reported(tmp_path, name, content, reason):
    source = tree(tmp_path / "s", "cat/a.png", "dog/b.png")
    write(source, {f"cat/{name}": content})
    ref = ingest(config(source), str(tmp_path / "store"))
    assert [(row["locator"], row["reason"]) for row in quarantine(ref)] == [(f"cat/{name}", reason)]


def test_tiny_imagenet_is_read_as_published(tmp_path):
    names = ["train/n01443537/images/n01443537_0.JPEG", "train/n01629819/images/n01629819_0.JPEG",
             "val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/test_0.JPEG",
             "test/images/test_1.JPEG"]  # fmt: skip
    root = tree(tmp_path / "s" / "tiny-imagenet-200", *names)
    write(
        root,
        {
            "train/n01443537/n01443537_boxes.txt": "n01443537_0.JPEG\t0\t10\t63\t58\n",
            "val/val_annotations.txt": "val_0.JPEG\tn01629819\t0\t3\t4\t6\nval_9.JPEG\tn01629819\t0\n",
            "words.txt": "n01443537\tgoldfish, Carassius auratus\nn01629819\tEuropean fire salamander\n",
            "wnids.txt": "n01443537\nn01629819\n",
        },
    )
    for uri in (tmp_path / "s", root):
        listing = open_source(str(uri)).list()
        assert [(s.id, s.label, s.attributes["part"]) for s in listing.samples] == [
            ("train/n01443537/images/n01443537_0.JPEG", "n01443537", "train"),
            ("train/n01629819/images/n01629819_0.JPEG", "n01629819", "train"),
            ("val/images/val_0.JPEG", "n01629819", "val"),
            ("val/images/val_1.JPEG", "", "val"),
        ]
        assert listing.samples[0].attributes["name"] == "goldfish, Carassius auratus"
        assert [(p.reason, p.id) for p in listing.problems] == [
            ("missing file", "val/images/val_9.JPEG"),
            ("missing label", "test/images"),
        ]
        assert listing.split == ClassSplit()


@pytest.mark.parametrize("alphabets", [("Latin", "Greek"), ("Latin", "Latin")])
def test_omniglots_halves_are_its_own_split(tmp_path, alphabets):
    halves = zip(("background", "evaluation"), alphabets, strict=True)
    names = [f"images_{half}/{a}/character0{c}/0{c}_01.png" for half, a in halves for c in (1, 2)]
    source = tree(tmp_path / "s", *names)
    assert open_source(str(source)).list().split == OfficialSplit()
    ref = ingest(config(source), str(tmp_path / "store"))
    assert (ref.rows, ref.classes, ref.quarantined) == (4, 4, 0)
    table = read_rows(ref, columns=["split", "part", "alphabet"]).to_pylist()
    assert {(row["part"], row["split"]) for row in table} == {("background", "train"), ("evaluation", "test")}
    assert {row["alphabet"] for row in table} == set(alphabets)
    by_part = config(source, split=AttributeSplit(name="part", test_values=("evaluation",)))
    assert ingest(by_part, str(tmp_path / "store")) == ref


@pytest.mark.parametrize("tops", [("train", "val"), ("Train", "testing"), ("test",)], ids=" ".join)
def test_parts_without_class_folders_are_no_classes(tmp_path, tops):
    write(tmp_path / "source", {f"{top}/{number}.png": picture(number) for top in tops for number in (0, 1)})
    with pytest.raises(InvalidData, match="must hold a folder for each class"):
        open_source(str(tmp_path / "source")).list()


def test_a_folder_without_files_is_called_so(tmp_path):
    write(tmp_path / "source", {"a/.keep": b""})
    with pytest.raises(InvalidData, match="holds no file, hidden ones apart"):
        open_source(str(tmp_path / "source"))
