"""Is everything in a store as it was published? Every byte of every artefact against its manifest."""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

from pydantic import ValidationError

from dml import storage
from dml.data.forgotten import FORGOTTEN, forgotten_ids
from dml.errors import CorruptArtifact, MissingArtifact, did_you_mean
from dml.lineage import VERSIONED, places
from dml.names import split_version
from dml.progress import Ticker
from dml.refs import Ref

R = TypeVar("R", bound=Ref)

OnProgress = Callable[[int, int], None]


class Checked(NamedTuple):
    """One artefact, and which of its files are damaged; `manifest.json` where that cannot be read."""

    kind: str
    name: str
    version: str
    uri: str
    damaged: list[str]

    @property
    def title(self) -> str:
        return self.version if self.name == self.version else f"{self.name}@{self.version}"


def check_store(store: str, name: str | None = None, progress: OnProgress | None = None) -> list[Checked]:
    """Compare all artefacts of a store, checkpoints among them, with their manifests.

    Args:
        store: the store's URI.
        name: only datasets and indexes of this name, NAME or NAME@VERSION; None: everything.
        progress: called with (artefacts done, artefacts in all).

    Raises:
        MissingArtifact: no store, or nothing of that name.
    """
    storage.require_store(store)
    wanted, version = (None, None) if name is None else split_version(name)
    found: list[tuple[str, str, str, str]] = [(k, n, v, uri) for k, uri, n, v in places(store)]
    found += _checkpoints(store)
    chosen = [p for p in found if name is None or (p[1] == wanted and version in (None, p[2]))]
    if name is not None and not chosen:
        names = sorted({n for kind, n, _, _ in found if kind in VERSIONED})
        titles = [f"{n}@{v}" for kind, n, v, _ in found if kind in VERSIONED and n == wanted]
        near = did_you_mean(name, titles) if titles else did_you_mean(str(wanted), names)
        raise MissingArtifact(
            f"A dataset or index {name!r} must exist in the store; there are {titles or names}.{near}"
        )
    checked = []
    with Ticker("verify") as ticker:
        for number, (kind, own, own_version, uri) in enumerate(chosen, start=1):
            ticker.begin(f"{kind} {own_version}, {number} of {len(chosen)} artefacts", "files")
            try:
                damaged = storage.damaged_files(uri)
            except (CorruptArtifact, MissingArtifact):
                damaged = [storage.MANIFEST]
            checked.append(Checked(kind, own, own_version, uri, damaged))
            if progress is not None:
                progress(number, len(chosen))
    return checked + _damaged_pointers(store, wanted)


def _damaged_pointers(store: str, name: str | None) -> list[Checked]:
    """Of a name, or of all, where nothing says any more which version is current."""
    found = []
    for kind, folder in VERSIONED.items():
        root = storage.join(store, folder)
        for own in storage.list_folders(root):
            uri = storage.join(root, own)
            wrong = _wrong_in_pointer(uri) if name in (None, own) else None
            if wrong is not None:
                found.append(Checked(f"{kind} pointer", own, "current", uri, [wrong]))
            if kind == "dataset" and name in (None, own):
                found += _damaged_list_of_forgotten(store, own, uri)
    return found


def _wrong_in_pointer(uri: str) -> str | None:
    try:
        current = storage.current(uri)
    except CorruptArtifact:
        return storage.POINTER
    if current is None or storage.is_complete(storage.join(uri, current)):
        return None
    return f"{storage.POINTER} (names {current}, which is not there)"


def _damaged_list_of_forgotten(store: str, name: str, uri: str) -> list[Checked]:
    try:
        forgotten_ids(store, name)
    except CorruptArtifact:
        return [Checked("list of forgotten items", name, "forgotten", uri, [FORGOTTEN])]
    return []


def _checkpoints(store: str) -> list[tuple[str, str, str, str]]:
    runs = storage.join(store, "runs")
    found = []
    for run in storage.list_folders(runs):
        folder = storage.join(runs, run, "checkpoints")
        found += [("checkpoint", run, v, storage.join(folder, v)) for v in storage.list_versions(folder)]
    return found


def require_intact(*refs: Ref) -> None:
    """Compare every byte of these artefacts; raises CorruptArtifact or MissingArtifact."""
    for ref in refs:
        storage.verify(ref.uri)


def ref_of(checked: Checked, kind: type[R]) -> R:
    """The ref in a damaged artefact's manifest; raises CorruptArtifact where that is damaged itself."""
    try:
        return kind.model_validate({"uri": checked.uri, **storage.read_manifest(checked.uri)["ref"]})
    except (KeyError, ValidationError) as error:
        raise CorruptArtifact(
            f"{checked.uri}/{storage.MANIFEST} must say what the artefact was made of; it does not. Remove "
            "it with `dml rm`, or restore it from a copy."
        ) from error


def remove_damaged(checked: Checked) -> None:
    """Remove an artefact's damaged files, and its manifest: what is left is known to be unfinished."""
    storage.delete(storage.join(checked.uri, storage.MANIFEST))
    for name in checked.damaged:
        storage.delete(storage.join(checked.uri, name))
    if checked.kind != "embeddings":
        storage.delete(checked.uri)
