"""`dml embed`, `dml index` and `dml indexes`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dml.cli.app import Json, Settings, Store, Workers, store_to_list, store_uri, verb
from dml.cli.datasets import ingest_place, is_place
from dml.cli.output import columns_of, emit, listed, print_table, what_is_damaged
from dml.cli.pictures import require_picture, write_picture
from dml.errors import DmlError, InvalidSetting, MissingArtifact

if TYPE_CHECKING:
    from dml.config import IndexConfig
    from dml.refs import EmbeddingsRef, IndexRef
    from dml.reports import (
        FirstStageChoice,
        IndexExplanation,
        IndexList,
        ListedIndex,
        StageMates,
    )


_CHOICES = {
    "first_stage": ("--first-stage", "auto, pca16, pca32, signs, rabitq, pq4 or pq8"),
    "vectors": ("--dtype", "float32 or float16"),
    "memory_gb": ("--memory", "above 0, as 100M"),
}


@verb()
def embed(
    model: Annotated[str, typer.Argument(help="NAME (its champion), NAME@ALIAS or NAME/VERSION")],
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION")],
    workers: Workers = None,
    store: Store = None,
    as_json: Json = False,
) -> "EmbeddingsRef":
    """Embed a whole dataset with a registered model."""
    from flows.embed import embed_flow
    from flows.policy import run

    ref = run(embed_flow, model, dataset, store_uri(store), workers)
    return emit(ref, as_json, _show_embeddings)


def _show_embeddings(ref: "EmbeddingsRef") -> None:
    print(f"{ref.rows} embeddings of {ref.dim} dimensions: {ref.uri}")


@verb()
def index(
    name: Annotated[
        str,
        typer.Argument(
            help="the index's name; or a folder or zip of images, which is ingested first and gives the name"
        ),
    ],
    dataset: Annotated[
        str | None, typer.Option(help="NAME or NAME@VERSION; default: the index's name")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="NAME (its champion), NAME@ALIAS or NAME/VERSION; default: the dataset's champion"),
    ] = None,
    vectors: Annotated[
        str | None, typer.Option(help="imported vectors instead of a dataset: NAME or NAME@VERSION")
    ] = None,
    embedder: Annotated[
        str | None,
        typer.Option(
            help="what embeds; a pretrained network instead of --model: timm:NAME, torchvision:NAME, "
            "safetensors:FILE@timm:NAME, hf:OWNER/NAME, onnx:FILE, python:MODULE:FUNCTION"
        ),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="pretrained weights, a safetensors or .pth file; of --embedder")
    ] = None,
    preprocessing: Annotated[
        Path | None, typer.Option(help="how the network takes images, a JSON file; of --embedder")
    ] = None,
    detector: Annotated[
        Path | None,
        typer.Option(
            help="a face detector's ONNX file, as of YuNet; the largest face of each image is detected, "
            "aligned and cropped first; of --embedder"
        ),
    ] = None,
    settings: Settings = None,
    license: Annotated[str, typer.Option(help="license of what embeds; for the registry")] = "",
    factory: Annotated[
        str, typer.Option(help="auto, as `dml plan` has it, or any Faiss index_factory string")
    ] = "auto",
    recall: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="recall@10 of searches; they are tuned to it")
    ] = 0.95,
    memory: Annotated[
        str | None, typer.Option(help="of each machine, as 64G; default: this machine's; of --factory auto")
    ] = None,
    first_stage: Annotated[
        str | None,
        typer.Option(
            help="small codes that find candidates first: pca16, pca32, signs, rabitq, pq4, pq8, or auto, "
            "the cheapest of them that reaches the recall"
        ),
    ] = None,
    order_by: Annotated[
        str | None,
        typer.Option(help="the column that filters name most: its values are stored together; default: none"),
    ] = None,
    dtype: Annotated[
        str,
        typer.Option(help="of the vectors beside the index: float32, or float16, half the size on disk"),
    ] = "float32",
    explain: Annotated[
        bool,
        typer.Option("--explain", help="print costs and recall with their basis; by parameters of a search"),
    ] = False,
    shards: Annotated[
        int, typer.Option(min=1, help="bundles to cut the rows into, built in parallel and searched together")
    ] = 1,
    workers: Workers = None,
    store: Store = None,
    as_json: Json = False,
) -> "IndexRef":
    """Build an index over a dataset's embeddings, or imported vectors, and make it the one in use."""
    from dml.models.external import ImportConfig
    from flows.index import index_flow
    from flows.policy import run

    config = _index_config(
        factory=factory,
        recall=recall,
        memory_gb=_memory_gb(memory, factory),
        shards=shards,
        first_stage=first_stage,
        order_by=order_by,
        vectors=dtype,
    )
    files = {"weights": weights, "preprocessing": preprocessing, "detector": detector}
    _refuse_contradiction(model, embedder, **files, license=license, set=" ".join(settings or []))
    ImportConfig().overridden(settings or [])  # refused before anything is ingested
    show = _show_explained if explain else _show_index
    root, other = store_uri(store), dataset or model or embedder
    if vectors is None and dataset is None and is_place(root, name):
        name = ingest_place(root, name, has_embedder=other is not None, num_workers=workers)
    elif vectors is not None or (other is None and _is_vectors(root, name)):
        if workers is not None:
            raise InvalidSetting(
                f"--workers embed images, and imported vectors are indexed as they are; got {workers}. Leave "
                "it out; --shards are built in parallel."
            )
        return emit(_index_vectors(name, vectors or name, other, config, root), as_json, show)
    dataset = dataset or name
    if embedder is not None:
        model = _import_model(embedder, dataset, files, license, settings, root)
    ref = run(index_flow, name, model or dataset.partition("@")[0], dataset, config, root, workers)
    return emit(ref, as_json, show)


def _memory_gb(memory: str | None, factory: str) -> float | None:
    from dml.retrieval.amounts import parse_bytes

    if memory is not None and factory != "auto":
        raise InvalidSetting(
            f"--memory bounds what --factory auto plans; got {memory} and {factory}. Leave one out."
        )
    return None if memory is None else parse_bytes("memory", memory) / 1e9


def _index_config(**settings: Any) -> "IndexConfig":
    from pydantic import ValidationError

    from dml.config import IndexConfig

    try:
        return IndexConfig(**settings)
    except ValidationError as error:
        setting, message = str(error.errors()[0]["loc"][0]), error.errors()[0]["msg"]
        option, allowed = _CHOICES.get(setting, (f"--{setting.replace('_', '-')}", f"possible ({message})"))
        raise InvalidSetting(f"{option} must be {allowed}; got {settings[setting]!r}.") from error


def _refuse_contradiction(model: str | None, embedder: str | None, **of_embedder: object) -> None:
    """Raise InvalidSetting for two models, or for options of an embedder without one."""
    if model is not None and embedder is not None:
        raise InvalidSetting(
            f"An index needs one model; got --model {model} and --embedder {embedder}. Leave one out."
        )
    for option, value in of_embedder.items():
        if embedder is None and value:
            raise InvalidSetting(
                f"--{option} belongs to an --embedder; got {value} and none. Name the network it is of, as "
                "--embedder torchvision:resnet50."
            )


def _import_model(
    embedder: str,
    dataset: str,
    files: Mapping[str, Path | None],
    license: str,
    settings: list[str] | None,
    store: str,
) -> str:
    """Register a pretrained network under the dataset's name; returns its version."""
    from flows.import_model import import_model_flow
    from flows.policy import run

    imported = run(
        import_model_flow,
        embedder,
        dataset.partition("@")[0],
        dataset,
        **{name: str(file) for name, file in files.items() if file is not None},
        license=license,
        settings=settings,
        store=store,
    )
    return str(imported)


def _is_vectors(store: str, name: str) -> bool:
    """Whether a name is that of imported vectors; a dataset never has the same."""
    from dml.embedding.imported import has_vectors

    return has_vectors(store, name)


def _index_vectors(
    name: str, vectors: str, other: str | None, config: "IndexConfig", store: str
) -> "IndexRef":
    from flows.index import index_vectors_flow
    from flows.policy import run

    if other is not None:
        raise InvalidSetting(
            f"Imported vectors are indexed as they are; got --vectors {vectors} and {other}. Leave one out."
        )
    return run(index_vectors_flow, name, vectors, config, store)


def _show_index(ref: "IndexRef") -> None:
    shards = f" in {len(ref.shards)} shards" if ref.shards else ""
    print(f"{ref}: {ref.rows} rows{shards}, {ref.factory}, recall@10 {ref.recall:.3f}: {ref.uri}")


def _show_explained(ref: "IndexRef") -> None:
    from dml.reports import IndexExplanation
    from dml.retrieval.bundle import read_calibration

    _show_index(ref)
    known = read_calibration(ref)
    explanation = IndexExplanation(
        index=ref,
        planned=known.planned,
        curve=known.operating_curve,
        first_stage=known.first_stage,
        stages=known.stages,
    )
    _show_explanation(explanation)


def _show_explanation(explanation: "IndexExplanation") -> None:
    curve = explanation.curve
    if explanation.planned is not None:
        print(f"{explanation.planned.factory} by the plan: {explanation.planned.why}")
    if explanation.delta or explanation.tombstones:
        print(
            f"{explanation.delta} items enrolled or changed since, {explanation.tombstones} of its own "
            "forgotten or changed; `dml reindex` builds that in"
        )
    if curve is None:
        print(f"{explanation.index}: it has one row, and nothing to find")
        return
    title = f"{explanation.index}: {explanation.index.factory}, {curve.memory_bytes / 1e6:,.1f} MB; "
    title += f"{curve.num_queries} queries like the items, recall@10 of {curve.target:g} wanted"
    if explanation.index.shards:
        title += f"; of {len(explanation.index.shards)} shards that with the least recall"
    rows = [
        {
            "chosen": "*" if point == curve.chosen else "",
            "parameters": point.parameters,
            "recall@10": point.recall,
            **({} if point.mate_at_1 is None else {"mate@1": point.mate_at_1}),
            "ms": point.latency_ms,
        }
        for point in curve.points
    ]
    print_table(title, rows)
    if curve.exact_mate_at_1 is not None:
        print(f"mate@1 of exact search: {curve.exact_mate_at_1:.4f}")
    if explanation.first_stage is not None:
        _show_first_stage(explanation.first_stage)
    if explanation.stages:
        _show_stages(explanation.stages)
    if explanation.picture is not None:
        print(f"picture: {explanation.picture}")


def _show_stages(stages: "Sequence[StageMates]") -> None:
    rows = [
        {
            "stage": each.stage,
            "hands on": each.handed_on,
            "mate-recall": each.mate_recall,
            "mate@1": "" if each.mate_at_1 is None else each.mate_at_1,
            "ms": each.cpu_us / 1e3,
        }
        for each in stages
    ]
    print_table(f"stages and re-rankers, of {stages[0].num_queries} labelled queries", rows)


def _show_first_stage(choice: "FirstStageChoice") -> None:
    chosen = [] if choice.chosen is None else [choice.chosen]
    tried = [("*", trial, "all rows") for trial in chosen]
    tried += [("", trial, "all rows") for trial in choice.refused]
    tried += [("", trial, f"{choice.sample_rows} rows") for trial in choice.trials]
    rows = [
        {
            "chosen": mark,
            "first stage": trial.kind,
            "bytes": trial.bytes_per_vector,
            "candidates": trial.shortlist,
            "of": of,
            "recall@10": trial.recall,
            **({} if trial.mate_at_1 is None else {"mate@1": trial.mate_at_1}),
            "ms": (trial.scan_us + trial.compare_us) / 1e3,
        }
        for mark, trial, of in tried
    ]
    title = f"first stage, compared in full; recall@10 of {choice.target:g} wanted"
    print_table(title if chosen else f"{title}, and reached by none: there is none", rows)


@verb()
def indexes(
    name: Annotated[
        str | None,
        typer.Argument(help="what searches of this one find and cost, instead of all; NAME or NAME@VERSION"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="write a picture into this PNG file; of recall and time by parameter")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> "IndexList | IndexExplanation":
    """List the versions of all indexes; `*` marks those that searches use, beside what is newer than they."""
    if name is not None:
        return emit(_explanation(store_to_list(store), name, picture), as_json, _show_explanation)
    if picture is not None:
        raise InvalidSetting(f"--picture is of one index; got {picture} and no NAME. Do: dml indexes NAME.")
    from dml.reports import IndexList, ListedIndex, Refresh
    from dml.retrieval.index import list_versions
    from dml.retrieval.refresh import read_refreshes

    root = store_to_list(store)
    damaged: list[DmlError] = []
    versions = list_versions(root, damaged)
    schedules, unreadable = read_refreshes(root)
    refreshes = {name: Refresh(**config.model_dump()) for name, config in schedules.items()}
    listing = IndexList(
        indexes=[
            listed(
                ListedIndex,
                version,
                newer=_newer(root, version.ref) if version.is_current else [],
                fpir=_fpir_of(root, version.ref),
                refresh=refreshes.get(version.ref.name),
            )
            for version in versions
        ],
        damaged=unreadable,
    )
    return emit(listing, as_json, _show_indexes, error=what_is_damaged(damaged))


def _explanation(store: str, name: str, picture: Path | None) -> "IndexExplanation":
    from dml.reports import IndexExplanation
    from dml.retrieval.bundle import read_calibration
    from dml.retrieval.gallery import Gallery
    from dml.retrieval.index import find_index

    ref = find_index(store, name)
    calibration = read_calibration(ref)
    curve, first_stage = calibration.operating_curve, calibration.first_stage
    size = Gallery.open(store, name, readonly=True).size
    explanation = IndexExplanation(
        index=ref,
        planned=calibration.planned,
        curve=curve,
        first_stage=first_stage,
        stages=calibration.stages,
        delta=size.delta,
        tombstones=size.tombstones,
    )
    if picture is None or curve is None:
        return explanation
    from dml.report.operating_curve import draw_operating_curve

    require_picture(picture)
    write_picture(picture, draw_operating_curve(f"{ref}: {ref.factory}", curve))
    return explanation.model_copy(update={"picture": str(picture.resolve())})


def _show_indexes(listing: "IndexList") -> None:
    for name, why in listing.damaged.items():
        typer.echo(f"index {name} is not refreshed: {why}", err=True)
    print_table("indexes", [_row_of_index(index) for index in listing.indexes])


def _row_of_index(index: "ListedIndex") -> dict[str, object]:
    return {
        "index": str(index),
        **columns_of(index.current, index.created),
        "rows": index.rows,
        "factory": index.factory,
        "recall@10": index.recall,
        "dataset": index.embeddings.source,
        "model": index.model,
        "newer": ", ".join(index.newer),
        **({} if index.fpir is None else {"FPIR": f"{100 * index.fpir:.3g} %"}),
        "refreshed": index.refresh.cron if index.refresh else "",
    }


def _fpir_of(store: str, ref: "IndexRef") -> float | None:
    """The false-positive rate that an index was calibrated for."""
    from dml.retrieval.thresholds import find_thresholds_ref

    thresholds = find_thresholds_ref(store, ref)
    return None if thresholds is None else thresholds.fpir


def _newer(store: str, ref: "IndexRef") -> list[str]:
    """The current dataset version and the champion, where the index was made of others."""
    from dml.data.dataset import find_dataset
    from dml.embedding.imported import find_vectors
    from dml.refs import DatasetRef

    newer: list[str] = []
    embeddings = ref.embeddings
    try:
        if not isinstance(embeddings.items, DatasetRef):
            latest = find_vectors(store, embeddings.items.name)
            newer += [latest.source] * (latest.fingerprint != embeddings.fingerprint)
        else:
            dataset = find_dataset(store, embeddings.items.name)
            newer += [str(dataset)] * (dataset.fingerprint != embeddings.items.fingerprint)
    except MissingArtifact:
        pass  # a dataset may be removed after it was indexed
    except DmlError:
        newer.append("dataset unknown")
    if ref.model:
        from dml.registry.catalog import find_champion

        try:
            champion = find_champion(store, ref.model.partition("/")[0])
        except DmlError:
            return [*newer, "champion unknown"]
        if champion is not None and champion.package.fingerprint != embeddings.embedder.fingerprint:
            newer.append(str(champion))
    return newer
