"""Flow that trains two-dimensional embeddings with several losses and draws them side by side."""

from collections.abc import Sequence

from prefect import flow

from dml.config import ExperimentConfig
from dml.data.dataset import find_dataset
from dml.embedding.embed import embed
from dml.errors import InvalidSetting
from dml.presets import circle
from dml.refs import ReportRef
from dml.report.circles import draw_circles
from dml.report.page import read_picture
from dml.settings import store_uri
from dml.training.ray_trainer import train
from flows.policy import Name, progress_logger, say, show_picture, stage, tag_with_names

_OF_DIRECTIONS = ("softmax", "arcface", "triplet_margin", "margin")
_OF_LENGTHS = ("softmax", "normalized_softmax", "cosface", "arcface")


def _experiments(losses: Sequence[str], settings: Sequence[str], plane: bool) -> dict[str, ExperimentConfig]:
    """By kind of loss; raises InvalidSetting for a loss that cannot be trained so."""
    keep_lengths = ["encoder.unit_length=false"] if plane else []
    experiments = {kind: circle(kind).overridden([*keep_lengths, *settings]) for kind in losses}
    if plane and any(config.encoder.unit_length for config in experiments.values()):
        raise InvalidSetting(
            "A plane needs encoder.unit_length=false, which it sets itself; got encoder.unit_length=true. "
            "Leave the setting out, or draw circles alone, without the plane."
        )
    return experiments


@flow(name="circles-flow", flow_run_name="circles {dataset}", on_running=[tag_with_names])
def circles_flow(
    dataset: Name,
    losses: list[str] | None = None,
    settings: list[str] | None = None,
    show: Name | None = None,
    store: str | None = None,
    plane: bool = False,
) -> ReportRef:
    """Train a two-dimensional embedding per loss, and draw them as circles.

    Args:
        dataset: NAME or NAME@VERSION, with the classes to learn in its split `train`.
        losses: kinds of loss; None: softmax, arcface, triplet_margin and margin, or with `plane` softmax,
            normalized_softmax, cosface and arcface.
        settings: changes to all experiments, each `path.to.key=value`.
        show: the dataset whose rows are drawn; None for `dataset`.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
        plane: let classification losses see the lengths of embeddings, and draw these too.
    """
    root = store_uri(store)
    learnt = stage(find_dataset)(root, dataset)
    shown = learnt if show is None else stage(find_dataset)(root, show)
    experiments = _experiments(losses or (_OF_LENGTHS if plane else _OF_DIRECTIONS), settings or [], plane)
    tables = {}
    for kind, config in experiments.items():
        trained = stage(train, retryable=True)(config, learnt, root)
        tables[kind] = stage(embed, retryable=True)(
            root, trained.package, shown, progress=progress_logger(f"embed {kind}")
        )
    report = stage(draw_circles)(root, tables, str(learnt), plane=plane)
    for name, caption in report.pictures.items():
        show_picture("circles", read_picture(report, name), caption)
    say(f"circles of {', '.join(tables)}: {report.page}")
    return report
