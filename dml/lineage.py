"""What a store holds, what was made from what, and what nothing needs any more.

Every manifest names the artefacts that its artefact was made from, so lineage is read, never guessed. An
artefact is needed when a pointer, a registered model, an unfinished run or a finished bench leads to it.
"""

import logging
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from dml import storage
from dml.data.thumbnails import forget_thumbnails
from dml.errors import CorruptArtifact, InvalidSetting, MissingArtifact, did_you_mean
from dml.names import split_version
from dml.progress import count
from dml.refs import DatasetRef

logger = logging.getLogger(__name__)

Kind = Literal["dataset", "index", "package", "embeddings", "report", "bench"]

VERSIONED: dict[Kind, str] = {"dataset": "datasets", "index": "indexes"}
_PLAIN: dict[Kind, str] = {
    "package": "packages",
    "embeddings": "embeddings",
    "report": "reports",
    "bench": "bench/tables",
}
_PARENTS = ("embeddings", "dataset", "package", "initial")
_OWN_FOLDERS = (*VERSIONED.values(), "packages", "embeddings", "reports", "bench", "runs", "galleries")
"""Where a store keeps what this project made; MLflow's and Prefect's folders are theirs."""

_FORGOTTEN, _HALF_REMOVED = "forgotten", "its removal was killed"
_FINGERPRINT = re.compile("[0-9a-f]{64}")
ABANDONED_AFTER = timedelta(days=1)
"""A staging folder or unsealed table that nobody wrote to for so long is a killed process's."""


@dataclass(frozen=True)
class Artifact:
    """A published artefact of the store."""

    kind: Kind
    uri: str
    name: str
    """Of the dataset or index; the version for others."""
    version: str
    size_bytes: int
    created: datetime
    parents: tuple[str, ...]
    """URIs of what it was made from and cannot be used without."""
    fingerprint: str

    def __str__(self) -> str:
        return f"{self.name}@{self.version}" if self.kind in VERSIONED else self.version


@dataclass(frozen=True)
class Removal:
    """Something that nothing needs."""

    uri: str
    kind: str
    why: str
    size_bytes: int
    fingerprint: str = ""
    """Under which the machine's cache may hold a copy."""


def list_artifacts(store: str) -> list[Artifact]:
    """Every artefact of a store whose manifest can be read, by kind, name and version."""
    found = (_read(*place) for place in places(store))
    return [artifact for artifact in found if artifact is not None]


def places(store: str) -> Iterator[tuple[Kind, str, str, str]]:
    """Kind, URI, name and version of every published artefact."""
    for kind, folder in VERSIONED.items():
        root = storage.join(store, folder)
        for name in storage.list_folders(root):
            for version in storage.list_versions(storage.join(root, name)):
                yield kind, storage.join(root, name, version), name, version
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
    """What a ref's artefact needs. A package embeds without the dataset it was trained on."""
    is_package = "initial" in ref
    for key in _PARENTS:
        parent = ref.get(key)
        if isinstance(parent, Mapping) and "uri" in parent and not (is_package and key == "dataset"):
            yield str(parent["uri"])
            yield from _parents(parent)


def unneeded(
    store: str,
    registered: Iterable[Mapping[str, Any]],
    *,
    keep: int = 2,
    grace: timedelta = timedelta(hours=1),
    now: datetime | None = None,
) -> list[Removal]:
    """What can go: nothing points to it, no kept artefact was made from it.

    Args:
        store: the store's URI.
        registered: JSON of the refs of all registered packages; those of a version with an alias with their
            dataset, the others without.
        keep: versions of each dataset and index to keep, the current one among them; at least 1.
        grace: what was made within it may be about to be pointed to, and stays.
        now: the time; None: now.

    Raises:
        InvalidSetting: keep below 1.
        MissingArtifact: there is no store.
    """
    if keep < 1:
        raise InvalidSetting(f"keep must be 1 or more, since the current version stays; got {keep}.")
    storage.require_store(store)
    now = now or datetime.now(UTC)
    artifacts = {artifact.uri: artifact for artifact in list_artifacts(store)}
    wanted = _marked(artifacts, _roots(store, artifacts, registered, keep, grace, now))
    removals = [
        Removal(a.uri, a.kind, "nothing needs it", a.size_bytes, a.fingerprint)
        for uri, a in artifacts.items()
        if uri not in wanted
    ]
    removals += _finished_checkpoints(store)
    removals += _galleries(store, {f"{a.name}-{a.version}" for u, a in artifacts.items() if u in wanted})
    removals += _abandoned(store, now)
    link_of = {r.uri: storage.link_above(r.uri, store) for r in removals}
    links = sorted({link for link in link_of.values() if link is not None})
    if links:
        logger.warning("what symbolic links lead to stays: %s", ", ".join(links))
    removals = [removal for removal in removals if link_of[removal.uri] is None]
    inside = {removal.uri for removal in removals}
    return [r for r in removals if not any(_is_below(r.uri, uri) for uri in inside if uri != r.uri)]


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
    for artifact in artifacts.values():
        superseded = artifact.kind in VERSIONED and artifact.version in storage.former_versions(
            artifact.uri.rpartition("/")[0]
        )
        if artifact.kind in ("report", "bench") or (now - artifact.created < grace and not superseded):
            yield artifact.uri
            if artifact.kind == "package":  # it may be about to be evaluated on its dataset's test split
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
    """Dataset versions, NAME@VERSION, that an index asks to be refreshed from."""
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


def _marked(artifacts: Mapping[str, Artifact], roots: Iterable[str]) -> set[str]:
    """The roots and all that they were made from."""
    wanted: set[str] = set()
    todo = list(roots)
    while todo:
        uri = todo.pop()
        if uri not in wanted:
            wanted.add(uri)
            if uri in artifacts:
                todo += artifacts[uri].parents
    return wanted


def _finished_checkpoints(store: str) -> Iterator[Removal]:
    """Checkpoints of finished runs; what a run gave and how it was asked for stay."""
    for run in storage.list_folders(storage.join(store, "runs")):
        folder = storage.join(store, "runs", run)
        if storage.exists(storage.join(folder, "result.json")):
            for name in storage.list_folders(folder):
                yield _removal(storage.join(folder, name), "checkpoints", "the run is finished")


def _galleries(store: str, kept: set[str]) -> Iterator[Removal]:
    folder = storage.join(store, "galleries")
    for entry in storage.list_entries(folder):
        if not entry.is_folder and entry.name.removesuffix(".png") not in kept:
            uri = storage.join(folder, entry.name)
            yield Removal(uri, "gallery", "of an index version that is gone", entry.size_bytes)


def _abandoned(store: str, now: datetime) -> Iterator[Removal]:
    """What killed processes left: staging folders, files written aside, tables that were never sealed."""
    oldest = now - ABANDONED_AFTER
    for folder in _OWN_FOLDERS:
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
        for path, below in unfinished.items():
            dead = storage.is_removed(path.rpartition("/")[2])
            if dead or all(entry.modified is None or entry.modified < oldest for entry in below):
                size = sum(entry.size_bytes for entry in below)
                why = _HALF_REMOVED if dead else "its maker was killed"
                yield Removal(storage.join(root, path), "unfinished", why, size)
    for upload in storage.open_uploads(store):
        if upload.initiated < oldest:
            yield Removal(upload.uri, "upload", "its maker was killed", 0)


def _removal(uri: str, kind: str, why: str) -> Removal:
    size = sum(entry.size_bytes for entry in storage.list_entries(uri, recursive=True))
    return Removal(uri, kind, why, size)


def remove(removals: Sequence[Removal]) -> list[Removal]:
    """Remove what `unneeded` found, and this machine's cached copies; each is whole or gone at any time.

    What was made current meanwhile stays, and what that was made from. What others were made from goes
    after them, so that whoever is killed here finds the rest by the same way again.

    Returns:
        What was removed.
    """
    stays: set[str] = set()
    going = {removal.uri for removal in removals}
    removed: set[str] = set()
    for removal in sorted(removals, key=_descendants_first):
        count()
        if removal.uri in stays:
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
                    stays |= set(_parents(storage.read_manifest(removal.uri)["ref"]))
                    continue
                if pointer.version == version:
                    left = (v for v in pointer.former if storage.join(folder, v) not in going)
                    if (former := next(filter(pointer.can_roll_back_to, left), None)) is not None:
                        pointer.roll_back(former)
                storage.remove(removal.uri)
        else:
            storage.remove(removal.uri)
        removed.add(removal.uri)
    return [removal for removal in removals if removal.uri in removed]


def _descendants_first(removal: Removal) -> int:
    order = ["index", "embeddings", "package", "dataset"]
    return order.index(removal.kind) if removal.kind in order else -1


def users_of(store: str, uri: str) -> list[Artifact]:
    """The artefacts of a store that were made from one and cannot be used without it."""
    return [artifact for artifact in list_artifacts(store) if uri in artifact.parents]


def remove_named(store: str, kind: str, name: str) -> list[str]:
    """Remove a dataset or index with all its versions, one former version of it, or a run.

    Args:
        store: the store's URI.
        kind: "dataset", "index" or "run".
        name: NAME, or NAME@VERSION for a version that is not the current one.

    Returns:
        What was removed, as NAME@VERSION.

    Raises:
        MissingArtifact: there is no such thing.
        InvalidSetting: another artefact was made from it and needs it, it is the current version, or a
            process of this machine trains the run.
    """
    storage.require_store(store)
    if kind == "run":
        return [_remove_run(store, name)]
    base, version = split_version(name, kind)
    folder = storage.named_folder(store, VERSIONED["dataset" if kind == "dataset" else "index"], base)
    if not storage.exists(folder) or (version and version not in storage.list_versions(folder)):
        raise storage.missing_version(folder, version, kind)
    if (link := storage.link_above(folder, store)) is not None:
        raise InvalidSetting(f"What is removed must lie in the store itself; {link} is a symbolic link.")
    with storage.locked_pointer(folder) as pointer:
        if version is not None and version == pointer.version:
            raise InvalidSetting(
                f"{name} must not be the current version; it is. Go back first "
                f"(`dml rollback {kind} {base}`), or remove all of {base}: `dml rm {kind} {base}`."
            )
        chosen = [version] if version else storage.list_versions(folder)
        chosen_uris = [storage.join(folder, own) for own in chosen]
        users = {str(user) for uri in chosen_uris for user in users_of(store, uri) if user.kind == "index"}
        if users:
            raise InvalidSetting(
                f"{kind} {name} must not be needed; the indexes {sorted(users)} were made from it. "
                "Remove them first."
            )
        for uri in chosen_uris:
            storage.remove(uri)
        if version is None:
            _remove_rest(store, kind, folder)
    return [f"{base}@{own}" for own in chosen] or [base]


def _remove_rest(store: str, kind: str, folder: str) -> None:
    """Of a name without versions; what forgets items stays, and what others put there."""
    for name in (storage.POINTER, "refresh.json"):
        storage.delete(storage.join(folder, name))
    if kind == "dataset":
        storage.delete(storage.join(store, "quarantine", f"{folder.rpartition('/')[2]}.parquet"))
    storage.delete_empty(folder)


def _remove_run(store: str, name: str) -> str:
    runs = storage.join(store, "runs")
    there = storage.list_folders(runs)
    if name not in there:
        raise MissingArtifact(
            f"run {name!r} must exist in the store; there are {there}.{did_you_mean(name, there)}"
        )
    with storage.folder_lock(storage.join(runs, name), wait=False) as mine:
        if not mine:
            raise InvalidSetting(
                f"run {name} must not be at work; a process on this machine trains it. Stop that first."
            )
        storage.delete(storage.join(runs, name))
    return name


def remove_with_descendants(store: str, datasets: Sequence[DatasetRef]) -> list[str]:
    """Remove dataset versions, all that was made of them, and this machine's cached copies.

    A page that does not say which datasets it shows goes too.

    Args:
        store: the store's URI.
        datasets: the versions.

    Returns:
        The URIs of what was removed.
    """
    roots = {ref.uri for ref in datasets}
    artifacts = list_artifacts(store)
    gone = [a for a in artifacts if a.uri in roots or roots & set(a.parents)]
    fingerprints = {ref.fingerprint for ref in datasets}
    pages = [a for a in artifacts if a.kind == "report" and _may_show(a, fingerprints)] if roots else []
    removals = [Removal(a.uri, a.kind, _FORGOTTEN, a.size_bytes, a.fingerprint) for a in [*gone, *pages]]
    versions = {ref.version for ref in datasets}
    tables = storage.join(store, "embeddings")
    removals += [
        _removal(storage.join(tables, name), "embeddings", _FORGOTTEN)
        for name in storage.list_folders(tables)
        if versions & set(name.split("-")) and storage.join(tables, name) not in {r.uri for r in removals}
    ]
    removals += _galleries(store, {f"{a.name}-{a.version}" for a in artifacts if a not in gone})
    links = [link for removal in removals if (link := storage.link_above(removal.uri, store)) is not None]
    if links:
        raise InvalidSetting(
            f"What is erased must lie in the store itself; {sorted(set(links))} are symbolic links. Put "
            "there what they lead to, then forget again."
        )
    removals = remove(removals)
    removals += remove([each for each in _abandoned(store, datetime.now(UTC)) if each.why == _HALF_REMOVED])
    return [removal.uri for removal in removals]


def _may_show(page: Artifact, fingerprints: set[str]) -> bool:
    shown = storage.read_manifest(page.uri).get("datasets")
    return shown is None or bool(fingerprints & set(shown))
