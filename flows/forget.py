"""Flows that erase items from every version of a dataset, of imported vectors or of a gallery's index.

Everything that was made of those versions goes, too.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from prefect import flow

from dml.data.forget import (
    erase_from_latest_quarantine,
    erase_remains,
    point_without,
    require_known,
    same_images,
    versions_containing,
    without_items,
)
from dml.data.forgotten import add_forgotten
from dml.embedding.embed import embed
from dml.embedding.forget import (
    point_without_vectors,
    require_known_vectors,
    vectors_containing,
    without_vectors,
)
from dml.embedding.imported import has_vectors
from dml.errors import DmlError, InvalidSetting, MissingArtifact
from dml.lineage import kind_of, remove_index_versions, remove_with_descendants, require_readable
from dml.refs import DatasetRef, EmbeddingsRef, IndexRef, require_package
from dml.reports import Erasure, ForgetReport
from dml.retrieval.build import build_index
from dml.retrieval.calibration import calibrate_alike
from dml.retrieval.gallery import (
    collect_changes,
    erasing,
    forget_items,
    forget_logged,
    forgotten_ids,
    ids_of_items,
    ids_of_table,
    mark_erased,
    publish_index,
    versions_holding,
)
from dml.retrieval.index import index_config_of, list_indexes, published_index
from dml.settings import store_uri
from flows.policy import progress_logger, run, say, stage, tag_with_names

_NEXT_BUILD = "dml reindex, or dml forget --now"


@dataclass(frozen=True)
class _Steps:
    """The steps of forgetting that differ between a dataset and imported vectors.

    A version is a DatasetRef of the one, an EmbeddingsRef of the other.
    """

    place: str
    """What a receipt calls it."""
    folder: str
    """Of the store."""
    require_known: Callable[[str, str, Sequence[str]], None]
    versions_containing: Callable[[str, str, Sequence[str]], list[Any]]
    without_items: Callable[[str, Any, Sequence[str]], Any]
    point_without: Callable[[str, str, Mapping[str, Any]], None]
    version_uri: Callable[[IndexRef], str]
    """Of what an index was built of."""
    table_of: Callable[[str, IndexRef, Any], EmbeddingsRef]
    """What to build an index of again: the embeddings of a version, by the index's model."""
    same_images: Callable[[Any, Sequence[str]], list[str]] | None = None
    """None: it has no images."""
    erase_remains: Callable[[str, str, Sequence[str]], None] | None = None
    """Of what no version holds any more; None: nothing remains."""


def _embedded(store: str, index: IndexRef, dataset: DatasetRef) -> EmbeddingsRef:
    """The vectors of the remaining items, copied from the former table."""
    former = index.embeddings
    package = require_package(former.embedder, f"Building index {index.name} again")
    return stage(embed)(
        store, package, dataset, split=former.split, previous=former, progress=progress_logger("embed")
    )


_DATASET = _Steps(
    place="dataset",
    folder="datasets",
    require_known=require_known,
    versions_containing=versions_containing,
    without_items=without_items,
    point_without=point_without,
    version_uri=lambda index: index.embeddings.items.uri,
    table_of=_embedded,
    same_images=same_images,
    erase_remains=erase_remains,
)
_VECTORS = _Steps(
    place="vectors",
    folder="vectors",
    require_known=require_known_vectors,
    versions_containing=vectors_containing,
    without_items=without_vectors,
    point_without=point_without_vectors,
    version_uri=lambda index: index.embeddings.uri,
    table_of=lambda _store, _index, table: table,
)


def _steps_of(index: IndexRef) -> _Steps:
    return _DATASET if isinstance(index.embeddings.items, DatasetRef) else _VECTORS


def _is_built_of(index: IndexRef, name: str, steps: _Steps) -> bool:
    return index.embeddings.items.name == name and _steps_of(index) is steps


@flow(name="forget-flow", flow_run_name="forget items of {dataset}", on_running=[tag_with_names])
def forget_flow(dataset: str, ids: list[str], store: str | None = None) -> ForgetReport:
    """Erase items from every version of a dataset, or of imported vectors.

    Indexes are rebuilt first, so that search stays available.

    If it is killed, the same call continues where it stopped.

    Args:
        dataset: NAME.
        ids: ids of its items, as `dml search` shows them.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.

    Raises:
        MissingArtifact: some of the items are in no version; nothing is removed.
        CorruptArtifact: an artefact does not say what it was made of; nothing is removed.
    """
    root = store_uri(store)
    if stage(has_vectors)(root, dataset):
        return _forget(root, dataset, ids, _VECTORS)
    return _forget(root, dataset, ids, _DATASET)


def _forget(store: str, name: str, ids: list[str], steps: _Steps) -> ForgetReport:
    stage(require_readable)(store)
    stage(steps.require_known)(store, name, ids)
    stage(add_forgotten)(store, name, ids, folder=steps.folder)  # later ingests and imports leave them out
    holding = stage(steps.versions_containing)(store, name, ids)  # including versions published meanwhile
    indexes = [ref for ref in stage(list_indexes)(store) if _is_built_of(ref, name, steps)]
    segments = [  # from answers at once, where there is a gallery
        uri for index in indexes for uri in stage(forget_logged)(store, index.name, ids)
    ]
    same = {other for ref in holding if steps.same_images for other in stage(steps.same_images)(ref, ids)}
    without = {ref.uri: stage(steps.without_items)(store, ref, ids) for ref in holding}
    stage(steps.point_without)(store, name, without)
    rebuilt = [
        _build_again(store, index, steps.table_of(store, index, without[uri]))
        for index in stage(list_indexes)(store)
        if (uri := steps.version_uri(index)) in without
    ]
    stage(erase_from_latest_quarantine)(store, name, ids)
    removed = stage(remove_with_descendants)(store, holding)
    if steps.erase_remains:
        stage(steps.erase_remains)(store, name, ids)
    for index in indexes:
        stage(mark_erased)(store, index.name, ids)
    say(f"items forgotten: {len(ids)}; artefacts that contained them, removed: {len(removed)}")
    places = [(steps.place, name), *(("log", index.name) for index in indexes)]
    return ForgetReport(
        items=len(ids),
        rebuilt=rebuilt,
        removed=removed,
        same_images=sorted(same),
        receipt=[*_erased(places), *_rewritten(segments), *_removed(removed)],
    )


@flow(
    name="forget-enrolled-flow", flow_run_name="forget items of gallery {name}", on_running=[tag_with_names]
)
def forget_enrolled_flow(
    name: str,
    ids: list[str] | None = None,
    identity: str | None = None,
    now: bool = False,
    store: str | None = None,
    who: str = "",
) -> ForgetReport:
    """Forget items of a gallery: from answers and log at once, from index versions and dataset if `now`.

    Args:
        name: the index's name.
        ids: of items.
        identity: all items with this label instead.
        now: erase them from every version of the index and of its dataset or vectors too; else the next
            build does.
        store: the store's URI; None: `DML_STORE`, else `./dml-store`.
        who: does it, for the gallery's log.

    Raises:
        MissingArtifact: some are not in the gallery; nothing is forgotten. If `now`, what was forgotten
            before, by a call that was killed or not `now`, is erased.
    """
    root = store_uri(store)
    try:
        forgotten, segments = stage(forget_items)(root, name, ids or [], identity, who, already=now)
    except MissingArtifact:
        if now:
            erase_forgotten(root, name)  # what an erasure that was killed has left
        raise
    rebuilt, removed = erase_forgotten(root, name) if now else ([], [])
    left = stage(forgotten_ids)(root, name)
    holding = [str(ref) for ref in stage(versions_holding)(root, name, left)]
    say(f"items of gallery {name} forgotten: {len(forgotten)}; versions that still hold some: {len(holding)}")
    receipt = [*_erased([("log", name)]), *_rewritten(segments), *_removed(removed)]
    held = [Erasure(place="index", name=version, erased=False, until=_NEXT_BUILD) for version in holding]
    return ForgetReport(
        items=len(forgotten),
        rebuilt=rebuilt,
        removed=removed,
        same_images=[],
        still_held_by=holding,
        receipt=[*receipt, *held, *_held_by_source(root, name, left)],
    )


def _erased(places: Iterable[tuple[str, str]]) -> list[Erasure]:
    return [Erasure(place=place, name=name, erased=True) for place, name in places]


def _rewritten(segments: Sequence[str]) -> list[Erasure]:
    return _erased(("segment", uri) for uri in segments)


def _removed(uris: Sequence[str]) -> list[Erasure]:
    return _erased((kind_of(uri), uri) for uri in uris)


def _held_by_source(store: str, name: str, ids: list[str]) -> list[Erasure]:
    """The dataset or the imported vectors of an index, where they hold some of these items."""
    index = stage(published_index)(store, name)
    if index is None or not stage(ids_of_table)(index.embeddings, ids):
        return []
    place, source = _steps_of(index).place, index.embeddings.items.name
    return [Erasure(place=place, name=source, erased=False, until=_NEXT_BUILD)]


def erase_forgotten(store: str, name: str) -> tuple[list[IndexRef], list[str]]:
    """Erase what was forgotten in a gallery from the versions of index and source; (rebuilt, removed).

    Of several processes of this machine one erases at a time: each removes what another would build of.
    """
    if not stage(forgotten_ids)(store, name):
        return [], []
    with erasing(store, name):
        return _erase_forgotten(store, name)


def _erase_forgotten(store: str, name: str) -> tuple[list[IndexRef], list[str]]:
    ids = stage(forgotten_ids)(store, name)
    index = stage(published_index)(store, name)
    if not ids or index is None:
        return [], []
    rebuilt: list[IndexRef] = []
    removed: list[str] = []
    source = index.embeddings.items.name
    # Also versions that a killed erasure has replaced already.
    holding = stage(_steps_of(index).versions_containing)(store, source, ids)
    items = [ref.items if isinstance(ref, EmbeddingsRef) else ref for ref in holding]
    of_source = sorted({id_ for each in items for id_ in stage(ids_of_items)(each, ids)})
    if of_source:
        report = run(forget_flow, source, of_source, store)
        rebuilt, removed = list(report.rebuilt), list(report.removed)
    _erase_from_versions(store, name, stage(versions_holding)(store, name, ids), rebuilt, removed)
    stage(mark_erased)(store, name, ids)
    late = stage(versions_holding)(store, name, ids)  # of a build that began before; from now on none can
    if late:
        _erase_from_versions(store, name, late, rebuilt, removed)
    return rebuilt, removed


def _erase_from_versions(
    store: str, name: str, holding: Sequence[IndexRef], rebuilt: list[IndexRef], removed: list[str]
) -> None:
    """Remove the versions of an index that hold what is forgotten; the current one is built again first."""
    current = stage(published_index)(store, name)
    if current is not None and current.uri in {ref.uri for ref in holding}:
        rebuilt.append(_build_again(store, current, current.embeddings))
    removed += stage(remove_index_versions)(store, [ref for ref in holding if ref not in rebuilt], [name])


def _build_again(store: str, index: IndexRef, table: EmbeddingsRef) -> IndexRef:
    built = _build_of_the_rest(store, index, table)
    try:
        stage(calibrate_alike)(store, built, former_must_go=True)
    except DmlError as error:  # what must be forgotten is forgotten all the same
        say(f"index {built} has no thresholds: {error}")
    stage(publish_index)(store, built)
    return built


def _build_of_the_rest(store: str, index: IndexRef, table: EmbeddingsRef) -> IndexRef:
    """Built as before; where fewer items do not allow that, as `dml plan` has it, in one bundle."""
    changes = stage(collect_changes)(store, index.name, table)
    build = partial(stage(build_index), store, index.name, table, model=index.model, changes=changes)
    config = index_config_of(index)
    try:
        return build(config)
    except InvalidSetting as error:  # fewer parts than shards, fewer rows than lists: they are forgotten
        say(f"index {index.name} is built otherwise than before, of what is left: {error}")
        return build(
            config.model_copy(
                update={"factory": "auto", "shards": 1, "first_stage": None, "num_probes": None}
            )
        )
