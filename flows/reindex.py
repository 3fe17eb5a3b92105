"""Flow that refreshes an index: ingest the source again, embed new items, build, publish."""

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
from flows.forget import erase_forgotten
from flows.index import build_and_publish
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
    """Refresh an index. Only new images are read and embedded; without changes the index stays the same.

    If most of the source's images are missing, the run fails and the index is not changed.

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
    erase_forgotten(root, name)  # what was forgotten in its gallery; nothing, as a rule
    if model is None or dataset is None:
        default_model, default_dataset = stage(refreshed_from)(root, name)
        model, dataset = model or default_model, dataset or default_dataset
    former = stage(published_index)(root, name)
    ingests_again = "@" not in dataset
    if ingests_again:
        recorded = source or stage(last_ingest)(root, dataset)
        run(ingest_flow, recorded.model_copy(update={"name": dataset}), root)
    fresh = stage(find_dataset)(root, dataset)
    if ingests_again and former is not None:
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
    index_config = config or (index_config_of(former) if former is not None else IndexConfig())
    return build_and_publish(embeddings, name, index_config, root, str(version))
