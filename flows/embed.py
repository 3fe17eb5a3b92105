"""Flow that embeds a dataset with a registered model."""

from prefect import flow

from dml.data.dataset import find_dataset
from dml.embedding.embed import embed
from dml.refs import EmbeddingsRef
from dml.registry.catalog import find_model
from dml.settings import store_uri
from flows.policy import Name, progress_logger, say, stage, tag_with_names


@flow(name="embed-flow", flow_run_name="embed {dataset} with {model}", on_running=[tag_with_names])
def embed_flow(
    model: Name, dataset: Name, store: str | None = None, num_workers: int | None = None
) -> EmbeddingsRef:
    """Embed a whole dataset; a killed run continues at the fragment where it stopped.

    Args:
        model: NAME (its champion), NAME@ALIAS or NAME/VERSION.
        dataset: NAME (its current version) or NAME@VERSION.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
        num_workers: embedding actors; None to choose by the dataset's size.
    """
    root = store_uri(store)
    version = stage(find_model)(root, model)
    source = stage(find_dataset)(root, dataset)
    embeddings = stage(embed, retryable=True)(
        root, version.package, source, num_workers=num_workers, progress=progress_logger("embed")
    )
    say(f"{embeddings.rows} embeddings of {embeddings.dim} dimensions in {embeddings.uri}")
    return embeddings
