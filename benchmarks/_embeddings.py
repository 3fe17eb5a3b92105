"""Vectors for benchmarks of searches: any number, drawn around real embeddings.

Isotropic vectors mislead: on them every method has another recall than on an embedding, most of whose
variance is in a few directions. Omniglot's images from `DML_TEST_DATA`, embedded by a conv4 that is trained
on them for three minutes, are kept in the cache. An identity is the sum of an embedding and half of another
one; an image of it deviates from it as some real image does from the mean of its class.
"""

import os
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dml import presets
from dml.config import IngestConfig
from dml.data.dataset import read_rows
from dml.data.ingest import ingest
from dml.embedding.embed import embed
from dml.embedding.table import read_embeddings
from dml.storage import cache_dir
from dml.training.ray_trainer import train

SOURCE = Path(os.environ.get("DML_TEST_DATA", "../shared/data")) / "omniglot_background.zip"
NUM_STEPS, DIM = 400, 128
PER_IDENTITY = 4
_BLOCK = 1 << 16


def real_embeddings() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """(19,280, 128) vectors of unit length of Omniglot's images, and their classes; made once."""
    kept = cache_dir() / "benchmarks" / f"omniglot-{DIM}-{NUM_STEPS}.npz"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        vectors, class_ids = _embed_omniglot()
        aside = kept.with_suffix(".aside.npz")
        np.savez(aside, vectors=vectors, class_ids=class_ids)
        aside.replace(kept)
    with np.load(kept) as held:
        return held["vectors"], held["class_ids"]


def _embed_omniglot() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    settings = [
        "loss.kind=multi_similarity",
        f"encoder.dim={DIM}",
        f"training.num_steps={NUM_STEPS}",
        "training.use_gpu=false",
    ]
    with tempfile.TemporaryDirectory() as store:
        dataset = ingest(IngestConfig(name="omniglot", source=str(SOURCE)), store)
        trained = train(presets.omniglot().overridden(settings), dataset, store)
        table = read_embeddings(embed(store, trained.package, dataset))
        classes = read_rows(dataset, columns=["class_id"])["class_id"].to_numpy()
        return table.vectors, classes.astype(np.int64)


def drawn_around(rows: int, *, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Vectors of unit length with the spectrum of real embeddings: (rows, 128), and identities (rows,)."""
    real, class_ids = real_embeddings()
    classes, inverse = np.unique(class_ids, return_inverse=True)
    sums = np.zeros((len(classes), real.shape[1]), dtype=np.float32)
    np.add.at(sums, inverse, real)
    deviations = real - (sums / np.bincount(inverse)[:, None])[inverse]
    rng = np.random.default_rng(seed)
    identities = np.arange(rows, dtype=np.int64) // PER_IDENTITY
    chosen = rng.integers(0, len(real), (2, identities[-1] + 1))
    vectors = np.empty((rows, real.shape[1]), dtype=np.float32)
    for start in range(0, rows, _BLOCK):
        first, second = chosen[:, identities[start : start + _BLOCK]]
        drawn = real[first] + 0.5 * real[second] + deviations[rng.integers(0, len(real), len(first))]
        vectors[start : start + _BLOCK] = drawn / np.linalg.norm(drawn, axis=1, keepdims=True)
    return vectors, identities


def drawn_with_queries(rows: int, num_queries: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Vectors to index (rows, 128), and others to search with (num_queries, 128), with mates among them."""
    vectors, _ = drawn_around(rows + num_queries)
    is_query = np.zeros(len(vectors), dtype=np.bool_)
    is_query[np.random.default_rng(1).choice(len(vectors), num_queries, replace=False)] = True
    return vectors[~is_query], vectors[is_query]
