"""What an index was made from: its ref in, steps from the dataset to the index out."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from dml import storage
from dml.refs import DatasetRef, IndexRef, ModelRef, PackageRef
from dml.registry.catalog import model_page_url

Kind = Literal["dataset", "vectors", "run", "package", "embeddings", "index"]


class Step(NamedTuple):
    """An artefact that an index was made from, or the index itself."""

    kind: Kind
    name: str
    """NAME@VERSION, NAME/VERSION, or the version alone."""
    what: str = ""
    """How much it holds, or how it came about."""
    url: str | None = None
    """Its page in MLflow; None: it has none."""


def training_runs(store: str) -> dict[str, str]:
    """Fingerprint of each package that a finished run has made, to the run."""
    root = storage.join(store, "runs")
    results = ((run, storage.join(root, run, "result.json")) for run in storage.list_folders(root))
    return {
        str(storage.read_json(uri)["package"]["fingerprint"]): run
        for run, uri in results
        if storage.exists(uri)
    }


def ancestry(
    store: str, index: IndexRef, runs: Mapping[str, str], models: Sequence[ModelRef]
) -> Iterator[Step]:
    """The steps to an index, the dataset first.

    Args:
        store: its URI.
        index: a version.
        runs: as of `training_runs`.
        models: registered versions; their pages are linked.
    """
    embeddings, items, embedder = index.embeddings, index.embeddings.items, index.embeddings.embedder
    trained_on = embedder.dataset if isinstance(embedder, PackageRef) else None
    if trained_on is not None and trained_on.fingerprint != items.fingerprint:
        yield _dataset(trained_on, "trained on it")
    elif isinstance(items, DatasetRef):
        yield _dataset(items)
    else:
        yield Step("vectors", embeddings.source, f"{items.rows:,} items")
    if isinstance(embedder, PackageRef):
        if embedder.fingerprint in runs:
            yield Step("run", runs[embedder.fingerprint][:12], "made the model")
        same = (model for model in models if model.package.fingerprint == embedder.fingerprint)
        model = next(same, None)
        url = None if model is None else model_page_url(store, model)
        what = embedder.source or f"{embedder.dim} dimensions"
        yield Step("package", index.model or embedder.version, what, url)
    else:
        yield Step("package", str(embedder), f"{embedder.dim} dimensions")
    yield Step("embeddings", embeddings.version, f"{embeddings.rows:,} of {embeddings.source}")
    yield Step("index", str(index), f"{index.factory}, {index.rows:,} items")


def _dataset(dataset: DatasetRef, *notes: str) -> Step:
    size = f"{dataset.rows:,} images of {dataset.classes:,} labels"
    return Step("dataset", str(dataset), ", ".join([*notes, size]))
