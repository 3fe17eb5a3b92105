"""Lineage of a store: its artefacts, their parents, and the artefacts that nothing refers to.

Every manifest names the artefacts that its artefact was made from. An artefact is needed if it can be reached
from a pointer, a registered model, an unfinished run or a finished bench.
"""

import logging
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from dml import storage
from dml.data.corrected import CORRECTIONS
from dml.data.known_files import FILES
from dml.data.thumbnails import forget_thumbnails
from dml.errors import CorruptArtifact, InvalidSetting, MissingArtifact, did_you_mean
from dml.names import split_version, versioned
from dml.progress import count
from dml.refs import DatasetRef, EmbeddingsRef, IndexRef

logger = logging.getLogger(__name__)

Kind = Literal[
    "dataset",
    "index",
    "shard",
    "changes",
    "vectors",
    "package",
    "embeddings",
    "report",
    "bench",
    "thresholds",
]

VERSIONED: dict[Kind, str] = {"dataset": "datasets", "index": "indexes", "vectors": "vectors"}
_PLAIN: dict[Kind, str] = {
    "package": "packages",
    "embeddings": "embeddings",
    "report": "reports",
    "bench": "bench/tables",
    "thresholds": "thresholds",
}
_PARENTS = ("index", "embeddings", "items", "embedder", "initial", "changes")
_PICTURE = re.compile(r"[a-z0-9][a-z0-9._-]*-[0-9a-f]{12}\.png")
_PROJECT_FOLDERS = (
    *VERSIONED.values(),
    "packages",
    "embeddings",
    "reports",
    "bench",
    "runs",
    "galleries",
    "thresholds",
)
"""The folders of a store that this project writes; MLflow and Prefect manage the others."""

_FRAGMENT = "fragment"
_FORGOTTEN, _UNFINISHED_REMOVAL = "forgotten", "its removal was killed"
_FINGERPRINT = re.compile("[0-9a-f]{64}")
ABANDONED_AFTER = timedelta(days=1)
"""A staging folder or unsealed table that was not written to for this long belongs to a killed process."""


@dataclass(frozen=True)
class Artifact:
    """A published artefact of the store."""

    kind: Kind
    uri: str
    name: str
    """Name of the dataset or index; for other kinds the version."""
    version: str
    size_bytes: int
    created: datetime
    parents: tuple[str, ...]
    """URIs of the artefacts that it was made from and needs."""
    fingerprint: str

    def __str__(self) -> str:
        return (
            versioned(self.name, self.version)
            if self.kind in (*VERSIONED, "shard", "changes")
            else self.version
        )


@dataclass(frozen=True)
class Removal:
    """An artefact, file or upload to remove, and the reason."""

    uri: str
    kind: str
    why: str
    size_bytes: int
    fingerprint: str = ""
    """The key under which this machine's cache may hold a copy."""


def list_artifacts(store: str) -> list[Artifact]:
    """Every artefact of a store whose manifest can be read, sorted by kind, name and version."""
    artifacts = (_read(*location) for location in artifact_locations(store))
    return [artifact for artifact in artifacts if artifact is not None]


def artifact_locations(store: str) -> Iterator[tuple[Kind, str, str, str]]:
    """Kind, URI, name and version of every published artefact."""
    for kind, folder in VERSIONED.items():
        root = storage.join(store, folder)
        for name in storage.list_folders(root):
            for version in storage.list_versions(storage.join(root, name)):
                yield kind, storage.join(root, name, version), name, version
            if kind == "index":
                shards = storage.join(root, name, storage.SHARDS)
                for version in storage.list_versions(shards):
                    yield "shard", storage.join(shards, version), name, version
                changes = storage.join(root, name, storage.CHANGES)
                for version in storage.list_versions(changes):
                    yield "changes", storage.join(changes, version), name, version
    for kind, folder in _PLAIN.items():
        root = storage.join(store, *folder.split("/"))
        for version in storage.list_versions(root):
            yield kind, storage.join(root, version), version, version


def _read(kind: Kind, uri: str, name: str, version: str) -> Artifact | None:
    try:
        manifest = storage.read_manifest(uri)
    except (CorruptArtifact, MissingArtifact):
        return None
    count()
    entries = storage.list_entries(uri, recursive=True)
    ref = manifest.get("ref", {})
    fingerprint = str(ref.get("fingerprint", ""))
    times = [entry.modified for entry in entries if entry.path == storage.MANIFEST and entry.modified]
    return Artifact(
        kind=kind,
        uri=uri,
        name=name,
        version=version,
        size_bytes=sum(entry.size_bytes for entry in entries),
        created=times[0] if times else datetime.now(UTC),
        parents=tuple(_parents(ref)),
        fingerprint=fingerprint if _FINGERPRINT.fullmatch(fingerprint) else "",
    )


def _parents(ref: Mapping[str, Any]) -> Iterator[str]:
    """URIs of the artefacts that a ref needs. A package does not need the dataset it was trained on."""
    for key in _PARENTS:
        parent = ref.get(key)
        if isinstance(parent, Mapping) and "uri" in parent:
            yield str(parent["uri"])
            yield from _parents(parent)
    for shard in ref.get("shards") or ():
        yield str(shard["uri"])


def unneeded(
    store: str,
    registered: Iterable[Mapping[str, Any]],
    *,
    keep: int = 2,
    grace: timedelta = timedelta(hours=1),
    now: datetime | None = None,
) -> list[Removal]:
    """Artefacts and leftovers that can be removed: nothing that is kept refers to them.

    Args:
        store: the store's URI.
        registered: refs of all registered packages as JSON; with their dataset if the version has an alias.
        keep: number of versions of each dataset and index to keep, including the current one; at least 1.
        grace: newer artefacts are kept, since a running stage may be about to refer to them.
        now: the present time; None reads the clock.

    Raises:
        InvalidSetting: keep is below 1.
        MissingArtifact: there is no store.
        CorruptArtifact: the manifest of something that is needed cannot be read.
    """
    if keep < 1:
        raise InvalidSetting(f"keep must be 1 or more, since the current version is kept; got {keep}.")
    storage.require_store(store)
    now = now or datetime.now(UTC)
    artifacts = {artifact.uri: artifact for artifact in list_artifacts(store)}
    packages = list(registered)
    while True:  # also what was published while the others were read needs its parents
        reachable = _reachable(artifacts, _roots(store, artifacts, packages, keep, grace, now))
        others, unreadable = _not_among(store, artifacts)
        if not others:
            break
        artifacts |= others
    if unreadable := unreadable & reachable:
        raise _cannot_be_read(unreadable, "so that what it was made of is kept")
    reachable |= {uri for uri, a in artifacts.items() if a.kind == "thresholds" and a.parents[0] in reachable}
    removals = [
        Removal(a.uri, a.kind, "not referenced", a.size_bytes, a.fingerprint)
        for uri, a in artifacts.items()
        if uri not in reachable
    ]
    removals += _finished_checkpoints(store)
    removals += _galleries(store, {f"{a.name}-{a.version}" for u, a in artifacts.items() if u in reachable})
    removals += _abandoned(store, now)
    removals += _unshared_fragments(store, {removal.uri for removal in removals}, now)
    link_of = {r.uri: storage.link_above(r.uri, store) for r in removals}
    links = sorted({link for link in link_of.values() if link is not None})
    if links:
        logger.warning("targets of symbolic links are not removed: %s", ", ".join(links))
    removals = [removal for removal in removals if link_of[removal.uri] is None]
    inside = {removal.uri for removal in removals}
    return [r for r in removals if not any(_is_below(r.uri, uri) for uri in inside if uri != r.uri)]


def require_readable(store: str) -> None:
    """Raise CorruptArtifact where a manifest cannot be read: nobody knows what that artefact was made of."""
    _, unreadable = _not_among(store, {artifact.uri for artifact in list_artifacts(store)})
    if unreadable:
        raise _cannot_be_read(unreadable, "or what it holds of the forgotten items would stay")


def _not_among(store: str, known: Container[str]) -> tuple[dict[str, Artifact], set[str]]:
    """The other artefacts: by URI those published meanwhile, and those whose manifests cannot be read."""
    others = {
        location[1]: _read(*location) for location in artifact_locations(store) if location[1] not in known
    }
    unreadable = {uri for uri, artifact in others.items() if artifact is None and storage.is_complete(uri)}
    return {uri: artifact for uri, artifact in others.items() if artifact is not None}, unreadable


def _cannot_be_read(uris: Iterable[str], why: str) -> CorruptArtifact:
    return CorruptArtifact(
        f"A manifest must say what its artefact was made of, {why}; those of {', '.join(sorted(uris)[:3])} "
        "cannot be read. Do: dml verify --repair; restore or remove what that cannot make again."
    )


def _is_below(uri: str, folder: str) -> bool:
    return uri.startswith(folder.rstrip("/") + "/")


def _roots(
    store: str,
    artifacts: Mapping[str, Artifact],
    registered: Iterable[Mapping[str, Any]],
    keep: int,
    grace: timedelta,
    now: datetime,
) -> Iterator[str]:
    for kind, folder in VERSIONED.items():
        for name in sorted({a.name for a in artifacts.values() if a.kind == kind}):
            parent = storage.join(store, folder, name)
            current = storage.current(parent)
            former = [v for v in storage.former_versions(parent) if storage.join(parent, v) in artifacts]
            for version in [current, *former[: keep - 1]]:
                if version is not None:
                    yield storage.join(parent, version)
    yield from _refreshed_from(store)
    for package in registered:
        yield from _all_references(package)
    built = {uri for a in artifacts.values() if a.kind == "index" for uri in a.parents}
    for artifact in artifacts.values():
        if artifact.kind == "shard" and artifact.uri in built:
            continue  # needed as long as its index
        superseded = artifact.kind in VERSIONED and artifact.version in storage.former_versions(
            artifact.uri.rpartition("/")[0]
        )
        recent = (
            max(grace, ABANDONED_AFTER) if artifact.kind in ("shard", "changes") else grace
        )  # a build takes hours
        if artifact.kind in ("report", "bench") or (now - artifact.created < recent and not superseded):
            yield artifact.uri
            if artifact.kind == "package":  # a running stage may evaluate it on its dataset's test split
                yield from _all_references(storage.read_manifest(artifact.uri)["ref"])
    for cell in storage.list_names(storage.join(store, "bench", "cells")):
        yield from _all_references(storage.read_json(storage.join(store, "bench", "cells", cell)))
    for run in storage.list_folders(storage.join(store, "runs")):
        folder = storage.join(store, "runs", run)
        if not storage.exists(storage.join(folder, "result.json")):
            for entry in storage.list_entries(folder):
                if not entry.is_folder and entry.name.endswith(".json"):
                    yield from _all_references(storage.read_json(storage.join(folder, entry.name)))


def _refreshed_from(store: str) -> Iterator[str]:
    """URIs of the dataset versions that the indexes' refresh settings name."""
    root = storage.join(store, "indexes")
    for name in storage.list_folders(root):
        uri = storage.join(root, name, "refresh.json")
        if storage.exists(uri):
            dataset, _, version = str(storage.read_json(uri).get("dataset", "")).partition("@")
            if version:
                yield storage.join(store, "datasets", dataset, version)


def _all_references(content: Any) -> Iterator[str]:
    """Every URI in a JSON tree."""
    if isinstance(content, Mapping):
        if isinstance(content.get("uri"), str):
            yield content["uri"]
        for value in content.values():
            yield from _all_references(value)
    elif isinstance(content, list):
        for value in content:
            yield from _all_references(value)


def _reachable(artifacts: Mapping[str, Artifact], roots: Iterable[str]) -> set[str]:
    """The roots and all their ancestors."""
    reachable: set[str] = set()
    pending = list(roots)
    while pending:
        uri = pending.pop()
        if uri not in reachable:
            reachable.add(uri)
            if uri in artifacts:
                pending += artifacts[uri].parents
    return reachable


def _unshared_fragments(store: str, removed: Collection[str], now: datetime) -> Iterator[Removal]:
    """Dataset files that no version has once some are removed; not those of a publication that is running."""
    root = storage.join(store, "datasets")
    for name in storage.list_folders(root):
        folder = storage.join(root, name)
        unused_now = {entry.path for entry in storage.unshared_files(folder)}
        for entry in storage.unshared_files(folder, removed):
            is_recent = entry.modified is not None and entry.modified > now - ABANDONED_AFTER
            if not (entry.path in unused_now and is_recent):
                uri = storage.join(folder, storage.SHARED, entry.path)
                yield Removal(uri, _FRAGMENT, "no version has it", entry.size_bytes)


def _finished_checkpoints(store: str) -> Iterator[Removal]:
    """Checkpoints of finished runs; a run's result and configuration are kept."""
    for run in storage.list_folders(storage.join(store, "runs")):
        folder = storage.join(store, "runs", run)
        if storage.exists(storage.join(folder, "result.json")):
            for name in storage.list_folders(folder):
                yield _removal(storage.join(folder, name), "checkpoints", "the run is finished")


def _galleries(store: str, indexes: set[str]) -> Iterator[Removal]:
    """Pictures NAME-VERSION.png whose index version, NAME-VERSION, is not in `indexes`.

    Other files of the folder stay: a lock that a process holds, and what this project did not write.
    """
    folder = storage.join(store, "galleries")
    for entry in storage.list_entries(folder):
        if entry.is_folder or not _PICTURE.fullmatch(entry.name):
            continue
        if entry.name.removesuffix(".png") not in indexes:
            uri = storage.join(folder, entry.name)
            yield Removal(uri, "gallery", "its index version was removed", entry.size_bytes)


def _abandoned(store: str, now: datetime) -> Iterator[Removal]:
    """Leftovers of killed processes: staging folders, temporary files, unsealed tables, open uploads."""
    oldest = now - ABANDONED_AFTER
    for folder in _PROJECT_FOLDERS:
        root = storage.join(store, folder)
        entries = storage.list_entries(root, recursive=True, follow_links=False)
        unfinished: dict[str, list[storage.Entry]] = {}
        for entry in entries:
            parts = entry.path.split("/")
            depth = next((n for n, part in enumerate(parts) if storage.is_staging(part)), None)
            if depth is not None:
                unfinished.setdefault("/".join(parts[: depth + 1]), []).append(entry)
            elif not entry.is_folder and storage.is_temporary(entry.name):
                unfinished.setdefault(entry.path, []).append(entry)
        if folder == "embeddings":
            for name in storage.list_folders(root):
                if not storage.is_complete(storage.join(root, name)):
                    unfinished[name] = [e for e in entries if e.path.split("/")[0] == name]
        for path, contents in unfinished.items():
            half_removed = storage.is_removed(path.rpartition("/")[2])
            if half_removed or all(entry.modified is None or entry.modified < oldest for entry in contents):
                size = sum(entry.size_bytes for entry in contents)
                why = _UNFINISHED_REMOVAL if half_removed else "its writer was killed"
                yield Removal(storage.join(root, path), "unfinished", why, size)
    for upload in storage.open_uploads(store):
        if upload.initiated < oldest:
            yield Removal(upload.uri, "upload", "its writer was killed", 0)


def _removal(uri: str, kind: str, why: str) -> Removal:
    size = sum(entry.size_bytes for entry in storage.list_entries(uri, recursive=True))
    return Removal(uri, kind, why, size)


def remove(removals: Sequence[Removal]) -> list[Removal]:
    """Remove artefacts and leftovers, and this machine's cached copies. Each is removed atomically.

    A version that became current meanwhile is kept, and so are its parents. Descendants are removed before
    their parents, so that after a kill the next call lists the remaining ones again.

    Args:
        removals: from `unneeded`.

    Returns:
        The removals that were done.
    """
    kept: set[str] = set()
    removal_uris = {removal.uri for removal in removals}
    removed: set[str] = set()
    for removal in sorted(removals, key=_descendants_first):
        count()
        if removal.uri in kept or removal.kind == _FRAGMENT:
            continue
        if removal.fingerprint:
            for folder in ("rows", "artifacts"):
                storage.delete(str(storage.cache_dir() / folder / removal.fingerprint))
        if removal.kind == "dataset":
            forget_thumbnails(removal.uri)
        if removal.kind == "upload":
            storage.abort_uploads(removal.uri)
        elif removal.kind in VERSIONED:
            folder, _, version = removal.uri.rpartition("/")
            with storage.locked_pointer(folder) as pointer:
                if pointer.version == version and removal.why != _FORGOTTEN:
                    kept |= set(_parents(storage.read_manifest(removal.uri)["ref"]))
                    continue
                if pointer.version == version:
                    remaining = (v for v in pointer.former if storage.join(folder, v) not in removal_uris)
                    if (former := next(filter(pointer.can_roll_back_to, remaining), None)) is not None:
                        pointer.roll_back(former)
                storage.remove(removal.uri)
        else:
            storage.remove(removal.uri)
        removed.add(removal.uri)
    removed |= _remove_fragments([removal.uri for removal in removals if removal.kind == _FRAGMENT])
    return [removal for removal in removals if removal.uri in removed]


def _remove_fragments(uris: Sequence[str]) -> set[str]:
    """Remove those of these dataset files that no version has; returns them."""
    removed: set[str] = set()
    for shared in sorted({uri.rpartition("/")[0] for uri in uris}):
        folder = shared.rpartition("/")[0]
        with storage.locked_pointer(folder):
            unused = {storage.join(shared, entry.path) for entry in storage.unshared_files(folder)}
            for uri in sorted(unused & set(uris)):
                storage.delete(uri)
                removed.add(uri)
    return removed


def _descendants_first(removal: Removal) -> int:
    order = ["index", "shard", "changes", "embeddings", "vectors", "package", "dataset"]
    return order.index(removal.kind) if removal.kind in order else -1


def dependents(store: str, uri: str) -> list[Artifact]:
    """The artefacts of a store that were made from the artefact at `uri` and need it."""
    return [artifact for artifact in list_artifacts(store) if uri in artifact.parents]


def remove_named(store: str, kind: str, name: str) -> list[str]:
    """Remove a dataset, an index or imported vectors with all versions, one former version of it, or a run.

    Args:
        store: the store's URI.
        kind: "dataset", "index", "vectors" or "run".
        name: NAME, or NAME@VERSION for a version that is not the current one.

    Returns:
        The removed versions, as NAME@VERSION.

    Raises:
        MissingArtifact: it does not exist.
        InvalidSetting: another artefact needs it, it is the current version, or a process of this machine is
            training the run.
    """
    storage.require_store(store)
    if kind == "run":
        return [_remove_run(store, name)]
    base, version = split_version(name, kind)
    folder = storage.named_folder(store, _folder_of_kind(kind), base)
    if not storage.exists(folder) or (version and version not in storage.list_versions(folder)):
        raise _missing(store, kind, name)
    if (link := storage.link_above(folder, store)) is not None:
        raise InvalidSetting(f"An artefact to remove must be in the store itself; {link} is a symbolic link.")
    with storage.locked_pointer(folder) as pointer:
        if version is not None and version == pointer.version:
            # A dataset cannot go back: it is what its source holds.
            way = "Make another" if kind == "dataset" else f"Roll back first (`dml rollback {kind} {base}`)"
            raise InvalidSetting(
                f"{name} must not be the current version; it is. {way}, or remove all of {base}: "
                f"`dml rm {kind} {base}`."
            )
        versions = [version] if version else storage.list_versions(folder)
        uris = [storage.join(folder, v) for v in versions]
        made = [artifact for uri in uris for artifact in dependents(store, uri)]
        indexes = {str(a) for a in made if a.kind == "index"}
        if indexes:
            raise InvalidSetting(
                f"{kind} {name} must not be needed; the indexes {sorted(indexes)} were made from it. "
                "Remove them first."
            )
        unused_before = {entry.path for entry in storage.unshared_files(folder)}
        shards = _shards_of_these_alone(store, base, uris) if kind == "index" else []
        for uri in [*(a.uri for a in made if a.kind == "thresholds"), *uris, *shards]:
            storage.remove(uri)
        for entry in storage.unshared_files(folder):
            if entry.path not in unused_before:
                storage.delete(storage.join(folder, storage.SHARED, entry.path))
        if version is None:
            _remove_rest(store, kind, folder)
    return [versioned(base, v) for v in versions] or [base]


def _missing(store: str, kind: str, name: str) -> MissingArtifact:
    """The error for what cannot be removed, with what else has that name."""
    base, version = split_version(name, kind)
    error = storage.missing_version(storage.named_folder(store, _folder_of_kind(kind), base), version, kind)
    others = [
        other
        for other in ("dataset", "index", "vectors")
        if other != kind and storage.list_versions(storage.named_folder(store, _folder_of_kind(other), base))
    ]
    meant = " or ".join(f"dml rm {other} {name}" for other in others)
    return (
        MissingArtifact(f"{error} Of that name there is {' and '.join(others)}: {meant}.")
        if others
        else error
    )


def _shards_of_these_alone(store: str, name: str, uris: Sequence[str]) -> list[str]:
    """The shards of some versions of an index that no other version has."""
    of_index = [a for a in list_artifacts(store) if a.kind == "index" and a.name == name]
    kept = {shard for a in of_index if a.uri not in uris for shard in a.parents}
    folder = storage.join(store, VERSIONED["index"], name, storage.SHARDS)
    return sorted(
        {
            shard
            for a in of_index
            if a.uri in uris
            for shard in a.parents
            if shard not in kept and _is_below(shard, folder)
        }
    )


def _folder_of_kind(kind: str) -> str:
    return {str(known): folder for known, folder in VERSIONED.items()}[kind]


def _remove_rest(store: str, kind: str, folder: str) -> None:
    """Remove a name's other files once it has no versions; the list of forgotten items is kept."""
    folders = {"index": [storage.SHARDS, storage.CHANGES], "dataset": [storage.SHARED, FILES, CORRECTIONS]}
    for name in (storage.POINTER, "refresh.json", *folders.get(kind, ())):
        storage.delete(storage.join(folder, name))
    if kind == "index":  # or another index of this name would begin with who was enrolled in this one
        storage.delete(storage.join(store, "galleries", folder.rpartition("/")[2]))
        if storage.is_remote(store):
            from dml.retrieval.gallery.fold import log_path  # takes a second to import
            from dml.retrieval.gallery.local_copy import remove_copy

            remove_copy(log_path(store, folder.rpartition("/")[2]))
    if kind in ("dataset", "vectors"):
        storage.delete(storage.join(store, "quarantine", f"{folder.rpartition('/')[2]}.parquet"))
    storage.delete_empty(folder)


def _remove_run(store: str, name: str) -> str:
    runs = storage.join(store, "runs")
    existing = storage.list_folders(runs)
    if name not in existing:
        raise MissingArtifact(
            f"run {name!r} must exist in the store; there are {existing}.{did_you_mean(name, existing)}"
        )
    with storage.folder_lock(storage.join(runs, name), wait=False) as is_locked:
        if not is_locked:
            raise InvalidSetting(
                f"run {name} must not be running; a process on this machine is training it. Stop it first."
            )
        storage.delete(storage.join(runs, name))
    return name


def remove_with_descendants(store: str, datasets: Sequence[DatasetRef | EmbeddingsRef]) -> list[str]:
    """Remove versions of datasets or imported vectors, all made from them, and this machine's cached copies.

    A report page that does not record which datasets it shows is removed too.

    Args:
        store: the store's URI.
        datasets: the versions.

    Returns:
        The removed URIs.
    """
    roots = {ref.uri for ref in datasets}
    artifacts = list_artifacts(store)
    descendants = [a for a in artifacts if a.uri in roots or roots & set(a.parents)]
    parts = _parts_of(artifacts, {a.uri for a in descendants})
    descendants += [part for part in parts if part not in descendants]
    fingerprints = {ref.fingerprint for ref in datasets}
    pages = [a for a in artifacts if a.kind == "report" and _may_show(a, fingerprints)] if roots else []
    removals = [
        Removal(a.uri, a.kind, _FORGOTTEN, a.size_bytes, a.fingerprint) for a in [*descendants, *pages]
    ]
    versions = {ref.version for ref in datasets}
    tables = storage.join(store, "embeddings")
    removals += [
        _removal(storage.join(tables, name), "embeddings", _FORGOTTEN)
        for name in storage.list_folders(tables)
        if versions & set(name.split("-")) and storage.join(tables, name) not in {r.uri for r in removals}
    ]
    removals += _galleries(store, {f"{a.name}-{a.version}" for a in artifacts if a not in descendants})
    links = [link for removal in removals if (link := storage.link_above(removal.uri, store)) is not None]
    if links:
        raise InvalidSetting(
            f"Artefacts to erase must be in the store itself; {sorted(set(links))} are symbolic links. "
            "Replace them by their targets, then run `dml forget` again."
        )
    removals = remove(removals)
    leftovers = _abandoned(store, datetime.now(UTC))
    removals += remove([removal for removal in leftovers if removal.why == _UNFINISHED_REMOVAL])
    return [removal.uri for removal in removals]


def kind_of(uri: str) -> str:
    """What kind of artefact is, or was, at a URI of a store: its kind, or the folder that it was in."""
    parts = uri.rstrip("/").split("/")
    kinds = {storage.SHARDS: "shard", storage.CHANGES: "changes", "thresholds": "thresholds"}
    kinds |= {folder.split("/")[-1]: kind for kind, folder in {**VERSIONED, **_PLAIN}.items()}
    return next((kinds[part] for part in reversed(parts[:-1]) if part in kinds), parts[-2])


def remove_index_versions(store: str, refs: Sequence[IndexRef], names: Sequence[str] = ()) -> list[str]:
    """Remove versions of indexes, with their thresholds, pictures, and parts that no other version has.

    What a killed call has left is removed too, so that nothing of the versions stays.

    Args:
        store: the store's URI.
        refs: versions; where one is current, the version before it becomes current.
        names: of indexes of which parts that no version has are removed too: a build that needs one is
            to fail, because what it would publish was forgotten.

    Returns:
        The removed URIs.
    """
    artifacts = list_artifacts(store)
    gone = {ref.uri for ref in refs}
    chosen = [a for a in artifacts if a.uri in gone or (a.kind == "thresholds" and a.parents[0] in gone)]
    chosen += _parts_of(artifacts, gone, names)
    removals = [Removal(a.uri, a.kind, _FORGOTTEN, a.size_bytes, a.fingerprint) for a in chosen]
    removals += _galleries(store, {f"{a.name}-{a.version}" for a in artifacts if a.uri not in gone})
    removals += _half_removed(store, "indexes")
    return [removal.uri for removal in remove(removals)]


def _half_removed(store: str, folder: str) -> Iterator[Removal]:
    """Artefacts whose removal was killed."""
    paths: dict[str, int] = {}
    for entry in storage.list_entries(storage.join(store, folder), recursive=True, follow_links=False):
        parts = entry.path.split("/")
        depth = next((n for n, part in enumerate(parts) if storage.is_removed(part)), None)
        if depth is not None:
            path = "/".join(parts[: depth + 1])
            paths[path] = paths.get(path, 0) + entry.size_bytes
    for path, size in paths.items():
        yield Removal(storage.join(store, folder, path), "unfinished", _UNFINISHED_REMOVAL, size)


def _parts_of(artifacts: Sequence[Artifact], indexes: Set[str], names: Sequence[str] = ()) -> list[Artifact]:
    """The shards and changes that only these versions of indexes need; of some indexes, that none needs."""
    needed = {parent for a in artifacts if a.kind == "index" and a.uri not in indexes for parent in a.parents}
    parents = {parent for a in artifacts if a.uri in indexes for parent in a.parents}
    parts = [a for a in artifacts if a.kind in ("shard", "changes")]
    return [a for a in parts if (a.uri in parents or a.name in names) and a.uri not in needed]


def _may_show(page: Artifact, fingerprints: set[str]) -> bool:
    shown = storage.read_manifest(page.uri).get("datasets")
    return shown is None or bool(fingerprints & set(shown))
