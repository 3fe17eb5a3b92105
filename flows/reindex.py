"""Flow that refreshes an index: ingest the source again, embed new items, build with its gallery, publish."""

from functools import partial

from prefect import flow

from dml.config import IndexConfig, IngestConfig
from dml.data.dataset import find_dataset
from dml.data.last_ingest import last_ingest
from dml.embedding.embed import embed
from dml.refs import DatasetRef, IndexRef
from dml.registry.catalog import find_model
from dml.reports import DatasetChanges, RefreshedIndex
from dml.retrieval.gallery import version_and_forgotten
from dml.retrieval.index import index_config_of, published_index
from dml.retrieval.refresh import refreshed_from, refreshed_vectors, require_most_still_there
from dml.settings import store_uri
from flows.forget import erase_forgotten
from flows.index import build_and_publish
from flows.ingest import ingest_flow
from flows.policy import Name, begin_again, progress_logger, run, say, stage, tag_with_names


@flow(name="reindex-flow", flow_run_name="reindex {name}", on_running=[tag_with_names])
def reindex_flow(
    name: Name,
    model: Name | None = None,
    dataset: Name | None = None,
    source: IngestConfig | None = None,
    config: IndexConfig | None = None,
    store: str | None = None,
    num_workers: int | None = None,
) -> RefreshedIndex:
    """Refresh an index. Only new images are read and embedded; without changes the index stays the same.

    What its gallery enrolled and forgot is built in, and it is calibrated as the former version was. An index
    of imported vectors is built of their current version. If most of the source's images are missing, the run
    fails and the index is not changed. If items are forgotten meanwhile, it begins again, twice at most.

    Args:
        name: the index's name.
        model: NAME (its champion), NAME@ALIAS or NAME/VERSION; None for the model set by `dml schedule`, else
            the champion of the name it was built with.
        dataset: NAME, whose source is ingested again first, or NAME@VERSION; None: likewise.
        source: the source of NAME; None to repeat the latest ingest.
        config: the Faiss factory string and probes; None for the former configuration.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
        num_workers: embedding actors; None to choose by the number of new images.
    """
    root = store_uri(store)
    refresh = partial(_refresh, root, name, model, dataset, source, config, num_workers)
    return begin_again(
        refresh,
        partial(version_and_forgotten, root, name),
        prepare=partial(erase_forgotten, root, name),  # in its gallery; nothing, as a rule
    )


def _refresh(
    root: str,
    name: str,
    model: str | None,
    dataset: str | None,
    source: IngestConfig | None,
    config: IndexConfig | None,
    num_workers: int | None,
) -> RefreshedIndex:
    former = stage(published_index)(root, name)
    index_config = config or (IndexConfig() if former is None else index_config_of(former))
    vectors = stage(refreshed_vectors)(root, name) if model is None and dataset is None else None
    if vectors is not None:
        return _refreshed(build_and_publish(vectors, name, index_config, root, ""), None)
    if model is None or dataset is None:
        default_model, default_dataset = stage(refreshed_from)(root, name)
        model, dataset = model or default_model, dataset or default_dataset
    fresh, ingested = _ingested_again(root, dataset, source)
    if ingested is not None and former is not None:
        stage(require_most_still_there)(former, fresh)
    version = stage(find_model)(root, model)
    package = version.package
    same_package = former is not None and former.embeddings.embedder.fingerprint == package.fingerprint
    embeddings = stage(embed, retryable=True)(
        root,
        package,
        fresh,
        previous=former.embeddings if former is not None and same_package else None,
        num_workers=num_workers,
        progress=progress_logger("embed"),
    )
    say(f"{embeddings.rows} embeddings of {fresh} by package {package.version}")
    return _refreshed(build_and_publish(embeddings, name, index_config, root, str(version)), ingested)


def _ingested_again(
    store: str, dataset: str, source: IngestConfig | None
) -> tuple[DatasetRef, DatasetChanges | None]:
    """NAME after an ingest of its source, and what that found; NAME@VERSION as it is."""
    if "@" in dataset:
        return stage(find_dataset)(store, dataset), None
    recorded = source or stage(last_ingest)(store, dataset)
    report = run(ingest_flow, recorded.model_copy(update={"name": dataset}), store)
    return stage(find_dataset)(store, dataset), report.changes


def _refreshed(index: IndexRef, ingested: DatasetChanges | None) -> RefreshedIndex:
    return RefreshedIndex(**index.model_dump(), ingested=ingested)
