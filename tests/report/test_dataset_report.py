"""The report of a dataset alone: what it finds is what was planted, and its page holds any dataset."""

import csv
import io
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, ImageFilter
from pyarrow import parquet

from dml import storage
from dml.config import DatasetReportConfig, IngestConfig, NoSplit
from dml.data.ingest import ingest
from dml.embedding.embed import embed
from dml.errors import IncompatibleArtifact
from dml.refs import DatasetRef
from dml.report.dataset_charts import histogram_edges
from dml.report.dataset_report import write_dataset_report
from dml.reports import DatasetReport
from tests.embedding.parts import make_package

HOSTILE = "<script>alert(1)</script>"
FEW = DatasetReportConfig(map_points=10)


def picture(seed: int, side: int = 64) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 255, (9, 9, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)


def make(folder: Path, rows: list[dict], name: str = "shop", **settings) -> tuple[str, DatasetRef]:
    """A dataset of rows with `picture` (an image, or bytes), label, split and attributes."""
    folder.mkdir(parents=True, exist_ok=True)
    table = []
    for number, row in enumerate(rows):
        content, file = row.pop("picture"), f"{number:05d}.{row.pop('ending', 'png')}"
        if isinstance(content, bytes):
            (folder / file).write_bytes(content)
        else:
            content.save(folder / file, quality=60)
        table.append({"image": file, "id": f"item {number}", **row})
    parquet.write_table(pa.Table.from_pylist(table), folder / "items.parquet")
    source = str(folder / "items.parquet")
    config = IngestConfig(name=name, source=source, num_workers=1, max_quarantined=1, **settings)
    store = str(folder / "store")
    return store, ingest(config, store)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, DatasetRef]:
    """Three classes for training, two for test; item 12 is item 0 again, smaller and as JPEG."""
    rows = [
        {
            "picture": picture(n),
            "label": f"train {n // 4}",
            "split": "train",
            "price": n * 1.5,
            "shelf": "top",
        }
        for n in range(12)
    ]
    again = picture(0).resize((40, 40)).filter(ImageFilter.GaussianBlur(0.3))
    rows.append({"picture": again, "label": HOSTILE, "split": "test", "ending": "jpg", "price": None})
    rows += [{"picture": picture(20 + n), "label": HOSTILE, "split": "test"} for n in range(2)]
    rows.append(
        {"picture": picture(30, 50).convert("L"), "label": "lonely", "split": "test", "shelf": HOSTILE}
    )
    rows.append({"picture": b"no image at all", "label": "lonely", "split": "test"})
    rows.append({"picture": b"", "label": "lonely", "split": "test"})
    return make(tmp_path_factory.mktemp("shop") / "images", rows)


@pytest.fixture(scope="module")
def report(shop: tuple[str, DatasetRef]) -> DatasetReport:
    return write_dataset_report(*shop, DatasetReportConfig())


@pytest.fixture(scope="module")
def page(report: DatasetReport) -> str:
    return Path(report.report.page).read_text()


def section_of(page: str, title: str) -> str:
    parts = re.split(r"<h2 id=\"section-\d+\">(.*?)</h2>", page)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def test_a_test_image_that_is_in_train_is_named_with_its_pair(report, page):
    pair = report.findings.near_duplicates[0]
    assert (pair.between, pair.images, pair.other_label, pair.pairs) == ("test and train", 1, 1, 1)
    (pair,) = pair.examples
    assert (pair.first, pair.first_label, pair.second, pair.second_label) == (
        "item 12",
        HOSTILE,
        "item 0",
        "train 0",
    )
    assert report.findings.warnings[0].startswith("Test images with a near-duplicate in train: 1 of 4.")
    section = section_of(page, "Near-duplicates: test images in train")
    assert section.count("<img") == 2
    assert "item 12" in section
    assert "item 0" in section
    assert "✗" in section


def test_every_image_with_a_near_duplicate_is_listed_beside_the_page(report):
    rows = list(csv.DictReader(io.StringIO((Path(report.report.uri) / "near_duplicates.csv").read_text())))
    assert [(row["between"], row["first"], row["second"]) for row in rows] == [
        ("test and train", "item 12", "item 0")
    ]


def test_sizes_of_classes_are_counted_by_split(report, page):
    train, test = report.findings.splits
    assert (train.images, train.classes, train.fewest, train.median, train.most, train.single) == (
        12,
        3,
        4,
        4,
        4,
        0,
    )
    assert (test.images, test.classes, test.fewest, test.most, test.single) == (4, 2, 1, 3, 1)
    assert "Classes of test with a single image: 1 of 2." in " ".join(report.findings.warnings)
    assert "With a single image: lonely." in section_of(page, "Classes and sizes")
    rows = list(csv.DictReader(io.StringIO((Path(report.report.uri) / "classes.csv").read_text())))
    assert {row["label"]: int(row["images"]) for row in rows}["lonely"] == 1


def test_files_are_described(report):
    images = report.findings.images
    assert images.formats == {"PNG RGB": 14, "JPEG RGB": 1, "PNG L": 1}
    assert images.grey == 1
    assert (images.width.low, images.width.high) == (40, 64)


def test_attributes_have_types_counts_and_missing_values(report):
    price, shelf = report.findings.attributes
    assert (price.name, price.type, price.missing, price.distinct) == ("price", "double", 4, 12)
    assert (price.low, price.high) == ("0.0", "16.5")
    assert (shelf.missing, shelf.distinct, shelf.most_frequent, shelf.most_frequent_images) == (
        3,
        2,
        "top",
        12,
    )
    assert "Attribute price is missing in 25% of the images." in report.findings.warnings


def test_the_quarantine_has_reasons_counts_and_examples(report, page):
    assert {(refusal.reason, refusal.rows) for refusal in report.findings.quarantine} == {
        ("not an image", 1),
        ("empty file", 1),
    }
    assert "00016.png" in section_of(page, "Quarantine")


def test_names_on_the_page_are_shown_not_obeyed(page):
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "http" not in page


def test_pictures_of_every_class_are_on_the_page_and_beside_it(report, page):
    section = section_of(page, "Pictures")
    assert section.count("<h3") == 5
    assert section.count("<img") == 16
    for name in report.report.pictures:
        assert Image.open(Path(report.report.uri) / name).format == "PNG"
    assert {"classes.png", "images.png", "image-sizes.png"} <= set(report.report.pictures)


def test_the_same_inputs_give_the_same_bytes_and_are_looked_at_once(report, shop, caplog):
    caplog.set_level("INFO")
    assert write_dataset_report(*shop, DatasetReportConfig()) == report
    assert f"nothing to do, the page of these inputs is {report.report.uri}" in caplog.text
    before = {path.name: path.read_bytes() for path in Path(report.report.uri).iterdir()}
    storage.delete(report.report.uri)
    assert write_dataset_report(*shop, DatasetReportConfig()) == report
    assert {path.name: path.read_bytes() for path in Path(report.report.uri).iterdir()} == before


def test_the_answer_is_one_type_that_is_read_back(report):
    assert DatasetReport.model_validate_json(report.model_dump_json()) == report


def test_nothing_of_the_dataset_is_changed(shop, report):
    storage.verify(shop[1].uri)


def test_without_an_embedding_the_page_says_how_to_get_more(report, page):
    assert report.findings.num_suspected is None
    assert "dml report shop --model MODEL" in section_of(page, "Suspected labels and map")


@pytest.mark.parametrize("split", [None, "test"])
def test_an_embedding_gives_a_map_and_suspected_labels(tmp_path, split):
    rows = [{"picture": noisy(n % 2, n), "label": f"class {n % 2}", "split": "test"} for n in range(16)]
    rows.append({"picture": noisy(0, 99), "label": "class 1", "split": "test"})
    rows += [{"picture": noisy(5 + n % 2, n), "label": f"train {n % 2}", "split": "train"} for n in range(4)]
    store, dataset = make(tmp_path, rows)
    table = embed(store, make_package(store), dataset, split=split)
    report = write_dataset_report(store, dataset, FEW, table, "model shop/1")
    (suspect,) = report.findings.suspected
    assert (suspect.id, suspect.label, suspect.agreed, suspect.split) == (
        "item 16",
        "class 1",
        "class 0",
        "test",
    )
    assert report.findings.num_suspected == 1
    assert report.findings.embedder == "model shop/1"
    page = Path(report.report.page).read_text()
    assert "seen through model shop/1" in page
    assert section_of(page, "Suspected labels").count("<img") == 6
    assert "t-SNE" in section_of(page, "Map of the embedding")
    assert "item 16" in (Path(report.report.uri) / "suspects.csv").read_text()


def noisy(label: int, seed: int) -> Image.Image:
    pixels = np.random.default_rng(1000 + label).integers(0, 200, (28, 28))
    noise = np.random.default_rng(seed).integers(0, 40, (28, 28))
    return Image.fromarray((pixels + noise).astype(np.uint8))


def test_embeddings_of_another_dataset_are_refused(shop, tmp_path):
    store, other = make(tmp_path, [{"picture": picture(n), "label": "a", "split": "train"} for n in range(2)])
    table = embed(store, make_package(store), other)
    with pytest.raises(IncompatibleArtifact, match=r"must be of shop@.*has those of shop@"):
        write_dataset_report(shop[0], shop[1], FEW, table, "it")


def one_class() -> list[dict]:
    return [{"picture": picture(n), "label": "only", "split": "train"} for n in range(3)]


def one_image() -> list[dict]:
    return [{"picture": picture(1), "label": "only", "split": "test"}]


def all_blank() -> list[dict]:
    return [
        {"picture": Image.new("L", (10, 10), 255), "label": f"{n % 3}", "split": "train"} for n in range(30)
    ]


def missing_values() -> list[dict]:
    rows = [{"picture": picture(n), "label": "a", "split": "train", "x": float("nan")} for n in range(2)]
    return [*rows, {"picture": picture(3), "label": "b", "split": "train", "x": None}]


def names_of_every_kind() -> list[dict]:
    names = ["two  words", "$x^2$", "_a", "x" * 500, "\u202eright to left", "字", "a & b", "'\""]
    return [{"picture": picture(n), "label": name, "split": "train"} for n, name in enumerate(names)]


@pytest.mark.parametrize(
    "rows", [one_class, one_image, all_blank, missing_values, names_of_every_kind], ids=lambda f: f.__name__
)
def test_any_dataset_has_a_page(rows: Callable[[], list[dict]], tmp_path):
    store, dataset = make(tmp_path, rows())
    table = embed(store, make_package(store), dataset)
    report = write_dataset_report(store, dataset, FEW, table, "model a/1")
    page = Path(report.report.page).read_text()
    assert "Empty: every entry of the source became a row." in page
    assert sum(balance.images for balance in report.findings.splits) == dataset.rows


def test_a_single_class_is_warned_of(tmp_path):
    report = write_dataset_report(*make(tmp_path, one_class()), FEW)
    assert report.findings.warnings == ["The train split has one class: there is no negative to learn from."]


def test_images_that_are_all_alike_are_counted_and_few_are_shown(tmp_path):
    report = write_dataset_report(*make(tmp_path, all_blank()), FEW)
    (pairs,) = report.findings.near_duplicates
    assert (pairs.between, pairs.images, pairs.pairs) == ("train", 30, 30 * 29 // 2)
    assert len(pairs.examples) <= FEW.pairs


def test_many_classes_make_a_small_page(tmp_path):
    rows = [{"picture": picture(n, 8), "label": f"class {n:05d}", "split": "train"} for n in range(1500)]
    store, dataset = make(tmp_path, rows, split=NoSplit())
    report = write_dataset_report(store, dataset, FEW)
    page = Path(report.report.page).read_text()
    assert len(page) < 1_000_000
    assert "… and 1,490 more" in section_of(page, "Classes and sizes")
    assert "… and 1,484 more classes." in section_of(page, "Pictures")
    assert len((Path(report.report.uri) / "classes.csv").read_text().splitlines()) == 1501


@pytest.mark.parametrize(
    ("values", "whole"),
    [
        ([1], True),
        ([1, 2, 3], True),
        ([1, 1000], True),
        ([1, 100_000], True),
        ([30, 300], True),
        ([0.5, 1.9], False),
        ([1.0, 1.0], False),
        ([0.01, 90.0], False),
    ],
)
def test_a_histogram_has_every_value_once_and_few_bins(values, whole):
    each = np.array(values, dtype=np.float64)
    edges = histogram_edges(each, whole=whole)
    assert (np.diff(edges) > 0).all()
    assert len(edges) <= 42
    assert np.histogram(each, edges)[0].sum() == len(values)


@pytest.mark.slow
def test_photos_that_occur_twice_in_a_published_set_are_reported(shared_data, tmp_path):
    """CARS196's training half has 17 pairs of the same photo, under two labels, none across the split."""
    source = str(shared_data / "cars196_trainhalf_96px.zip")
    store = str(tmp_path / "store")
    dataset = ingest(IngestConfig(name="cars", source=source, num_workers=1), store)
    between, train, test = write_dataset_report(store, dataset, FEW).findings.near_duplicates
    assert (between.images, train.pairs, test.pairs) == (0, 13, 4)
    assert (train.images, train.other_label) == (26, 26)
    assert (test.images, test.other_label) == (8, 8)
