"""Flow that embeds a dataset with a model and publishes an index of the embeddings."""

from functools import partial

from prefect import flow

from dml.config import IndexConfig
from dml.embedding.imported import find_vectors
from dml.names import check_name
from dml.refs import EmbeddingsRef, IndexRef
from dml.registry.catalog import find_model
from dml.retrieval.build import build_index
from dml.retrieval.calibration import calibrate_alike
from dml.retrieval.gallery import collect_changes, publish_index, version_and_forgotten
from dml.settings import store_uri
from flows.embed import embed_flow
from flows.policy import Name, begin_again, run, say, show_table, stage, tag_with_names

_DEFAULT = IndexConfig()


@flow(name="index-flow", flow_run_name="index {name}", on_running=[tag_with_names])
def index_flow(
    name: Name,
    model: Name,
    dataset: Name,
    config: IndexConfig = _DEFAULT,
    store: str | None = None,
    num_workers: int | None = None,
) -> IndexRef:
    """Embed the new items, build an index, and make it current.

    Args:
        name: the index's name.
        model: NAME (its champion), NAME@ALIAS or NAME/VERSION.
        dataset: NAME (its current version) or NAME@VERSION.
        config: the Faiss factory string and probes; by default chosen by size.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
        num_workers: embedding actors; None to choose by the dataset's size.
    """
    root = store_uri(store)
    check_name(name, "index")
    version = str(stage(find_model)(root, model))  # resolved once, since the champion can change meanwhile

    def index() -> IndexRef:
        embeddings = run(embed_flow, version, dataset, root, num_workers)
        return build_and_publish(embeddings, name, config, root, version)

    return begin_again(index, partial(version_and_forgotten, root, name))


@flow(name="index-vectors-flow", flow_run_name="index {name}", on_running=[tag_with_names])
def index_vectors_flow(
    name: Name, vectors: str, config: IndexConfig = _DEFAULT, store: str | None = None
) -> IndexRef:
    """Build an index over imported vectors, and make it the one that searches use.

    Args:
        name: the index's name.
        vectors: NAME (their current version) or NAME@VERSION.
        config: the Faiss factory string and probes; by default chosen by size.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
    """
    root = store_uri(store)
    check_name(name, "index")

    def index() -> IndexRef:
        return build_and_publish(stage(find_vectors)(root, vectors), name, config, root, "")

    return begin_again(index, partial(version_and_forgotten, root, name))


def build_and_publish(
    embeddings: EmbeddingsRef, name: str, config: IndexConfig, store: str, model: str
) -> IndexRef:
    """Build an index with what its gallery enrolled, calibrate it as the former version was, publish it.

    Till then searches use the former version.
    """
    changes = stage(collect_changes)(store, name, embeddings)
    built = stage(build_index, retryable=True)(store, name, embeddings, config, model=model, changes=changes)
    calibrated = stage(calibrate_alike)(store, built)
    stage(publish_index)(store, built)
    show_table("index", [{"index": built.name, "rows": built.rows, "recall@10": built.recall}])
    say(f"index {built}: {built.rows} rows, {built.factory}, recall {built.recall:.3f}")
    if calibrated is not None:
        say(f"thresholds as before: {calibrated.num_promised} of {len(calibrated.scopes)} scopes")
    return built
