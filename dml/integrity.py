"""Integrity check of a store: compares every byte of every artefact with its manifest."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from dml import storage
from dml.data.forgotten import FORGOTTEN, forgotten_ids
from dml.errors import CorruptArtifact, MissingArtifact, did_you_mean
from dml.lineage import VERSIONED, artifact_locations
from dml.names import is_name, split_version, versioned
from dml.progress import Ticker
from dml.refs import Ref

R = TypeVar("R", bound=Ref)

OnProgress = Callable[[int, int], None]


class CheckedArtifact(NamedTuple):
    """An artefact and its damaged files; only `manifest.json` if the manifest cannot be read."""

    kind: str
    name: str
    version: str
    uri: str
    damaged: list[str]

    @property
    def title(self) -> str:
        return self.version if self.name == self.version else versioned(self.name, self.version)

    @property
    def is_unreadable(self) -> bool:
        """Whether its manifest is damaged, so that it does not say what it was made from."""
        return self.damaged == [storage.MANIFEST]


def check_store(
    store: str, name: str | None = None, progress: OnProgress | None = None
) -> list[CheckedArtifact]:
    """Compare all artefacts of a store, including checkpoints, with their manifests, and read all logs.

    Args:
        store: the store's URI.
        name: only datasets and indexes of this name, NAME or NAME@VERSION; None checks everything.
        progress: called with (artefacts done, total artefacts).

    Raises:
        MissingArtifact: there is no store, or no dataset or index of that name.
    """
    storage.require_store(store)
    base, version = (None, None) if name is None else split_version(name)
    locations: list[tuple[str, str, str, str]] = [
        (k, n, v, uri) for k, uri, n, v in artifact_locations(store)
    ]
    locations += _checkpoints(store)
    selected = [p for p in locations if name is None or (p[1] == base and version in (None, p[2]))]
    if name is not None and not selected:
        names = sorted({n for kind, n, _, _ in locations if kind in VERSIONED})
        titles = [versioned(n, v) for kind, n, v, _ in locations if kind in VERSIONED and n == base]
        near = did_you_mean(name, titles) if titles else did_you_mean(str(base), names)
        raise MissingArtifact(
            f"A dataset or index {name!r} must exist in the store; there are {titles or names}.{near}"
        )
    checked = []
    with Ticker("verify") as ticker:
        for number, (kind, artifact_name, artifact_version, uri) in enumerate(selected, start=1):
            ticker.begin(f"{kind} {artifact_version}, {number} of {len(selected)} artefacts", "files")
            try:
                damaged = [*storage.damaged_files(uri), *_missing_shards(uri)]
            except (CorruptArtifact, MissingArtifact):
                damaged = [storage.MANIFEST]
            checked.append(CheckedArtifact(kind, artifact_name, artifact_version, uri, damaged))
            if progress is not None:
                progress(number, len(selected))
    if version is None:
        checked += _logs(store, base)
    return checked + _damaged_pointers(store, base)


def _logs(store: str, name: str | None) -> list[CheckedArtifact]:
    """The logs of galleries, of one name or of all names."""
    from dml.retrieval.gallery.damage import damaged_files_of_log  # takes a second to import

    root = storage.join(store, "galleries")
    names = {*storage.list_folders(root), *storage.list_folders(storage.join(store, "indexes"))}
    logs = []
    for log in sorted(filter(is_name, names if name is None else names & {name})):
        damaged = damaged_files_of_log(store, log)
        if damaged is not None:
            logs.append(CheckedArtifact("log", log, log, storage.join(root, log), damaged))
    return logs


def _missing_shards(uri: str) -> list[str]:
    """The shards of an index that are not there; one that is damaged is an artefact of its own."""
    shards = storage.read_manifest(uri).get("ref", {}).get("shards") or []
    missing = [shard["uri"] for shard in shards if not storage.is_complete(shard["uri"])]
    return [f"{storage.SHARDS}/{uri.rpartition('/')[2]}" for uri in missing]


def _damaged_pointers(store: str, name: str | None) -> list[CheckedArtifact]:
    """Damaged pointers and lists of forgotten items, of one name or of all names."""
    damaged = []
    for kind, folder in VERSIONED.items():
        root = storage.join(store, folder)
        for folder_name in storage.list_folders(root):
            if name not in (None, folder_name):
                continue
            uri = storage.join(root, folder_name)
            problem = _pointer_problem(uri)
            if problem is not None:
                damaged.append(CheckedArtifact(f"{kind} pointer", folder_name, "current", uri, [problem]))
            if kind in ("dataset", "vectors"):
                damaged += _damaged_list_of_forgotten(store, folder, folder_name, uri)
    return damaged


def _pointer_problem(uri: str) -> str | None:
    try:
        current = storage.current(uri)
    except CorruptArtifact:
        return storage.POINTER
    if current is None or storage.is_complete(storage.join(uri, current)):
        return None
    return f"{storage.POINTER} (names {current}, which does not exist)"


def _damaged_list_of_forgotten(store: str, folder: str, name: str, uri: str) -> list[CheckedArtifact]:
    try:
        forgotten_ids(store, name, folder=folder)
    except CorruptArtifact:
        return [CheckedArtifact("list of forgotten items", name, "forgotten", uri, [FORGOTTEN])]
    return []


def _checkpoints(store: str) -> list[tuple[str, str, str, str]]:
    runs = storage.join(store, "runs")
    checkpoints = []
    for run in storage.list_folders(runs):
        folder = storage.join(runs, run, "checkpoints")
        checkpoints += [
            ("checkpoint", run, v, storage.join(folder, v)) for v in storage.list_versions(folder)
        ]
    return checkpoints


def require_intact(*refs: Ref) -> None:
    """Compare every byte of these artefacts; raises CorruptArtifact or MissingArtifact on a difference."""
    for ref in refs:
        storage.verify(ref.uri)


def ref_of(checked: CheckedArtifact, kind: type[R]) -> R:
    """The ref in a damaged artefact's manifest; raises CorruptArtifact if the manifest is damaged too."""
    try:
        return kind.model_validate({"uri": checked.uri, **storage.read_manifest(checked.uri)["ref"]})
    except (KeyError, ValidationError) as error:
        raise CorruptArtifact(
            f"{checked.uri}/{storage.MANIFEST} must record what the artefact was made from; it does not. "
            "Remove it with `dml rm`, or restore it from a copy."
        ) from error


def remove_damaged(checked: CheckedArtifact) -> None:
    """Remove an artefact's damaged files and its manifest, which marks the rest as unfinished."""
    storage.delete(storage.join(checked.uri, storage.MANIFEST))
    for name in checked.damaged:
        storage.delete(storage.join(checked.uri, name))
    if checked.kind != "embeddings":
        storage.delete(checked.uri)
