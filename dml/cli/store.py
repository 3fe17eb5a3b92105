"""What concerns a store as a whole: `dml verify`, `dml gc`, `dml rm`, `dml rollback` and `dml forget`."""

from collections.abc import Callable, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from dml.cli.app import Json, Store, Who, store_uri, verb, who_or_user
from dml.cli.output import emit, print_table
from dml.errors import CorruptArtifact, InvalidSetting
from dml.progress import Ticker

if TYPE_CHECKING:
    from dml.reports import (
        CleanupReport,
        Erasure,
        ForgetReport,
        RemovalReport,
        RollbackReport,
        VerifyReport,
    )

_MAX_GRACE_HOURS = 876_000  # a century; `datetime` counts no further back than to the year 1


class Removable(StrEnum):
    """What `dml rm` removes."""

    DATASET = "dataset"
    INDEX = "index"
    MODEL = "model"
    RUN = "run"
    VECTORS = "vectors"
    THRESHOLDS = "thresholds"


class Pointed(StrEnum):
    """What has a current version that can be taken back."""

    INDEX = "index"
    MODEL = "model"
    VECTORS = "vectors"
    THRESHOLDS = "thresholds"


@verb()
def verify(
    name: Annotated[
        str | None, typer.Argument(help="a dataset or index, NAME or NAME@VERSION; default: everything")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="make again what is damaged, where it can be")
    ] = False,
    store: Store = None,
    as_json: Json = False,
) -> "VerifyReport":
    """Compare every byte of the store with what was published; exit status 2 where something is damaged."""
    from flows.policy import run
    from flows.verify import verify_flow

    report = run(verify_flow, name, repair, store_uri(store))
    error = CorruptArtifact(
        "Some artefacts are damaged, see above. `dml verify --repair` makes again what can be."
    )
    return emit(report, as_json, _show_verified, error=error if report.damaged else None)


def _show_verified(report: "VerifyReport") -> None:
    for artifact in report.artifacts:
        if artifact.state != "ok":
            print(f"{artifact.kind} {artifact.artifact}: {', '.join(artifact.damaged)}: {artifact.state}")
    num_ok = sum(artifact.state == "ok" for artifact in report.artifacts)
    print(f"{len(report.artifacts)} artefacts, {num_ok} as they were published")


@verb()
def gc(
    keep: Annotated[
        int, typer.Option(min=1, help="versions of each dataset and index, current included")
    ] = 2,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only show what would go")] = False,
    grace_hours: Annotated[
        float,
        typer.Option(min=0, max=_MAX_GRACE_HOURS, help="what is younger stays: it may be about to be used"),
    ] = 1.0,
    store: Store = None,
    as_json: Json = False,
) -> "CleanupReport":
    """Remove what nothing needs: old versions, what killed processes left, finished runs' checkpoints."""
    from dml import storage
    from dml.lineage import remove, unneeded
    from dml.registry.catalog import list_models
    from dml.registry.registered import registered_elsewhere
    from dml.reports import CleanupReport, UnneededArtifact

    root = store_uri(store)
    storage.require_store(root)  # or asking for its models would make it one
    registered = [
        model.package.model_dump(mode="json", exclude=None if model.alias else {"dataset"})
        for model in list_models(root)
    ]
    registered += [storage.read_manifest(uri)["ref"] | {"uri": uri} for uri in registered_elsewhere(root)]
    with Ticker("gc") as ticker:
        ticker.begin("reading what there is", "artefacts")
        removals = unneeded(root, registered, keep=keep, grace=timedelta(hours=grace_hours))
        if not dry_run:
            ticker.begin("removing", "things", len(removals))
            removals = remove(removals)
    report = CleanupReport(
        removed=[
            UnneededArtifact(uri=item.uri, kind=item.kind, why=item.why, size_bytes=item.size_bytes)
            for item in removals
        ],
        size_bytes=sum(item.size_bytes for item in removals),
        dry_run=dry_run,
    )
    return emit(report, as_json, _show_cleanup)


def _show_cleanup(report: "CleanupReport") -> None:
    if not report.removed:
        print("nothing to remove: everything is needed")
        return
    rows = [
        {"kind": item.kind, "what": item.uri, "why": item.why, "MiB": round(item.size_bytes / 2**20, 2)}
        for item in report.removed
    ]
    print_table("would go" if report.dry_run else "removed", rows)
    said = ", nothing removed yet" if report.dry_run else ""
    print(f"artefacts and leftovers: {len(rows)}, {report.size_bytes / 2**20:,.1f} MiB{said}")


@verb()
def rm(
    kind: Annotated[Removable, typer.Argument(help="what it is")],
    name: Annotated[str, typer.Argument(help="NAME for all of it, NAME@VERSION, NAME/VERSION of a model")],
    store: Store = None,
    as_json: Json = False,
) -> "RemovalReport":
    """Remove a dataset, an index, its thresholds, a model, a run or imported vectors, unless it is needed."""
    from dml.reports import RemovalReport

    root = store_uri(store)
    if kind == Removable.MODEL:
        from dml.registry.removal import remove_model

        removed = remove_model(root, name)
    elif kind == Removable.THRESHOLDS:
        from dml.retrieval.index import find_index
        from dml.retrieval.thresholds import remove_thresholds

        index = find_index(root, name)
        remove_thresholds(root, index)
        removed = [str(index)]
    else:
        from dml.lineage import remove_named

        end_schedule = _schedule_to_end(root, name) if kind == Removable.INDEX else None
        removed = remove_named(root, kind.value, name)
        if end_schedule is not None:
            end_schedule()
    return emit(RemovalReport(kind=kind.value, removed=removed), as_json, _show_removed)


def _show_removed(report: "RemovalReport") -> None:
    for name in report.removed:
        print(f"removed {report.kind} {name}")
    print("`dml gc` removes what nothing needs any more")


def _schedule_to_end(store: str, index: str) -> Callable[[], None] | None:
    """The function that removes a scheduled index from Prefect; None: no Prefect server has its schedule."""
    from dml.retrieval.refresh import names_to_refresh

    if index not in names_to_refresh(store):
        return None
    from dml.up import running_stack
    from flows.schedules import follow_store, prefect_api_url

    stack = running_stack(store)
    prefect = prefect_api_url(stack.addresses.PREFECT_API_URL if stack else None)
    return None if prefect is None else lambda: follow_store(store, prefect)


@verb()
def rollback(
    kind: Annotated[Pointed, typer.Argument(help="what it is")],
    name: Annotated[
        str, typer.Argument(help="NAME for the version before, NAME@VERSION, NAME/VERSION of a model")
    ],
    reason: Annotated[str, typer.Option(help="why; of a model, its versions show it")] = "",
    store: Store = None,
    as_json: Json = False,
) -> "RollbackReport":
    """Make the version before the current one current again: of an index, of vectors, or a champion."""
    from dml.reports import RollbackReport

    root = store_uri(store)
    if kind == Pointed.MODEL:
        from dml.registry.champion import rollback_champion

        version = str(rollback_champion(root, name, reason=reason))
    elif kind == Pointed.VECTORS:
        from dml.embedding.imported import rollback_vectors

        version = rollback_vectors(root, name).source
    else:
        from dml.retrieval.gallery import rollback_index

        version = str(rollback_index(root, name))
    return emit(RollbackReport(kind=kind.value, current=version), as_json, _show_rollback)


def _show_rollback(report: "RollbackReport") -> None:
    print(f"{report.kind} {report.current} is current")


@verb()
def forget(
    name: Annotated[str, typer.Argument(help="a dataset, imported vectors, or an index with a gallery")],
    ids: Annotated[list[str] | None, typer.Argument(help="ids of items, as `dml search` shows them")] = None,
    identity: Annotated[
        str | None, typer.Option(help="the label of an identity; forget all its items in the gallery")
    ] = None,
    now: Annotated[
        bool,
        typer.Option("--now", help="erase what was enrolled from all index versions now, not by dml reindex"),
    ] = False,
    who: Who = None,
    store: Store = None,
    as_json: Json = False,
) -> "ForgetReport":
    """Erase items: of a dataset from all versions and what was made of them; of a gallery from answers."""
    from dml import storage
    from flows.forget import forget_enrolled_flow, forget_flow
    from flows.policy import run

    root = store_uri(store)
    storage.require_store(root)
    if not ids and identity is None:
        raise InvalidSetting(
            "What is forgotten must be named: ids of items, or --identity LABEL; got neither."
        )
    if ids and identity is not None:
        raise InvalidSetting(f"--identity goes without ids of items; got {ids} too.")
    if identity is not None or now or _are_enrolled(root, name, ids or []):
        report = run(forget_enrolled_flow, name, ids, identity, now, root, who_or_user(who))
    elif who is not None:
        raise InvalidSetting(
            f"--who is of a gallery's log; {name} is a dataset, which keeps hashed ids alone. Leave it out."
        )
    else:
        report = run(forget_flow, name, ids or [], root)
    return emit(report, as_json, _show_forgotten)


def _are_enrolled(store: str, name: str, ids: list[str]) -> bool:
    """Whether these are items of a gallery, and not of the dataset of that name."""
    from dml.data.dataset import has_dataset
    from dml.embedding.imported import has_vectors
    from dml.retrieval.gallery import has_entries
    from dml.retrieval.index import published_names

    if has_entries(store, name, ids):
        return True
    is_index = name in published_names(store)
    return is_index and not has_dataset(store, name) and not has_vectors(store, name)


def receipt_lines(receipt: Sequence["Erasure"]) -> list[str]:
    """What a receipt of forgetting says for people, beside the artefacts that are removed and the indexes.

    A log on S3 can have thousands of segments; of those that were written again the first and the last are
    named.
    """
    segments = [line.name for line in receipt if line.place == "segment" and line.erased]
    lines = []
    if len(segments) == 1:
        lines.append(f"written again without them: segment {segments[0]}")
    elif segments:
        lines.append(f"written again without them: {len(segments)} segments, {segments[0]} to {segments[-1]}")
    return lines + [
        f"{line.place} {line.name} holds some until: {line.until}"
        for line in receipt
        if not line.erased and line.place != "index"
    ]


def _show_forgotten(report: "ForgetReport") -> None:
    for index in report.rebuilt:
        print(f"index {index}: {index.rows} items are left")
    for uri in report.removed:
        print(f"removed {uri}")
    if report.same_images:
        print(f"the same bytes stand under other ids, which stay: {', '.join(report.same_images[:10])}")
    if report.still_held_by:
        held = ", ".join(report.still_held_by[:10])
        print(f"no search finds them; these index versions hold some until `dml reindex`, or --now: {held}")
    for line in receipt_lines(report.receipt):
        print(line)
    print(
        f"items forgotten: {report.items}. Not reached: the source, other machines' caches, what a model has"
    )
    print("learnt, pages in MLflow and pictures in Prefect (docs/store.md)")
