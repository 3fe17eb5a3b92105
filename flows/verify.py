"""Every byte of a store against its manifests, and what is damaged made again where it can be."""

from collections.abc import Callable, Sequence

from prefect import flow

from dml.data.ingest import ingest_again
from dml.embedding.embed import embed
from dml.errors import DmlError
from dml.integrity import CheckedArtifact, check_store, ref_of, remove_damaged, require_intact
from dml.refs import DatasetRef, EmbeddingsRef, IndexRef, require_dataset, require_package
from dml.reports import VerifiedArtefact, VerifyReport
from dml.retrieval.index import build_index, index_config_of
from dml.settings import store_uri
from flows.policy import Name, progress_logger, say, show_table, stage


@flow(name="verify-flow")
def verify_flow(name: Name | None = None, heal: bool = False, store: str | None = None) -> VerifyReport:
    """Compare all files with their manifests.

    Args:
        name: a dataset or index, NAME or NAME@VERSION; None: everything, checkpoints too.
        heal: make damaged artefacts again from what they were made of.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
    """
    root = store_uri(store)
    checked = stage(check_store)(root, name, progress_logger("verify", "artefacts"))
    states = repair(root, checked) if heal else {}
    report = VerifyReport(
        artefacts=[
            VerifiedArtefact(
                kind=each.kind,
                artefact=each.title,
                damaged=each.damaged,
                state=states.get(each.uri, "damaged" if each.damaged else "ok"),
                uri=each.uri,
            )
            for each in checked
        ]
    )
    wrong = [each for each in report.artefacts if each.state != "ok"]
    rows = [{**each.model_dump(), "damaged": ", ".join(each.damaged)} for each in wrong]
    show_table("verify", rows, f"{len(checked)} artefacts")
    return report


def repair(store: str, checked: Sequence[CheckedArtifact]) -> dict[str, str]:
    """URI to what became of each damaged artefact; those that others are made from come first."""
    order = ["dataset", "package", "vectors", "embeddings", "index"]
    damaged = [each for each in checked if each.damaged]
    states = {}
    for each in sorted(damaged, key=lambda e: order.index(e.kind) if e.kind in order else len(order)):
        try:
            states[each.uri] = _heal(store, each)
        except DmlError as error:
            states[each.uri] = f"damaged, and cannot be made again: {error}"
        say(f"{each.kind} {each.title}: {states[each.uri]}")
    return states


def _heal(store: str, damaged: CheckedArtifact) -> str:
    healers: dict[str, Callable[[str, CheckedArtifact], str]] = {
        "dataset": _ingest_again,
        "embeddings": _embed_again,
        "index": _build_again,
    }
    if damaged.kind in healers:
        return healers[damaged.kind](store, damaged)
    if damaged.kind.endswith("pointer"):
        return "damaged, and cannot be made again: go back with `dml rollback`, or remove the file"
    if damaged.kind == "list of forgotten items":
        return "damaged, and cannot be made again: bring it back from a copy, or forget the items again"
    if damaged.kind == "vectors":
        return "damaged, and cannot be made again: import their file again under the same name"
    if damaged.kind == "package":
        return "damaged, and cannot be made again: train it again, or restore the folder from a copy"
    stage(remove_damaged)(damaged)
    return "removed; made again when it is asked for"


def _ingest_again(store: str, damaged: CheckedArtifact) -> str:
    made = stage(ingest_again)(ref_of(damaged, DatasetRef), store, progress_logger("ingest"))
    if made.version == damaged.version:
        return "made again"
    return f"damaged, and cannot be made again: its source gives {made} now"


def _embed_again(store: str, damaged: CheckedArtifact) -> str:
    ref = ref_of(damaged, EmbeddingsRef)
    package = require_package(ref.embedder, "Embedding again")
    dataset = require_dataset(ref.items, "Embedding again")
    stage(require_intact)(package, dataset)  # or what is left would be removed in vain
    stage(remove_damaged)(damaged)
    stage(embed)(store, package, dataset, split=ref.split)
    return "made again"


def _build_again(store: str, damaged: CheckedArtifact) -> str:
    ref, config = ref_of(damaged, IndexRef), index_config_of(ref_of(damaged, IndexRef))
    stage(require_intact)(ref.embeddings, ref.embeddings.items)
    stage(remove_damaged)(damaged)
    stage(build_index)(store, ref.name, ref.embeddings, config, model=ref.model)
    return "made again"
