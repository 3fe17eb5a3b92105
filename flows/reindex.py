"""Keep an index fresh: ingest what is new, embed what is new with the champion, build, publish."""

from prefect import flow

from dml.config import IndexConfig, IngestConfig
from dml.data.dataset import find_dataset
from dml.data.former import last_ingest
from dml.embedding.embed import embed
from dml.refs import IndexRef
from dml.registry.catalog import find_model
from dml.retrieval.index import index_config_of, published_index
from dml.retrieval.refresh import refreshed_from, require_most_still_there
from dml.settings import store_uri
from flows.index import publish_index_of
from flows.ingest import ingest_flow
from flows.policy import Name, progress_logger, run, say, stage, tag_with_names


@flow(name="reindex-flow", flow_run_name="reindex {name}", on_running=[tag_with_names])
def reindex_flow(
    name: Name,
    model: Name | None = None,
    dataset: Name | None = None,
    source: IngestConfig | None = None,
    config: IndexConfig | None = None,
    store: str | None = None,
    num_workers: int | None = None,
) -> IndexRef:
    """Refresh an index: only images that are new are embedded, and nothing new leaves the index as it is.

    A source most of whose images are gone fails the run and leaves the index as it is too.

    Args:
        name: the index's name.
        model: NAME (its champion), NAME@ALIAS or NAME/VERSION; None: as `dml schedule` was told, else the
            champion of the name it was made with.
        dataset: NAME, whose source is read again first, or NAME@VERSION, taken as it is; None: likewise.
        source: where NAME comes from; None: from where, and as, it came before.
        config: the Faiss factory string and probes; None: as the index was asked for before.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
        num_workers: embedding actors; None: as the amount of new images asks.
    """
    root = store_uri(store)
    if model is None or dataset is None:
        own_model, own_dataset = stage(refreshed_from)(root, name)
        model, dataset = model or own_model, dataset or own_dataset
    former = stage(published_index)(root, name)
    read_again = "@" not in dataset
    if read_again:
        recorded = source or stage(last_ingest)(root, dataset)
        run(ingest_flow, recorded.model_copy(update={"name": dataset}), root)
    fresh = stage(find_dataset)(root, dataset)
    if read_again and former is not None:
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
    asked = config or (index_config_of(former) if former is not None else IndexConfig())
    return publish_index_of(embeddings, name, asked, root, str(version))
