"""Build a version of an index: a Faiss index of one embeddings table, measured and stored whole.

A version is a folder of files whose rows correspond, see `bundle`: so a row number means nothing outside its
version, and ids, labels and attributes never come apart from their vectors.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, fs

from dml import storage
from dml.cluster import map_remote, ray_session
from dml.config import IndexConfig
from dml.data.dataset import read_rows
from dml.data.forgotten import digest_of_id, forgotten_ids
from dml.data.schema import POSITION
from dml.embedding.table import cut_table
from dml.errors import IncompatibleArtifact, InvalidSetting, did_you_mean
from dml.names import versioned
from dml.progress import Ticker, begin, count
from dml.refs import ChangesRef, DatasetRef, EmbeddingsRef, IndexRef, ShardRef
from dml.reports import FirstStageChoice, OperatingCurve, StageMates
from dml.retrieval.attributes import write_attributes
from dml.retrieval.bundle import (
    FIRST_STAGE_FILE,
    INDEX_FILE,
    INDEX_FORMAT,
    ITEMS_FILE,
    VECTORS_FILE,
    Calibration,
    in_order,
    read_items,
    write_calibration,
    write_items,
)
from dml.retrieval.cascade import Cascade
from dml.retrieval.changes import ChangedRows
from dml.retrieval.factory import choose_factory, empty_index, refused_factory
from dml.retrieval.fill import add, add_to_graph, nearest_lists, num_lists, train
from dml.retrieval.first_stage import KINDS, FirstStage, choose_first_stage
from dml.retrieval.held_out import hold_out, leave_one_out, rows_held_out
from dml.retrieval.index import index_config_of, read_index
from dml.retrieval.plan_calibration import calibrate_plans
from dml.retrieval.scope_impostors import not_trained_on
from dml.retrieval.stage_mates import measure_stages
from dml.retrieval.tune import HeldOut, K, graph_of, refined, tune
from dml.retrieval.vectors import FlatVectors, VectorType, write_vectors

logger = logging.getLogger(__name__)

_FLAT_FACTORY = {"float32": "Flat", "float16": "SQfp16"}
_IDS_AT_ONCE = 1 << 16


def build_index(
    store: str,
    name: str,
    embeddings: EmbeddingsRef,
    config: IndexConfig,
    *,
    model: str = "",
    changes: ChangesRef | None = None,
) -> IndexRef:
    """Build and store an index version; searches go on using the current one until `publish_index`.

    The same embeddings and settings give the same version, built once.

    Args:
        store: the store's URI.
        name: the index's name.
        embeddings: the table to index, whole.
        config: factory string ("auto": as `sizing` plans it for rows, bounds and memory), recall target.
        model: the registered version whose package embedded the table, for the reader.
        changes: of its gallery, to be built in; None: none.

    Raises:
        InvalidSetting: a factory string that Faiss cannot follow with these rows, or all were forgotten.
        CorruptArtifact: a file of table or items is damaged, or they have different rows.
        IncompatibleArtifact: items of the dataset were forgotten meanwhile.
    """
    if config.shards > 1:
        return _build_shards(store, name, embeddings, config, model=model, changes=changes)
    factory = choose_factory(embeddings, config) if config.factory == "auto" else config.factory
    if factory == "Flat":
        factory = _FLAT_FACTORY[config.vectors]
    fingerprint = storage.digest_of(
        INDEX_FORMAT,
        embeddings.fingerprint,
        factory,
        config.vectors,
        config.num_probes,
        config.recall_queries,
        config.recall,
        config.order_by,
        *([] if config.first_stage is None else ["first stage", config.first_stage]),
        *([] if changes is None else ["changes", changes.fingerprint]),
    )
    folders = [] if embeddings.parts is None else [storage.SHARDS]
    uri = storage.join(storage.named_folder(store, "indexes", name), *folders, fingerprint[:12])
    if storage.is_intact(uri):
        logger.info("index: nothing to do, %s@%s is built already", name, fingerprint[:12])
        return read_index(uri)
    with Ticker("index"), storage.staged(uri) as staged, _local(staged) as folder:
        rows = ChangedRows(embeddings, changes)
        vectors, items, index, queries = _write_rows(folder, factory, rows, config)
        write_attributes(folder, items)
        pa.default_memory_pool().release_unused()
        begin("measuring recall")
        held_out = hold_out(vectors, items, index, queries)
        curve = None if held_out is None else _tune(index, vectors, held_out, config)
        if graph_of(index) is not None:
            begin("adding the queries")
            add_to_graph(index, vectors, queries)
        choice, stage = None, None
        if config.first_stage is not None and (alone := leave_one_out(vectors, items, queries)) is not None:
            choice, stage = _write_first_stage(folder, vectors, alone, config)
        begin("measuring the plans of filtered searches")
        table, costs = calibrate_plans(index, vectors)
        begin("measuring mates")
        cascade = None if stage is None or choice is None else Cascade(FirstStage(stage), vectors, choice)
        stages: tuple[StageMates, ...] = ()
        if curve is not None and held_out is not None and embeddings.parts is None:
            stages = measure_stages(
                refined(index, vectors.index, curve.k_factor),
                vectors,
                held_out.labels,
                name=factory,
                cascade=cascade,
                may_query=not_trained_on(items, embeddings.embedder),
            )
        calibration = Calibration(
            operating_curve=curve,
            recall_table=table,
            costs=costs,
            first_stage=choice,
            stages=stages,
        )
        write_calibration(folder, calibration)
        if vectors.index is not index:
            begin("writing the index")
            _write_index(folder / INDEX_FILE, index)
        ref = IndexRef(
            uri=uri,
            fingerprint=fingerprint,
            name=name,
            embeddings=embeddings,
            model=model,
            factory=factory,
            rows=vectors.rows,
            recall=calibration.recall,
            covers_revision=0 if changes is None else changes.revision,
            changes=changes,
        )
        begin("publishing")
        _upload(folder, staged)
        storage.publish(staged, uri, _description(ref, config))
        _refuse_forgotten(store, ref, items["id"].filter(compute.greater_equal(items[POSITION], 0)))
    return ref


def _build_shards(
    store: str,
    name: str,
    embeddings: EmbeddingsRef,
    config: IndexConfig,
    *,
    model: str,
    changes: ChangesRef | None,
) -> IndexRef:
    """Build each shard in a Ray task, then the version that names them.

    A shard that is there is not built again, so a killed build goes on where it ended.
    """
    slices = cut_table(embeddings, config.shards)
    shard_config = config.model_copy(update={"shards": 1})
    digests = [part.fingerprint for part in slices]
    folded = [] if changes is None else ["changes", changes.fingerprint]
    fingerprint = storage.digest_of(INDEX_FORMAT, "shards", *digests, *folded, shard_config.model_dump_json())
    uri = storage.join(storage.named_folder(store, "indexes", name), fingerprint[:12])
    if storage.is_intact(uri) and all(storage.is_intact(shard.uri) for shard in read_index(uri).shards):
        logger.info("index: nothing to do, %s is built already", versioned(name, fingerprint[:12]))
        return read_index(uri)
    with ray_session():
        build = partial(_build_shard, store, name, model, changes)
        built = list(map_remote(build, shard_config, slices, use_gpu=False))
    num_rows = sum(shard.rows for shard in built)
    ref = IndexRef(
        uri=uri,
        fingerprint=fingerprint,
        name=name,
        embeddings=embeddings,
        model=model,
        factory=built[0].factory,
        rows=num_rows,
        recall=sum(shard.recall * shard.rows for shard in built) / num_rows,
        shards=tuple(
            ShardRef(uri=shard.uri, fingerprint=shard.fingerprint, rows=shard.rows, recall=shard.recall)
            for shard in built
        ),
        covers_revision=0 if changes is None else changes.revision,
        changes=changes,
    )
    with storage.staged(uri) as staged:
        storage.publish(staged, uri, _description(ref, config))
    _refuse_forgotten(store, ref, read_rows(embeddings.items, split=embeddings.split, columns=["id"])["id"])
    return ref


def build_shard(store: str, index: IndexRef, uri: str) -> IndexRef:
    """Build again the one shard of an index version that was at `uri`, from the rows that it had.

    Raises:
        CorruptArtifact: a file of table or items is damaged.
    """
    number = [shard.uri for shard in index.shards].index(uri)
    config = index_config_of(index)
    part = cut_table(index.embeddings, config.shards)[number]
    config = config.model_copy(update={"shards": 1})
    return build_index(store, index.name, part, config, model=index.model, changes=index.changes)


def _build_shard(
    store: str,
    name: str,
    model: str,
    changes: ChangesRef | None,
    config: IndexConfig,
    embeddings: EmbeddingsRef,
) -> IndexRef:
    return build_index(store, name, embeddings, config, model=model, changes=changes)


def _description(ref: IndexRef, config: IndexConfig) -> dict[str, Any]:
    """What the manifest of a version says."""
    return {
        "format": INDEX_FORMAT,
        "ref": ref.model_dump(mode="json", exclude={"uri"}),
        "config": config.model_dump(mode="json"),
        "created": datetime.now(UTC).isoformat(timespec="milliseconds"),
    }


@contextmanager
def _local(staged: str) -> Iterator[Path]:
    """A staging folder, or a folder of this machine where that is remote: files of an index are read back
    while it is built."""
    if not storage.is_remote(staged):
        yield Path(storage.resolve(staged))
        return
    storage.make_folder(str(storage.cache_dir()))
    with TemporaryDirectory(prefix="index-", dir=storage.cache_dir()) as folder:
        yield Path(folder)


def _upload(folder: Path, staged: str) -> None:
    if storage.is_remote(staged):
        filesystem, path = storage.filesystem(staged)
        fs.copy_files(str(folder), path, fs.LocalFileSystem(), filesystem)


def _refuse_forgotten(store: str, ref: IndexRef, ids: pa.ChunkedArray) -> None:
    """Take back a version with items that were forgotten meanwhile: `forget` saw it, or this does."""
    items = ref.embeddings.items
    forgotten = forgotten_ids(store, items.name) if isinstance(items, DatasetRef) else frozenset()
    if forgotten and any(
        digest_of_id(id_) in forgotten
        for start in range(0, len(ids), _IDS_AT_ONCE)
        for id_ in ids.slice(start, _IDS_AT_ONCE).to_pylist()
    ):
        for uri in (ref.uri, *(shard.uri for shard in ref.shards)):
            storage.remove(uri)
        raise IncompatibleArtifact(
            f"An index must not hold what is forgotten; items of {items.name} were "
            "forgotten while it was built. Nothing was published; begin again."
        )


def _write_rows(
    folder: Path, factory: str, rows: ChangedRows, config: IndexConfig
) -> tuple[FlatVectors, pa.Table, faiss.Index, NDArray[np.int64]]:
    """Write flat vectors and items, and fill an index; a flat index is the file of the vectors.

    Returns:
        Vectors and items, mapped, also when the folder has its final name; the index; and the rows that it is
        tuned on, which a graph is filled without.
    """
    is_both = factory == _FLAT_FACTORY[config.vectors]
    embeddings = rows.embeddings
    begin("writing items", "rows", embeddings.rows)
    write_items(folder, rows.items())
    items = read_items(folder)
    if not len(items):
        raise InvalidSetting(
            f"An index must have an item; all {embeddings.rows} of {embeddings.source} were forgotten. "
            "Remove the index, or enrol somebody."
        )
    index = empty_index(factory, embeddings)
    path = folder / (INDEX_FILE if is_both else VECTORS_FILE)
    begin("reading vectors", "rows", embeddings.rows)
    vectors = _write_vectors(path, rows.vectors(), len(items), embeddings.dim, config.vectors)
    pa.default_memory_pool().release_unused()  # what reading took, before the index takes its memory
    queries = rows_held_out(vectors.rows, config.recall_queries)
    try:
        if not is_both:
            train(index, vectors, without=queries)
        if config.order_by is not None:
            order = _order(index, vectors, items, config.order_by)
            vectors, items = _write_in_order(folder, path, vectors, items, order)
            queries = np.flatnonzero(np.isin(order, queries))
        if not is_both:
            add(index, vectors, without=queries)
    except RuntimeError as error:
        raise refused_factory(factory, error) from error
    return vectors, items, vectors.index if is_both else index, queries


def _write_vectors(
    path: Path, blocks: Iterator[NDArray[np.float32]], rows: int, dim: int, dtype: VectorType
) -> FlatVectors:
    with path.open("wb") as file:
        write_vectors(file.write, _counted(blocks), rows=rows, dim=dim, dtype=dtype)
    return FlatVectors(str(path))


def _order(index: faiss.Index, vectors: FlatVectors, items: pa.Table, column: str) -> NDArray[np.int64]:
    """(N,) rows by their value in a column, missing ones last; those of a value by their list."""
    if column not in items.column_names:
        raise InvalidSetting(
            f"index.order_by must be one of the columns {items.column_names}; got {column!r}."
            f"{did_you_mean(column, items.column_names)}"
        )
    begin(f"ordering by {column}")
    ranks = compute.rank(items[column], "ascending", tiebreaker="dense").to_numpy()
    is_listed = isinstance(index, faiss.IndexIVF)
    lists = nearest_lists(index, vectors) if is_listed else np.zeros(len(items), np.int64)  # type: ignore[arg-type]
    return np.lexsort((lists, ranks))


def _write_in_order(
    folder: Path, path: Path, vectors: FlatVectors, items: pa.Table, order: NDArray[np.int64]
) -> tuple[FlatVectors, pa.Table]:
    """Write vectors and items again in another order of rows, in place of those that there are."""
    begin("writing rows in order", "rows", 2 * len(order))
    with TemporaryDirectory(dir=folder) as aside:
        rows = (
            order[start : start + vectors.block_rows] for start in range(0, len(order), vectors.block_rows)
        )
        blocks = (vectors.take(block) for block in rows)
        _write_vectors(Path(aside) / path.name, blocks, vectors.rows, vectors.dim, vectors.dtype)
        write_items(Path(aside), in_order(items, order))
        for name in (path.name, ITEMS_FILE):
            os.replace(Path(aside) / name, folder / name)
    return FlatVectors(str(path)), read_items(folder)


def _counted(blocks: Iterator[NDArray[np.float32]]) -> Iterator[NDArray[np.float32]]:
    for block in blocks:
        yield block
        count(len(block))


def _write_index(path: Path, index: faiss.Index) -> None:
    with path.open("wb") as file:
        faiss.write_index(index, faiss.PyCallbackIOWriter(file.write))  # type: ignore[attr-defined]


def _tune(index: faiss.Index, vectors: FlatVectors, held_out: HeldOut, config: IndexConfig) -> OperatingCurve:
    """Set the search parameters by the recall target."""
    probes = None if config.num_probes is None else min(config.num_probes, num_lists(index))
    return tune(index, vectors.index, held_out, target=config.recall, probes=probes)


def _write_first_stage(
    folder: Path, vectors: FlatVectors, held_out: HeldOut, config: IndexConfig
) -> tuple[FirstStageChoice | None, faiss.Index | None]:
    """What was tried and what was kept of it; None: the index is built without, or none reaches the recall.

    Raises:
        InvalidSetting: the first stage that was asked for misses the recall.
    """
    if config.first_stage is None:
        return None, None
    begin("trying first stages")
    kinds = KINDS if config.first_stage == "auto" else (config.first_stage,)
    stage, choice = choose_first_stage(vectors, held_out, target=config.recall, kinds=kinds)
    if stage is not None:
        _write_index(folder / FIRST_STAGE_FILE, stage)
    elif config.first_stage != "auto":
        best = max((trial.recall for trial in (*choice.refused, *choice.trials)), default=0.0)
        raise InvalidSetting(
            f"first_stage must reach recall@{K} {config.recall:g}; {config.first_stage} reaches {best:.3f}. "
            "Use auto, or ask for less recall."
        )
    return choice, stage
