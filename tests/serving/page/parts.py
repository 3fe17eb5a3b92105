"""A store to look at: patterns as images, labels that attack a page, and what a dataset can have wrong."""

import csv
import io
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import uvicorn
from PIL import Image

from dml.config import IndexConfig, IngestConfig
from dml.data.dataset import read_images
from dml.data.ingest import ingest
from dml.models.encoder import Encoder
from dml.models.package import load_package, save_package
from dml.preprocessing import preprocess_batch
from dml.refs import DatasetRef, IndexRef
from dml.retrieval.build import build_index
from dml.retrieval.calibration import calibrate
from dml.retrieval.index import publish_index
from dml.serving.app.factory import create_app
from dml.serving.app.settings import ServiceSettings
from tests.embedding.parts import GREY, make_encoder, table_of

IDENTITIES, PER_IDENTITY = 48, 3
MARKUP = "<img src=x onerror=\"document.title='attacked'\">"
QUOTES = "\"quoted\" & 'so' `on` ${x}"
RIGHT_TO_LEFT = "شخص \u202e abc"
LONG = "long " * 60
HOSTILE = [MARKUP, QUOTES, RIGHT_TO_LEFT, LONG]
"""Labels of the first identities."""
NAME = "shelf"
_SIDE = 32


def label_of(identity: int) -> str:
    """As the dataset has it, without spaces at its ends."""
    return HOSTILE[identity].strip() if identity < len(HOSTILE) else f"person {identity:02d}"


def drawing(identity: int, number: int = 0) -> bytes:
    """A PNG of an identity: its own pattern, with a little noise of its own."""
    pattern = np.random.default_rng(1_000 + identity).integers(0, 2, (4, 4)) * 200 + 20
    noise = np.random.default_rng([identity, number]).integers(-18, 19, (_SIDE, _SIDE))
    pixels = np.kron(pattern, np.ones((_SIDE // 4, _SIDE // 4))) + noise
    out = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def file_of(identity: int, number: int) -> str:
    """The path of an image within the source, which is its id; some need care in an address."""
    folder = ["a&b #1?", "c%2F'd\"", "ü ش", "<b>"][identity] if identity < 4 else f"p{identity:02d}"
    return f"{folder}/{number}.png"


def make_dataset(folder: Path, store: str) -> DatasetRef:
    """Identities with attributes of every type; one wrong label, one file that is no image."""
    folder.mkdir(parents=True)
    with (folder / "images.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "label", "split", "region", "year", "price", "sold"])
        for identity in range(IDENTITIES):
            for number in range(PER_IDENTITY):
                path = folder / file_of(identity, number)
                path.parent.mkdir(exist_ok=True)
                path.write_bytes(_image_of(identity, number))
                label = label_of(9) if (identity, number) == (8, 0) else label_of(identity)
                region = "" if identity == 7 else ["east", "west", MARKUP][identity % 3]
                row = [file_of(identity, number), label, "test", region, 1990 + identity]
                writer.writerow([*row, "" if number == 2 else identity / 8, identity % 2 == 0])
        (folder / "broken.png").write_bytes(b"no image")
        writer.writerow(["broken.png", "nobody", "test", "east", 2000, 1, True])
    config = IngestConfig(
        name=NAME, source=str(folder / "images.csv"), num_workers=1, max_quarantined=0.5, split="official"
    )
    return ingest(config, store)


def _image_of(identity: int, number: int) -> bytes:
    """Image 2 of identity 5 is nearly image 1."""
    if (identity, number) != (5, 2):
        return drawing(identity, number)
    out = io.BytesIO()
    Image.open(io.BytesIO(drawing(5, 1))).save(out, "JPEG", quality=95)
    return out.getvalue()


def make_index(store: str, dataset: DatasetRef) -> IndexRef:
    """Of the dataset, by an untrained model, with thresholds."""
    images = read_images(dataset, range(dataset.rows))
    package = save_package(store, whitening_encoder(images), GREY)
    vectors = load_package(package.uri).embed(images)
    table = table_of(store, package, dataset, vectors)
    index = build_index(store, NAME, table, IndexConfig(factory="Flat"))
    publish_index(store, index)
    calibrate(store, index, fpir=0.3)
    return index


def whitening_encoder(images: Sequence[bytes]) -> Encoder:
    """A random backbone whose features are whitened on some images, so that different ones are far apart."""
    encoder = make_encoder(dim=24).eval()
    with torch.no_grad():
        features = encoder.features(preprocess_batch(images, GREY))
        mean = features.mean(0)
        _, values, axes = torch.linalg.svd(features - mean, full_matrices=False)
        weight = axes[:24] / (values[:24, None] + 1e-6)
        encoder.head.weight.copy_(weight)
        encoder.head.bias.copy_(-weight @ mean)
    return encoder


@contextmanager
def serving(settings: ServiceSettings) -> Iterator[str]:
    """The address of the service in a thread of this process."""
    server = uvicorn.Server(uvicorn.Config(create_app(settings), host="127.0.0.1", port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 240
    while not server.started and time.monotonic() < deadline:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(120)
