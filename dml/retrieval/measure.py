"""What is measured of a filled index: recall and its parameters, a first stage, plans of filters, mates."""

from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.config import IndexConfig
from dml.errors import InvalidSetting
from dml.progress import begin
from dml.refs import EmbeddingsRef
from dml.reports import FirstStageChoice, OperatingCurve, StageMates
from dml.retrieval.bundle import FIRST_STAGE_FILE, Calibration
from dml.retrieval.cascade import Cascade
from dml.retrieval.fill import add_to_graph, write_index
from dml.retrieval.first_stage import KINDS, FirstStage
from dml.retrieval.first_stage_choice import choose_first_stage
from dml.retrieval.held_out import HeldOut, K, hold_out
from dml.retrieval.plan_calibration import calibrate_plans
from dml.retrieval.scope_impostors import not_trained_on
from dml.retrieval.stage_mates import measure_stages
from dml.retrieval.tune import graph_of, refined, tune
from dml.retrieval.vectors import FlatVectors


def measure_index(
    folder: Path,
    vectors: FlatVectors,
    items: pa.Table,
    index: faiss.Index,
    queries: NDArray[np.int64],
    *,
    factory: str,
    embeddings: EmbeddingsRef,
    config: IndexConfig,
) -> Calibration:
    """Set the search parameters by the recall target, and measure what a search then does.

    Args:
        folder: of this machine; the first stage is written there, if one is kept.
        vectors: N rows, flat.
        items: N rows.
        index: filled with the vectors; a graph without `queries`, which it is given after it is tuned.
        queries: (Q,) rows held out.
        factory: string that the index was made by, for the reader.
        embeddings: the table that the rows are of.
        config: recall target, probes and first stage.

    Raises:
        InvalidSetting: the first stage that was asked for misses the recall.
    """
    begin("measuring recall")
    held_out = hold_out(vectors, items, queries, are_indexed=graph_of(index) is None)
    curve = None if held_out is None else _tune(index, vectors, held_out, config)
    if graph_of(index) is not None:
        begin("adding the queries")
        add_to_graph(index, vectors, queries)
    choice, stage = None, None
    if config.first_stage is not None:
        of_all = hold_out(vectors, items, queries, are_indexed=True)
        if of_all is not None:
            choice, stage = _write_first_stage(folder, vectors, of_all, config)
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
    return Calibration(
        operating_curve=curve,
        recall_table=table,
        costs=costs,
        first_stage=choice,
        stages=stages,
    )


def _tune(index: faiss.Index, vectors: FlatVectors, held_out: HeldOut, config: IndexConfig) -> OperatingCurve:
    """Set the search parameters by the recall target."""
    return tune(index, vectors.index, held_out, target=config.recall, probes=config.num_probes)


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
        write_index(folder / FIRST_STAGE_FILE, stage)
    elif config.first_stage != "auto":
        best = max((trial.recall for trial in (*choice.refused, *choice.trials)), default=0.0)
        raise InvalidSetting(
            f"first_stage must reach recall@{K} {config.recall:g}; {config.first_stage} reaches {best:.3f}. "
            "Use auto, or ask for less recall."
        )
    return choice, stage
