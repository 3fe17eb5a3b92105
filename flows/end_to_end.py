"""Flow of the whole pipeline: ingest, train, evaluate, register, embed, index, search."""

from prefect import flow

from dml.config import ExperimentConfig, IngestConfig
from dml.reports import EndToEndReport
from dml.serving.answers import draw_sample
from dml.settings import store_uri
from flows.index import index_flow
from flows.ingest import ingest_flow
from flows.policy import Stopwatch, run, show_picture, stage, tag_with_names
from flows.train import train_flow


@flow(name="end-to-end-flow", flow_run_name="end to end {source.name}", on_running=[tag_with_names])
def end_to_end_flow(
    source: IngestConfig, experiment: ExperimentConfig, store: str | None = None
) -> EndToEndReport:
    """Ingest, train, evaluate, register, embed, index and search, each stage is resumable.

    Args:
        source: name, source, layout and split of the dataset.
        experiment: the training configuration; model and index are named after the dataset.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
    """
    root, watch = store_uri(store), Stopwatch()
    with watch("ingest"):
        dataset = run(ingest_flow, source, root).dataset
    with watch("train and evaluate"):
        name = str(dataset)
        training = run(train_flow, name, config=experiment, store=root)
    with watch("embed and index"):
        index = run(index_flow, dataset.name, training.model.name, name, store=root)
    with watch("search"):
        gallery, picture = stage(draw_sample)(root, index)
    show_picture("gallery", picture, f"queries of the test split and their answers, {index.name}")
    return EndToEndReport(
        dataset=dataset, training=training, index=index, gallery=gallery, seconds=watch.seconds
    )
