"""Data sets with a query and a gallery set go from their published layout to their own metrics."""

import io

import numpy as np
import pytest
from PIL import Image

from dml.config import IngestConfig
from flows.ingest import ingest_flow
from flows.train import train_flow
from tests.data.pictures import write


def photo(label: int, number: int) -> bytes:
    """A noisy gray image of a brightness that depends on the label."""
    rng = np.random.default_rng((label, number))
    pixels = np.clip(20 * label + rng.normal(0, 8, (64, 32, 3)), 0, 255).astype(np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(pixels).save(encoded, "JPEG")
    return encoded.getvalue()


def market1501(root):
    """Ten persons for training; two others, a distractor and a poor detection for test."""
    names = {
        f"bounding_box_train/{person:04d}_c{camera}s1_000001_0{box}.jpg": (person, camera * 10 + box)
        for person in range(2, 12)
        for camera in (1, 2)
        for box in (0, 1)
    }
    for person in (20, 30):
        names |= {
            f"bounding_box_test/{person:04d}_c{camera}s1_000002_01.jpg": (person % 12, camera)
            for camera in (1, 2, 3)
        }
        names[f"query/{person:04d}_c1s1_000002_00.jpg"] = (person % 12, 9)
    names["bounding_box_test/0000_c3s1_000001_00.jpg"] = (0, 0)
    names["bounding_box_test/-1_c3s1_000001_00.jpg"] = (1, 0)
    return write(root, {name: photo(*content) for name, content in names.items()})


def in_shop(root):
    lines, files = [], {}
    for item in range(12):
        for number in range(4):
            path = f"img/MEN/Denim/id_{item:08d}/0{number}_1_front.jpg"
            status = "train" if item < 10 else "query" if number < 2 else "gallery"
            lines.append(f"{path} id_{item:08d} {status}")
            files[f"Img/{path}"] = photo(item, number)
    listed = f"{len(lines)}\nimage_name item_id evaluation_status\n" + "\n".join(lines) + "\n"
    return write(root, {**files, "Eval/list_eval_partition.txt": listed})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tree", "preset", "metrics"),
    [
        (market1501, "smoke:market1501-triplet", {"recall_at_1", "recall_at_5", "recall_at_10", "map"}),
        (in_shop, "smoke:in-shop-margin-distance", {"recall_at_1", "recall_at_20", "nmi"}),
    ],
    ids=["market1501", "in-shop"],
)
def test_a_tree_of_the_published_shape_is_trained_and_evaluated_by_its_protocol(
    tree, preset, metrics, tmp_path
):
    store, source = str(tmp_path / "store"), str(tree(tmp_path / "source"))
    ingest_flow.fn(IngestConfig(name="shop", source=source), store)
    settings = ["training.num_steps=5", "sampler.classes_per_batch=8"]
    report = train_flow.fn("shop", preset, settings, store=store)
    assert metrics <= report.evaluation.metrics.keys()
    num_queries = {"smoke:market1501-triplet": 2, "smoke:in-shop-margin-distance": 4}[preset]
    assert report.evaluation.metrics["recall_at_1"] * num_queries % 1 == pytest.approx(0)
