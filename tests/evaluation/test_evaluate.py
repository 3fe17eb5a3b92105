"""Evaluating a table: the split's rows alone, exact, with the numbers of the metrics room."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from dml.config import EvaluationConfig, GateConfig, IndexConfig, IngestConfig, ReportConfig
from dml.data.dataset import read_rows
from dml.data.ingest import ingest
from dml.errors import CorruptArtifact, InvalidData
from dml.evaluation.evaluate import compare, evaluate, raw_pixel_baseline
from dml.metrics.retrieval import retrieval_metrics
from dml.report.circles import draw_circles
from dml.report.embedded_split import EmbeddedSplit
from dml.retrieval.build import build_index
from tests.embedding.parts import GREY, ROWS, make_dataset, png, table_of, turn, unit_vectors

CONFIG = EvaluationConfig(recall_at=(1, 4))


CLUSTERING = {"nmi", "pairwise_f1"}


def test_only_the_splits_rows_are_queries_and_answers(store, dataset, package):
    vectors = unit_vectors(ROWS, 16, 11)
    values = evaluate(table_of(store, package, dataset, vectors), CONFIG).values
    rows = read_rows(dataset, split="test", columns=["class_id"])
    test_vectors = torch.from_numpy(vectors[rows["position"].to_numpy()])
    expected = retrieval_metrics(
        test_vectors, torch.from_numpy(rows["class_id"].to_numpy()).long(), recall_at=(1, 4)
    )
    assert {name: values[name] for name in expected.as_dict()} == expected.as_dict()
    assert set(values) - set(expected.as_dict()) == CLUSTERING


def test_an_embedding_that_knows_the_classes_is_perfect(store, dataset, package):
    classes = read_rows(dataset, columns=["class_id"])["class_id"].to_numpy()
    values = evaluate(table_of(store, package, dataset, np.eye(16, dtype=np.float32)[classes]), CONFIG).values
    assert {name: value for name, value in values.items() if name not in CLUSTERING} == {
        "recall_at_1": 1.0,
        "recall_at_4": 1.0,
        "r_precision": 1.0,
        "map_at_r": 1.0,
    }
    assert values["nmi"] > 0.8


def test_evaluating_twice_gives_the_same_numbers(store, dataset, package):
    table = table_of(store, package, dataset, unit_vectors(ROWS, 16, 12))
    assert evaluate(table, CONFIG) == evaluate(table, CONFIG)


def test_clusters_are_left_out_unless_requested(embeddings):
    assert "nmi" not in evaluate(embeddings, EvaluationConfig(nmi=False)).metrics


def test_raw_pixels_are_evaluated_by_the_same_protocol(dataset):
    values = raw_pixel_baseline(dataset, GREY, CONFIG).values
    assert set(values) - CLUSTERING == {"recall_at_1", "recall_at_4", "r_precision", "map_at_r"}
    assert values["recall_at_1"] < 0.5  # the images are noise


def test_blank_images_are_alike_as_raw_pixels(tmp_path):
    (tmp_path / "images").mkdir()
    lines = ["image,label,split"]
    for number in range(8):
        blank = number % 2 == 0
        pixels = np.full((12, 10), 255, np.uint8) if blank else None
        image = Image.fromarray(pixels) if blank else Image.open(io.BytesIO(png(number)))
        image.save(tmp_path / "images" / f"{number}.png")
        lines.append(f"{number}.png,{'blank' if blank else 'noise'},test")
    (tmp_path / "images" / "images.csv").write_text("\n".join(lines))
    source = str(tmp_path / "images" / "images.csv")
    blanks = ingest(IngestConfig(name="blanks", source=source, num_workers=1), str(tmp_path))
    evaluation = raw_pixel_baseline(blanks, GREY, EvaluationConfig(recall_at=(1,), nmi=False))
    assert evaluation.values["recall_at_1"] >= 0.5


def test_images_with_one_pixel_a_level_off_are_not_blank(tmp_path):
    (tmp_path / "images").mkdir()
    lines = ["image,label,split"]
    for number in range(8):
        pixels = np.full((28, 28), 30 * number, np.uint8)
        pixels[(3, 3) if number % 2 else (20, 20)] += 1
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        lines.append(f"{number}.png,{number % 2},test")
    (tmp_path / "images" / "images.csv").write_text("\n".join(lines))
    source = str(tmp_path / "images" / "images.csv")
    faint = ingest(IngestConfig(name="faint", source=source, num_workers=1), str(tmp_path))
    evaluation = raw_pixel_baseline(faint, GREY, EvaluationConfig(recall_at=(1,), nmi=False))
    assert evaluation.values["r_precision"] == 1


def test_a_split_without_rows_is_refused(package, tmp_path):
    train_only = make_dataset(tmp_path / "images", str(tmp_path), rows=5)
    table = table_of(str(tmp_path), package, train_only, unit_vectors(5, 16, 0))
    with pytest.raises(InvalidData, match="test"):
        evaluate(table, CONFIG)


def test_a_table_out_of_step_with_its_dataset_is_not_evaluated(store, dataset, package):
    """As parts sorted by name were, from 100,000 on."""
    whole = table_of(store, package, dataset, unit_vectors(ROWS, 16, 13))
    turned = table_of(store, package, dataset, unit_vectors(ROWS, 16, 14))
    turn(turned)
    readers = [
        lambda: evaluate(turned, CONFIG),
        lambda: compare(turned, whole, CONFIG, GateConfig()),
        lambda: compare(whole, turned, CONFIG, GateConfig()),
        lambda: EmbeddedSplit(turned, ReportConfig()),
        lambda: build_index(store, "turned", turned, IndexConfig()),
    ]
    for read in readers:
        with pytest.raises(CorruptArtifact, match="must have the samples of"):
            read()
    flat = table_of(store, package, dataset, unit_vectors(ROWS, 2, 15))
    turn(flat)
    with pytest.raises(CorruptArtifact, match="must have the samples of"):
        draw_circles(store, {"softmax": flat}, "shelves@1")
