"""Build a version of an index: a Faiss index of one embeddings table, measured and stored whole.

A version is a folder of files whose rows correspond, see `bundle`: so a row number means nothing outside its
version, and ids, labels and attributes never come apart from their vectors.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
from pyarrow import compute, fs

from dml import storage
from dml.cluster import map_remote, ray_session
from dml.config import IndexConfig
from dml.data.dataset import read_rows
from dml.data.forgotten import digest_of_id, forgotten_ids
from dml.data.schema import POSITION
from dml.embedding.table import cut_table
from dml.errors import ForgottenMeanwhile
from dml.names import versioned
from dml.progress import Ticker, begin
from dml.refs import ChangesRef, DatasetRef, EmbeddingsRef, IndexRef, ShardRef
from dml.retrieval.bundle import (
    INDEX_FILE,
    INDEX_FORMAT,
    write_calibration,
)
from dml.retrieval.changes import ChangedRows
from dml.retrieval.factory import FLAT_FACTORY, plan_index
from dml.retrieval.fill import write_index
from dml.retrieval.index import index_config_of, read_index, take_back
from dml.retrieval.measure import measure_index
from dml.retrieval.rows import write_rows

logger = logging.getLogger(__name__)

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
        ForgottenMeanwhile: items of the dataset were forgotten meanwhile.
    """
    if config.shards > 1:
        return _build_shards(store, name, embeddings, config, model=model, changes=changes)
    planned = plan_index(embeddings, config) if config.factory == "auto" else None
    factory = config.factory if planned is None else planned.factory
    if factory == "Flat":
        factory = FLAT_FACTORY[config.vectors]
    fingerprint = _fingerprint(embeddings, factory, config, changes)
    folders = [] if embeddings.parts is None else [storage.SHARDS]
    uri = storage.join(storage.named_folder(store, "indexes", name), *folders, fingerprint[:12])
    if storage.is_intact(uri):
        logger.info("index: nothing to do, %s@%s is built already", name, fingerprint[:12])
        return read_index(uri)
    with Ticker("index"), storage.staged(uri) as staged, _local(staged) as folder:
        rows = ChangedRows(embeddings, changes)
        vectors, items, index, queries = write_rows(folder, factory, rows, config)
        calibration = measure_index(
            folder, vectors, items, index, queries, factory=factory, embeddings=embeddings, config=config
        )
        write_calibration(folder, calibration.model_copy(update={"planned": planned}))
        if vectors.index is not index:
            begin("writing the index")
            write_index(folder / INDEX_FILE, index)
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


def _fingerprint(
    embeddings: EmbeddingsRef, factory: str, config: IndexConfig, changes: ChangesRef | None
) -> str:
    """Of all that decides what a bundle answers."""
    return storage.digest_of(
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
    forgotten = forgotten_ids(
        store, items.name, folder="datasets" if isinstance(items, DatasetRef) else "vectors"
    )
    if forgotten and any(
        digest_of_id(id_) in forgotten
        for start in range(0, len(ids), _IDS_AT_ONCE)
        for id_ in ids.slice(start, _IDS_AT_ONCE).to_pylist()
    ):
        take_back(store, ref)
        raise ForgottenMeanwhile(
            f"An index must not hold what is forgotten; items of {items.name} were "
            "forgotten while it was built. Nothing was published; begin again."
        )
