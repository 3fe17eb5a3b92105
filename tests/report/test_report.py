"""Reports of real small runs: planted wrong labels are found, the page names what it shows, and it is one."""

import csv
import io
import re
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from dml import storage
from dml.cli import main
from dml.config import AttributeSplit, IngestConfig, ReportConfig
from dml.data.dataset import find_dataset
from dml.embedding.embed import embed
from dml.errors import IncompatibleArtifact, InvalidSetting
from dml.presets import circle
from dml.refs import ModelRef, ReportRef
from dml.registry.catalog import find_model
from dml.registry.history import attach_report, training_curves
from dml.registry.tracking import connect
from dml.report.circles import draw_circles
from dml.report.gallery import _font
from dml.settings import tracking_uri
from dml.training.ray_trainer import train
from flows.circles import circles_flow
from flows.dataset_report import dataset_report_flow
from flows.ingest import ingest_flow
from flows.report import report_flow, report_on
from flows.train import train_flow

CLASSES, PER_CLASS = 12, 8
PLANTED = {"class10/wrong.png": (7, 10), "class06/wrong.png": (9, 6)}  # place: what it shows, its label


def picture_of(label: int, number: int) -> Image.Image:
    """A noisy picture of the pattern that is the class."""
    pixels = np.random.default_rng(label).integers(0, 200, (28, 28))
    noisy = pixels + np.random.default_rng((label, number)).integers(0, 15, (28, 28))
    return Image.fromarray(noisy.astype(np.uint8))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A trained model, and a dataset with two wrong labels among its six unseen classes."""
    folder, store = tmp_path_factory.mktemp("images"), str(tmp_path_factory.mktemp("store"))
    for label in range(CLASSES):
        (folder / f"class{label:02d}").mkdir()
        for number in range(PER_CLASS):
            picture_of(label, number).save(folder / f"class{label:02d}" / f"{number}.png")
    for place, (truth, _) in PLANTED.items():
        picture_of(truth, 99).save(folder / place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DML_CACHE", store + "/cache")
        last_six = AttributeSplit(name="label", test_values=tuple(f"class{c:02d}" for c in range(6, CLASSES)))
        ingest_flow.fn(IngestConfig(name="shop", source=str(folder), split=last_six), store)
        settings = [
            "sampler.classes_per_batch=4",
            "training.num_steps=8",
            "training.log_every_steps=2",
            "evaluation.baselines=false",
        ]
        train_flow.fn("shop", "smoke", settings, store=store)
    return store


@pytest.fixture(scope="module")
def model(store: str) -> ModelRef:
    return find_model(store, "shop")


@pytest.fixture
def report(store: str) -> ReportRef:
    return report_flow.fn("shop", "shop", store=store)


def page_of(report: ReportRef) -> str:
    return Path(report.page).read_text()


def test_the_page_names_what_it_shows(report, store, model):
    html, dataset = page_of(report), find_dataset(store, "shop")
    assert "What did shop/1 learn, and where does it fail?" in html
    assert f"shop@{dataset.version}, split test: 50 items of 6 classes" in html
    assert model.package.version in html
    for word in (
        "Queries and answers",
        "Worst failures",
        "Suspected labels",
        "t-SNE",
        "1 in 1,000",
        "Training",
    ):
        assert word in html
    assert set(report.pictures) >= {"answers.png", "map.png", "roc.png", "similarities.png", "training.png"}
    for name in report.pictures:
        assert Image.open(Path(report.uri) / name).format == "PNG"


def test_the_metrics_are_beside_the_baselines_with_their_intervals(report):
    html = page_of(report)
    table = html[html.index("In numbers</h2>") : html.index("Queries and answers</h2>")]
    assert re.findall("<th>(.+?)</th>", table) == ["metric", "trained", "before training", "raw pixels"]
    for name in ("recall_at_1", "map_at_r", "nmi"):
        assert re.search(rf"<td>{name}</td>(<td>0\.\d+ \[\d\.\d+, \d\.\d+\]</td>){{3}}", table), table
    assert re.search(
        r"<p>The model is (better than|worse than|as good as) comparing pixels: recall_at_1", table
    )
    assert re.search(r"<td>eer</td>(<td>0\.\d+( \[0\.\d+, 0\.\d+\])?</td>){3}", table), table


def test_planted_wrong_labels_are_suspected_and_no_others(report):
    rows = list(csv.DictReader(io.StringIO((Path(report.uri) / "suspects.csv").read_text())))
    assert {(row["id"], row["label"], row["neighbours' label"]) for row in rows} == {
        (place, f"class{label:02d}", f"class{truth:02d}") for place, (truth, label) in PLANTED.items()
    }
    assert "suspects.png" in report.pictures
    assert "2 items whose 5 nearest" in page_of(report)


def test_planted_wrong_labels_are_suspected_in_the_report_of_the_dataset_too(store):
    actual = dataset_report_flow.fn("shop", store=store, model="shop").findings
    suspected = {(each.id, each.label, each.agreed) for each in actual.suspected if each.split == "test"}
    assert suspected >= {
        (place, f"class{label:02d}", f"class{truth:02d}") for place, (truth, label) in PLANTED.items()
    }
    assert actual.embedder == "model shop/1"


def test_the_training_split_can_be_looked_at_too(store):
    config = ReportConfig(split="train", map_points=40, failures=0)
    html = page_of(report_flow.fn("shop", "shop", config, store=store))
    assert "split train: 48 items" in html
    assert "No item&#x27;s 5 nearest neighbours agree" in html


def test_the_same_inputs_give_the_same_bytes_and_are_looked_at_once(report, store, caplog):
    caplog.set_level("INFO")
    assert report_flow.fn("shop", "shop", store=store) == report
    assert f"nothing to do, the page of these inputs is {report.uri}" in caplog.text
    before = {path.name: path.read_bytes() for path in Path(report.uri).iterdir()}
    storage.delete(report.uri)
    assert report_flow.fn("shop", "shop", store=store) == report
    assert {path.name: path.read_bytes() for path in Path(report.uri).iterdir()} == before


def test_training_curves_are_what_was_logged(store, model):
    assert [step for step, _ in training_curves(store, model)["loss"]] == [2, 4, 6, 8]


def test_the_report_is_attached_to_the_models_run(report, store, model):
    folder = attach_report(store, model, report)
    client = connect(tracking_uri(store))
    run = client.get_model_version("shop", "1").run_id
    names = {Path(file.path).name for file in client.list_artifacts(run, folder)}
    assert names == {"index.html", "suspects.csv", *report.pictures}


def test_two_models_are_compared_on_a_page_beside_the_run_of_the_first(store, monkeypatch, capsys):
    settings = ["sampler.classes_per_batch=4", "training.num_steps=1", "evaluation.baselines=false", "seed=5"]
    train_flow.fn("shop", "smoke", [*settings, "evaluation.nmi=false"], store=store)
    words = "dml report shop/2 shop --against shop/1 --set failures=2 --store"
    monkeypatch.setattr(sys, "argv", [*words.split(), store])
    with pytest.raises(SystemExit) as done:
        main()
    assert not done.value.code
    page = capsys.readouterr().out.rpartition("open ")[2].strip()
    config = ReportConfig(failures=2)
    report = report_flow.fn("shop/2", "shop", config, store=store, against="shop/1")
    assert page == report.page
    assert "Is shop/2 better than shop/1, and where?" in page_of(report)
    client = connect(tracking_uri(store))
    run = client.get_model_version("shop", "2").run_id
    names = {Path(file.path).name for file in client.list_artifacts(run, f"reports/{report.version}")}
    assert names == {"index.html", "comparisons.json", "classes.csv", *report.pictures}
    with pytest.raises(IncompatibleArtifact, match=r"shop/2 and shop/2 are both from"):
        report_flow.fn("shop/2", "shop", config, store=store, against="shop/2")


@pytest.mark.parametrize("num_classes", [2, 5], ids=["one item", "single items"])
def test_a_split_without_any_positive_has_a_page_too(store, tmp_path, num_classes):
    for label in range(num_classes):
        (tmp_path / f"class{label}").mkdir()
        picture_of(label, 0).save(tmp_path / f"class{label}" / "only.png")
    ingest_flow.fn(IngestConfig(name=f"single{num_classes}", source=str(tmp_path)), store)
    dataset = find_dataset(store, f"single{num_classes}")
    html = page_of(report_on(store, find_model(store, "shop"), dataset, ReportConfig()))
    for words in (
        "Means over 0 queries",
        "No query has a positive.",
        "No query fails",
        "first answer is wrong.",
        "neighbours agree on a label that is not its own.",
        "Verification needs genuine and impostor pairs",
    ):
        assert words in html


def test_a_misspelled_setting_is_refused():
    with pytest.raises(InvalidSetting, match="failurs"):
        ReportConfig().overridden(["failurs=3"])


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def write_digits(folder: Path, part: str, *, digits: int, per_digit: int, seed: int) -> None:
    """An idx pair as MNIST's: drawn digits, bright on black, shifted and noisy."""
    chance = np.random.default_rng(seed)
    labels = np.repeat(np.arange(digits, dtype=np.uint8), per_digit)
    images = np.zeros((len(labels), 28, 28), np.uint8)
    for row, label in enumerate(labels):
        canvas = Image.new("L", (28, 28))
        place = tuple(14 + chance.integers(-2, 3, 2))
        ImageDraw.Draw(canvas).text(place, str(label), fill=255, font=_font(18), anchor="mm")
        images[row] = np.clip(np.asarray(canvas) + chance.integers(0, 30, (28, 28)), 0, 255)
    folder.mkdir()
    (folder / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
    (folder / f"{part}-labels-idx1-ubyte").write_bytes(idx(labels))


def test_four_losses_are_drawn_side_by_side_from_an_idx_file(tmp_path):
    store = str(tmp_path / "store")
    for part, seed in (("train", 0), ("t10k", 1)):
        write_digits(tmp_path / part, part, digits=4, per_digit=8, seed=seed)
        all_train = {"kind": "classes", "test_fraction": 0}
        source = {"name": f"mnist-{part}", "source": str(tmp_path / part), "split": all_train}
        ingest_flow.fn(IngestConfig.model_validate(source), store)
    small = [
        "training.num_steps=2",
        "sampler.classes_per_batch=4",
        "sampler.samples_per_class=4",
        "encoder.backbone.width=8",
    ]
    report = circles_flow.fn("mnist-train", settings=small, show="mnist-t10k", store=store)
    caption = report.pictures["circles.png"]
    assert caption.startswith("softmax, arcface, triplet_margin, margin: 32 images of mnist-t10k@")
    assert f"trained on mnist-train@{find_dataset(store, 'mnist-train').version}" in caption
    width, height = Image.open(Path(report.uri) / "circles.png").size
    assert width > 3 * height
    html = page_of(report)
    assert "they are points on a circle" in html
    assert all(f"<td>{loss}</td>" in html for loss in ("softmax", "arcface", "triplet_margin", "margin"))
    assert circles_flow.fn("mnist-train", settings=small, show="mnist-t10k", store=store) == report


@pytest.fixture
def digits(tmp_path):
    """A store with a data set of four drawn digits."""
    store = str(tmp_path / "store")
    write_digits(tmp_path / "digits", "train", digits=4, per_digit=8, seed=0)
    all_train = {"kind": "classes", "test_fraction": 0}
    source = {"name": "digits", "source": str(tmp_path / "digits"), "split": all_train}
    ingest_flow.fn(IngestConfig.model_validate(source), store)
    return store


FEW_DIGITS = [
    "training.num_steps=2",
    "sampler.classes_per_batch=4",
    "sampler.samples_per_class=4",
    "encoder.backbone.width=8",
]


def test_the_plane_shows_embeddings_with_their_lengths_above_their_circles(digits):
    losses = ["softmax", "cosface"]
    report = circles_flow.fn("digits", losses=losses, settings=FEW_DIGITS, store=digits, plane=True)
    assert list(report.pictures) == ["plane.png"]
    width, height = Image.open(Path(report.uri) / "plane.png").size
    assert height > width  # two columns of two
    html = page_of(report)
    assert "every plane has its own scale" in html
    assert "<th>median length</th>" in html
    assert circles_flow.fn("digits", losses=losses, settings=FEW_DIGITS, store=digits, plane=True) == report


@pytest.mark.parametrize(
    ("losses", "settings", "message"),
    [
        (["softmax", "margin"], [], "must be one of arcface, .*; got margin"),
        (["softmax"], ["encoder.unit_length=true"], "got encoder.unit_length=true"),
    ],
)
def test_a_plane_that_cannot_be_trained_is_refused_before_any_training(digits, losses, settings, message):
    with pytest.raises(InvalidSetting, match=message):
        circles_flow.fn("digits", losses=losses, settings=settings, store=digits, plane=True)


def test_an_encoder_trained_at_unit_length_is_no_plane(digits):
    config = circle().overridden(FEW_DIGITS)
    package = train(config, find_dataset(digits, "digits"), digits).package
    table = embed(digits, package, find_dataset(digits, "digits"))
    with pytest.raises(IncompatibleArtifact, match="'softmax' was trained at unit length"):
        draw_circles(digits, {"softmax": table}, "digits", plane=True)


def test_more_than_two_dimensions_are_no_circle(store, model):
    table = embed(store, model.package, find_dataset(store, "shop"))
    with pytest.raises(IncompatibleArtifact, match="2 dimensions; that of 'softmax' has 32"):
        draw_circles(store, {"softmax": table}, "shop")
