"""Flow that compares every byte of a store with its manifests, and makes damaged artefacts again."""

from collections.abc import Callable, Sequence

from prefect import flow

from dml.data.ingest import ingest_again, ingest_unreadable
from dml.embedding.embed import embed
from dml.errors import DmlError, StorageUnavailable
from dml.integrity import CheckedArtifact, check_store, ref_of, remove_damaged, require_intact
from dml.refs import DatasetRef, EmbeddingsRef, IndexRef, require_dataset, require_package
from dml.reports import VerifiedArtifact, VerifyReport
from dml.retrieval.build import build_index, build_shard
from dml.retrieval.index import find_index_of_shard, index_config_of
from dml.settings import store_uri
from flows.policy import Name, progress_logger, say, show_table, stage


@flow(name="verify-flow")
def verify_flow(name: Name | None = None, repair: bool = False, store: str | None = None) -> VerifyReport:
    """Compare all files with their manifests.

    Args:
        name: a dataset or index, NAME or NAME@VERSION; None for everything, including checkpoints.
        repair: make damaged artefacts again from their inputs.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
    """
    root = store_uri(store)
    checked = stage(check_store)(root, name, progress_logger("verify", "artefacts"))
    states = repaired(root, checked) if repair else {}
    report = VerifyReport(
        artifacts=[
            VerifiedArtifact(
                kind=artifact.kind,
                artifact=artifact.title,
                damaged=artifact.damaged,
                state=states.get(artifact.uri, "damaged" if artifact.damaged else "ok"),
                uri=artifact.uri,
            )
            for artifact in checked
        ]
    )
    wrong = [artifact for artifact in report.artifacts if artifact.state != "ok"]
    rows = [{**artifact.model_dump(), "damaged": ", ".join(artifact.damaged)} for artifact in wrong]
    show_table("verify", rows, f"{len(checked)} artefacts")
    return report


def repaired(store: str, checked: Sequence[CheckedArtifact]) -> dict[str, str]:
    """Repair damaged artefacts, inputs before outputs; returns the resulting state by URI."""
    order = ["dataset", "package", "vectors", "embeddings", "shard", "index"]
    damaged = [artifact for artifact in checked if artifact.damaged]
    states = {}
    for artifact in sorted(damaged, key=lambda e: order.index(e.kind) if e.kind in order else len(order)):
        try:
            states[artifact.uri] = _repair_artifact(store, artifact)
        except StorageUnavailable:
            raise
        except DmlError as error:
            states[artifact.uri] = f"damaged, and cannot be made again: {error}"
        say(f"{artifact.kind} {artifact.title}: {states[artifact.uri]}")
    return states


def _repair_artifact(store: str, damaged: CheckedArtifact) -> str:
    repair_functions: dict[str, Callable[[str, CheckedArtifact], str]] = {
        "dataset": _ingest_again,
        "embeddings": _embed_again,
        "shard": _build_shard_again,
        "index": _build_again,
    }
    if damaged.kind in repair_functions:
        return repair_functions[damaged.kind](store, damaged)
    if damaged.kind.endswith("pointer"):
        return "damaged, and cannot be made again: use `dml rollback`, or remove the file"
    if damaged.kind == "log":
        return "damaged, and cannot be made again: restore the folder from a backup, all its files"
    if damaged.kind == "list of forgotten items":
        return "damaged, and cannot be made again: restore it from a copy, or forget the items again"
    if damaged.kind == "vectors":
        return "damaged, and cannot be made again: import their file again under the same name"
    if damaged.kind == "thresholds":
        return "damaged, and cannot be made again: calibrate the index again by `dml calibrate`"
    if damaged.kind == "package":
        return "damaged, and cannot be made again: train it again, or restore the folder from a copy"
    stage(remove_damaged)(damaged)
    return "removed; made again when it is needed"


def _ingest_again(store: str, damaged: CheckedArtifact) -> str:
    progress = progress_logger("ingest")
    if damaged.is_unreadable:
        dataset = stage(ingest_unreadable)(store, damaged.name, damaged.version, progress)
    else:
        dataset = stage(ingest_again)(ref_of(damaged, DatasetRef), store, progress)
    if dataset.version == damaged.version:
        return "made again"
    return (
        f"damaged, and cannot be made again: its source gives {dataset} now. Where no index needs it, remove "
        f"it: dml rm dataset {damaged.title}"
    )


def _embed_again(store: str, damaged: CheckedArtifact) -> str:
    ref = ref_of(damaged, EmbeddingsRef)
    package = require_package(ref.embedder, "Embedding again")
    dataset = require_dataset(ref.items, "Embedding again")
    stage(require_intact)(package, dataset)  # before the intact files are removed
    stage(remove_damaged)(damaged)
    stage(embed)(store, package, dataset, split=ref.split)
    return "made again"


def _build_again(store: str, damaged: CheckedArtifact) -> str:
    ref, config = ref_of(damaged, IndexRef), index_config_of(ref_of(damaged, IndexRef))
    changes = [] if ref.changes is None else [ref.changes]
    stage(require_intact)(ref.embeddings, ref.embeddings.items, *changes)
    stage(remove_damaged)(damaged)
    built = stage(build_index)(store, ref.name, ref.embeddings, config, model=ref.model, changes=ref.changes)
    return _same(damaged, built)


def _build_shard_again(store: str, damaged: CheckedArtifact) -> str:
    """Make a shard again; where its own manifest cannot be read, from what the index was made of."""
    if not damaged.is_unreadable:
        return _build_again(store, damaged)
    index = stage(find_index_of_shard)(store, damaged.name, damaged.uri)
    if index is None:
        stage(remove_damaged)(damaged)
        return "removed; no index that can be read has it"
    stage(require_intact)(index.embeddings, index.embeddings.items)
    stage(remove_damaged)(damaged)
    return _same(damaged, stage(build_shard)(store, index, damaged.uri))


def _same(damaged: CheckedArtifact, built: IndexRef) -> str:
    if built.version == damaged.version:
        return "made again"
    return (
        f"damaged, and cannot be made again: with the memory of this machine it is {built.factory}. Build "
        f"it anew: dml index {built.name}"
    )
