"""Build a Faiss index of one embeddings table, measure it, publish it whole, find it again.

A version is a folder of files whose rows correspond, see `bundle`: so a row number means nothing outside its
version, and ids, labels and attributes never come apart from their vectors.
"""

import logging
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml import storage
from dml.config import IndexConfig
from dml.data.dataset import read_rows, require_schema
from dml.data.forgotten import digest_of_id, forgotten_ids
from dml.embedding.table import read_embeddings
from dml.errors import DmlError, IncompatibleArtifact, InvalidSetting
from dml.names import split_version
from dml.progress import Ticker, begin, count
from dml.refs import DatasetRef, EmbeddingsRef, IndexRef
from dml.retrieval.bundle import INDEX_FILE, INDEX_FORMAT, ITEMS_FILE, VECTORS_FILE
from dml.retrieval.search import open_index
from dml.retrieval.vectors import write_vectors

logger = logging.getLogger(__name__)

_FLAT_BELOW = 100_000
_FLAT_FACTORY = {"float32": "Flat", "float16": "SQfp16"}
_ADD_ROWS = 1 << 17
_ITEMS_PER_CHUNK = 1 << 20  # 32-bit offsets are enough for a chunk's text, at 2 KiB an item
_NARROW = {pa.large_string(): pa.string(), pa.large_binary(): pa.binary()}
_RECALL_AT = 10
_WANTED_RECALL = 0.95
_FEWEST_PROBES = 8
_TRAIN_ROWS_PER_LIST = 100  # 30 to 256 by Faiss' guidelines


def build_index(
    store: str, name: str, embeddings: EmbeddingsRef, config: IndexConfig, *, model: str = ""
) -> IndexRef:
    """Build and store an index version; searches go on using the current one until `publish_index`.

    The same embeddings and settings give the same version, built once.

    Args:
        store: the store's URI.
        name: the index's name.
        embeddings: the table to index, whole.
        config: factory string ("auto": Flat below 100,000 rows, IVF beyond), probes, recall measurement.
        model: the registered version whose package embedded the table, for the reader.

    Raises:
        InvalidSetting: a factory string that Faiss cannot follow with these rows.
        CorruptArtifact: a file of table or items is damaged, or they have different rows.
        IncompatibleArtifact: items of the dataset were forgotten meanwhile.
    """
    factory = _choose_factory(embeddings.rows) if config.factory == "auto" else config.factory
    if factory == "Flat":
        factory = _FLAT_FACTORY[config.vectors]
    fingerprint = storage.digest_of(
        INDEX_FORMAT,
        embeddings.fingerprint,
        factory,
        config.vectors,
        config.num_probes,
        config.recall_queries,
    )
    uri = storage.join(storage.named_folder(store, "indexes", name), fingerprint[:12])
    if storage.is_intact(uri):
        logger.info("index: nothing to do, %s@%s is built already", name, fingerprint[:12])
        return _read_ref(uri)
    with Ticker("index") as ticker:
        ticker.begin("reading vectors")
        vectors = read_embeddings(embeddings).vectors
        items = read_rows(embeddings.items, split=embeddings.split)
        index = _fill(factory, vectors)
        ticker.begin("measuring recall")
        recall = _tune(index, vectors, config)
    ref = IndexRef(
        uri=uri,
        fingerprint=fingerprint,
        name=name,
        embeddings=embeddings,
        model=model,
        factory=factory,
        rows=len(items),
        recall=recall,
    )
    _save(ref, index, vectors, items, config)
    _refuse_forgotten(store, ref, items["id"])
    return ref


def _save(
    ref: IndexRef, index: faiss.Index, vectors: NDArray[np.float32], items: pa.Table, config: IndexConfig
) -> None:
    """Write a version aside, and publish it whole."""
    with Ticker("index") as ticker, storage.staged(ref.uri) as staged:
        ticker.begin("writing")
        _write(staged, index, items)
        if ref.factory != _FLAT_FACTORY[config.vectors]:
            _write_vectors(staged, vectors, config)
        description = {
            "format": INDEX_FORMAT,
            "ref": ref.model_dump(mode="json", exclude={"uri"}),
            "config": config.model_dump(mode="json"),
            "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        storage.publish(staged, ref.uri, description)


def _refuse_forgotten(store: str, ref: IndexRef, ids: pa.ChunkedArray) -> None:
    """Take back a version with items that were forgotten meanwhile: `forget` saw it, or this does."""
    items = ref.embeddings.items
    forgotten = forgotten_ids(store, items.name) if isinstance(items, DatasetRef) else frozenset()
    if forgotten and any(digest_of_id(id_) in forgotten for id_ in ids.to_pylist()):
        storage.remove(ref.uri)
        raise IncompatibleArtifact(
            f"An index must not hold what is forgotten; items of {items.name} were "
            "forgotten while it was built. Nothing was published; begin again."
        )


def _choose_factory(num_rows: int) -> str:
    """Exact while that is cheap; then inverted lists, as many as Faiss' guidelines give for the size."""
    if num_rows < _FLAT_BELOW:
        return "Flat"
    if num_rows < 1_000_000:
        return f"IVF{2 ** round(math.log2(4 * math.sqrt(num_rows)))},Flat"
    return f"IVF{16_384 if num_rows < 4_000_000 else 65_536},SQfp16"


def _fill(factory: str, vectors: NDArray[np.float32]) -> faiss.Index:
    """Train and fill."""
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise RuntimeError("it compares by another metric")
        if not index.is_trained:
            begin(f"training {factory}")
            index.train(_training_rows(index, vectors, factory))
        begin(f"filling {factory}", "rows", len(vectors))
        for start in range(0, len(vectors), _ADD_ROWS):
            index.add(vectors[start : start + _ADD_ROWS])
            count(_ADD_ROWS)
        index.search(vectors[:1], 1)  # refuses what has no lists to search
    except RuntimeError as error:
        raise InvalidSetting(
            f"index.factory must be a Faiss index_factory string for inner products; got {factory!r}: "
            f"{str(error).rsplit(': ', 1)[-1]}"
        ) from error
    return index


def _training_rows(index: faiss.Index, vectors: NDArray[np.float32], factory: str) -> NDArray[np.float32]:
    lists = getattr(faiss.try_extract_index_ivf(index), "nlist", 1)
    if lists > len(vectors):
        raise InvalidSetting(
            f"{factory} has {lists} lists, more than the {len(vectors)} rows. Use Flat, or fewer lists."
        )
    wanted = min(len(vectors), max(lists * _TRAIN_ROWS_PER_LIST, 1 << 16))
    chosen = np.random.default_rng(0).choice(len(vectors), wanted, replace=False)
    return vectors[np.sort(chosen)]


def _tune(index: faiss.Index, vectors: NDArray[np.float32], config: IndexConfig) -> float:
    """Set the probes, by hand or by doubling until the recall is there; returns recall@10.

    Queries are rows of the table, each without itself: finding oneself is no merit.
    """
    k = min(_RECALL_AT, len(vectors) - 1)
    if k == 0:
        return 1.0
    number = min(config.recall_queries, len(vectors))
    rows = np.random.default_rng(1).choice(len(vectors), number, replace=False)
    _, nearest = faiss.knn(vectors[rows], vectors, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    truth = _without_itself(nearest, rows, k)
    lists = faiss.try_extract_index_ivf(index)
    if lists is None:
        return _recall(index, vectors, rows, truth)
    lists.nprobe = min(config.num_probes or _FEWEST_PROBES, lists.nlist)
    recall = _recall(index, vectors, rows, truth)
    while config.num_probes is None and recall < _WANTED_RECALL and lists.nprobe < lists.nlist:
        lists.nprobe = min(lists.nprobe * 2, lists.nlist)
        recall = _recall(index, vectors, rows, truth)
    return recall


def _recall(
    index: faiss.Index, vectors: NDArray[np.float32], rows: NDArray[np.int64], truth: NDArray[np.int64]
) -> float:
    k = truth.shape[1]
    _, nearest = index.search(vectors[rows], k + 1)
    others = _without_itself(nearest, rows, k)
    return float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(others, truth, strict=True)]))


def _without_itself(nearest: NDArray[np.int64], rows: NDArray[np.int64], k: int) -> NDArray[np.int64]:
    """(Q, k): the k best of k + 1 neighbours that are not the query."""
    others = np.argsort(nearest == rows[:, None], axis=1, kind="stable")[:, :k]
    return np.take_along_axis(nearest, others, axis=1)


def _write(folder: str, index: faiss.Index, items: pa.Table) -> None:
    """Stream both files to wherever the store is."""
    filesystem, path = storage.filesystem(folder)
    with filesystem.open_output_stream(f"{path}/{INDEX_FILE}") as stream:
        faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))  # type: ignore[attr-defined]
    schema = pa.schema([field.with_type(_NARROW.get(field.type, field.type)) for field in items.schema])
    with (
        filesystem.open_output_stream(f"{path}/{ITEMS_FILE}") as stream,
        pa.ipc.new_file(stream, schema) as writer,
    ):
        for start in range(0, len(items), _ITEMS_PER_CHUNK):
            writer.write_table(items.slice(start, _ITEMS_PER_CHUNK).combine_chunks().cast(schema))


def _write_vectors(folder: str, vectors: NDArray[np.float32], config: IndexConfig) -> None:
    filesystem, path = storage.filesystem(folder)
    with filesystem.open_output_stream(f"{path}/{VECTORS_FILE}") as stream:
        blocks = (vectors[start : start + _ADD_ROWS] for start in range(0, len(vectors), _ADD_ROWS))
        rows, dim = vectors.shape
        write_vectors(stream.write, blocks, rows=rows, dim=dim, dtype=config.vectors)


def publish_index(store: str, ref: IndexRef) -> None:
    """Make a built version the one that searches use; one small file is replaced, so readers see either.

    Raises:
        MissingArtifact, CorruptArtifact: it cannot be opened and searched; the former version stays.
    """
    open_index(ref).check()
    storage.point(storage.named_folder(store, "indexes", ref.name), ref.version)


def rollback_index(store: str, name: str) -> IndexRef:
    """Make a former version of an index the one that searches use again.

    Args:
        store: the store's URI.
        name: NAME, the version before the current one; or NAME@VERSION, a former one.

    Raises:
        MissingArtifact: there is no such former version.
        CorruptArtifact: it cannot be opened and searched; the current version stays.
    """
    base, version = split_version(name, "index")
    folder = storage.named_folder(store, "indexes", base)
    if not storage.list_versions(folder):
        raise storage.missing_version(folder, version, "index")
    with storage.locked_pointer(folder) as pointer:
        ref = _read_ref(storage.join(folder, pointer.rollback_target(version)))
        open_index(ref).check()
        pointer.roll_back(ref.version)
    return ref


def find_index(store: str, name: str) -> IndexRef:
    """The index of a name (its published version) or `NAME@VERSION`.

    Raises:
        InvalidSetting: that is no name.
        MissingArtifact: there is none, with those there are.
    """
    base, version = split_version(name, "index")
    return _read_ref(storage.find_version(storage.named_folder(store, "indexes", base), version, "index"))


def published_index(store: str, name: str) -> IndexRef | None:
    """The published version of an index; None before the first. Other indexes are not read."""
    folder = storage.named_folder(store, "indexes", name)
    version = storage.current(folder)
    return None if version is None else _read_ref(storage.join(folder, version))


def index_config_of(ref: IndexRef) -> IndexConfig:
    """How an index version was asked for, to build the next one alike."""
    return IndexConfig.model_validate(storage.read_manifest(ref.uri)["config"])


def list_versions(store: str, damaged: list[DmlError] | None = None) -> list[storage.Version[IndexRef]]:
    """Every version of every index, by name, the oldest first; `damaged` is for `storage.read_versions`."""
    return storage.read_versions(storage.join(store, "indexes"), _read_ref, damaged)


def published_names(store: str) -> list[str]:
    """The names of the indexes that have a version in use, or a damaged note of which it is; sorted."""
    root = storage.join(store, "indexes")
    names = storage.list_folders(root)
    return sorted(name for name in names if storage.exists(storage.join(root, name, storage.POINTER)))


def list_indexes(store: str) -> list[IndexRef]:
    """The published version of every index in the store."""
    root = storage.join(store, "indexes")
    versions = {name: storage.current(storage.join(root, name)) for name in storage.list_folders(root)}
    return [_read_ref(storage.join(root, name, v)) for name, v in versions.items() if v is not None]


def _read_ref(uri: str, manifest: Mapping[str, Any] | None = None) -> IndexRef:
    ref = IndexRef(uri=uri, **(manifest or storage.read_manifest(uri))["ref"])
    require_schema(ref.embeddings.items)  # whose columns the items have
    return ref
