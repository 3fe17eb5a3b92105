"""How an artefact appears: written aside, then published whole.

An artefact is a folder. It exists if and only if it holds `manifest.json`, which is written last and names
every other file with its size and SHA-256. Which version of several is in use says the pointer beside them.
"""

import os
import posixpath
import re
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dml.errors import (
    CorruptArtifact,
    IncompatibleArtifact,
    InvalidSetting,
    MissingArtifact,
)
from dml.names import check_name, is_version
from dml.progress import count
from dml.storage import verified
from dml.storage.conditional import Overtaken, read_held, replace_held
from dml.storage.digest import with_own_digest, without_own_digest
from dml.storage.files import (
    absolute_references,
    delete,
    exists,
    file_digest,
    files_below,
    filesystem,
    is_link,
    is_remote,
    join,
    list_folders,
    make_folder,
    own_path,
    read_bytes,
    read_json,
    relative_references,
    resolve,
    write_bytes,
    write_json,
)

MANIFEST = "manifest.json"
MARKER = "dml-store.json"
STORE_FOLDERS = frozenset(
    [
        "bench",
        "datasets",
        "embeddings",
        "galleries",
        "indexes",
        "mlflow-artifacts",
        "packages",
        "quarantine",
        "reports",
        "runs",
    ]
)
"""What stages make below a store: no part of a source that the store lies in."""
STORE_FORMAT = 1
KIND_OF_FOLDER = {"datasets": "dataset", "indexes": "index"}
_STAGING = re.compile(r"\.staging-.+-[0-9a-f]{8}")
_REMOVED = "removed-"
_TRIES = 5
_HASHING_THREADS = 8


def mark_store(store: str) -> None:
    """Make a folder a store: a marker file says so, and nothing is ever removed where there is none.

    Raises:
        IncompatibleArtifact: it is a store of another format.
        InvalidSetting: there is a file in its place.
    """
    if not is_remote(store) and Path(resolve(store)).exists() and not Path(resolve(store)).is_dir():
        raise InvalidSetting(f"A store must be a folder; {store} is a file. Give another with --store.")
    marker = join(store, MARKER)
    if not exists(marker):
        write_json(marker, {"format": STORE_FORMAT})
    require_store(store)


def require_store(store: str) -> None:
    """Raise MissingArtifact where there is no store, IncompatibleArtifact where it has another format."""
    marker = join(store, MARKER)
    if not exists(marker):
        raise MissingArtifact(f"A store must hold {MARKER}; {store} does not. Check --store or DML_STORE.")
    held = read_json(marker).get("format")
    if held != STORE_FORMAT:
        raise IncompatibleArtifact(
            f"A store must have format {STORE_FORMAT} for this program; {store} has {held!r}. Use the "
            "version of this project that made it, or another store."
        )


def named_folder(store: str, folder: str, name: str) -> str:
    """Where the versions of a dataset or an index lie.

    Args:
        store: the store's URI.
        folder: "datasets" or "indexes".
        name: as the user gave it.

    Raises:
        InvalidSetting: it is no name, and must not become a path.
    """
    return join(store, folder, check_name(name, KIND_OF_FOLDER[folder]))


def staging(final_uri: str) -> str:
    """A new, private folder next to where an artefact will be published."""
    parent, name = final_uri.rstrip("/").rsplit("/", 1)
    return make_folder(join(parent, staging_name(name)))


def staging_name(name: str) -> str:
    """A new name, hidden and recognised by `is_staging`, for what is not finished or about to be removed."""
    return f".staging-{name}-{uuid.uuid4().hex[:8]}"


@contextmanager
def staged(final_uri: str) -> Iterator[str]:
    """`staging`, removed if the body fails: a full disk does not get fuller by each try."""
    folder = staging(final_uri)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            delete(folder)
        raise


def is_staging(name: str) -> bool:
    """Whether a folder's name is one that `staging_name` gives."""
    return _STAGING.fullmatch(name) is not None


def publish(staged_uri: str, final_uri: str, description: Mapping[str, Any]) -> None:
    """Make a staged folder visible at its final place, whole or not at all.

    Args:
        staged_uri: a folder of `staged(final_uri)`, holding every file of the artefact.
        final_uri: where readers look. An intact artefact already there was made from the same inputs and
            stays; a damaged one is replaced.
        description: what the manifest says beyond the list of files.
    """
    if is_intact(final_uri):
        delete(staged_uri)
        return
    manifest = {**description, "files": _describe_files(staged_uri)}
    if is_remote(final_uri):
        _publish_remote(staged_uri, final_uri, manifest)
        return
    write_manifest(staged_uri, manifest)
    source, target = resolve(staged_uri), resolve(final_uri)
    try:
        os.rename(source, target)
    except OSError:
        if is_intact(final_uri):  # another process published the same a moment ago
            delete(staged_uri)
            return
        delete(final_uri)  # unfinished or damaged
        os.rename(source, target)
    verified.remember(final_uri, manifest["files"])


def _publish_remote(staged_uri: str, final_uri: str, manifest: Mapping[str, Any]) -> None:
    filesystem_, staged_path = filesystem(staged_uri)
    _, final_path = filesystem(final_uri)

    def copy(name: str) -> None:
        filesystem_.copy_file(f"{staged_path}/{name}", f"{final_path}/{name}")

    # Two that publish the same at once overwrite each other's files; whose manifest is second begins again,
    # so that what lies there in the end is of one of them.
    for _ in range(_TRIES):
        held = read_held(join(final_uri, MANIFEST))
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            for _ in pool.map(copy, manifest["files"]):
                count()
        with suppress(Overtaken):
            replace_held(join(final_uri, MANIFEST), _encoded(final_uri, manifest), held)
            break
    else:
        raise Overtaken(f"Only one process must publish {final_uri} at a time; others do. Begin again.")
    delete(staged_uri)


def seal(uri: str, description: Mapping[str, Any]) -> None:
    """Make a folder that was filled in place an artefact: from now on it is complete and does not change."""
    files = _describe_files(uri)
    write_manifest(uri, {**description, "files": files})
    verified.remember(uri, files)


def _describe_files(uri: str) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a folder."""
    entries = [entry for entry in files_below(uri) if entry.path != MANIFEST]
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        digests = []
        for digest in pool.map(lambda entry: file_digest(join(uri, entry.path)), entries):
            digests.append(digest)
            count()
    return {
        entry.path: {"size_bytes": entry.size_bytes, "sha256": digest}
        for entry, digest in zip(entries, digests, strict=True)
    }


def is_complete(uri: str) -> bool:
    """Whether an artefact was published there."""
    return exists(join(uri, MANIFEST))


def is_intact(uri: str) -> bool:
    """Whether an artefact was published there and is what its manifest says, as `verify_opened` sees it."""
    try:
        verify_opened(uri)
    except (MissingArtifact, CorruptArtifact):
        return False
    return True


def read_manifest(uri: str) -> dict[str, Any]:
    """What was published there.

    Raises:
        MissingArtifact: nothing complete is there.
        CorruptArtifact: its manifest cannot be read.
    """
    try:
        content = without_own_digest(read_bytes(join(uri, MANIFEST)))
    except MissingArtifact as error:
        raise MissingArtifact(
            f"A published artefact must hold {MANIFEST}; {uri} has none. "
            "It was never finished, was deleted, or the path is wrong."
        ) from error
    if content is None or not isinstance(content.get("files"), dict):
        raise CorruptArtifact(
            f"{join(uri, MANIFEST)} must be as it was published; it was changed. Bring it back from a copy, "
            "or remove the folder and make the artefact again."
        )
    strange = [name for name in content["files"] if name != posixpath.normpath(name) or _leaves(name)]
    if strange:
        raise CorruptArtifact(
            f"{join(uri, MANIFEST)} must name files of its own folder; it names {strange[:3]}. It was not "
            "made by this program: remove the folder."
        )
    manifest: dict[str, Any] = absolute_references(content, uri)
    return manifest


def _leaves(name: str) -> bool:
    """Whether a path leads out of the folder it is relative to."""
    return name.startswith("/") or ".." in name.split("/")


def write_manifest(uri: str, content: Mapping[str, Any]) -> None:
    """Write what an artefact's folder holds and was made from; its own digest shows when it is changed."""
    write_bytes(join(uri, MANIFEST), _encoded(uri, content))


def _encoded(uri: str, content: Mapping[str, Any]) -> bytes:
    return with_own_digest(relative_references(content, uri))


def verify(uri: str) -> None:
    """Compare every byte of an artefact with its manifest.

    Raises:
        MissingArtifact: nothing complete is there.
        CorruptArtifact: files differ or are missing, all of them named.
    """
    _refuse_damaged(uri, damaged_files(uri))


def damaged_files(uri: str) -> list[str]:
    """The files of an artefact that are not as published, every byte compared; raises as `verify`."""
    files = read_manifest(uri)["files"]
    damaged = set(_other_sizes(uri, files))

    def differs(name: str) -> bool:
        return name in damaged or file_digest(join(uri, name)) != files[name]["sha256"]

    found = []
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        for name, wrong in zip(files, pool.map(differs, files), strict=True):
            found += [name] if wrong else []
            count()
    if not found:
        verified.remember(uri, files)
    return found


def verify_opened(uri: str, *, digests: bool = True) -> dict[str, Any]:
    """The manifest of an artefact whose files are what it says; what readers call before they trust it.

    Sizes are compared always. Bytes are hashed once per version and machine, and again when a file's size or
    times change; not on S3, where `fetch` hashes what it copies.

    Args:
        uri: the artefact's folder.
        digests: False for Parquet data, whose pages carry checksums of their own.

    Raises:
        MissingArtifact, CorruptArtifact: as `verify`.
    """
    manifest = read_manifest(uri)
    files = manifest["files"]
    _refuse_damaged(uri, _other_sizes(uri, files))
    if digests and not is_remote(uri):
        unknown = verified.unknown_files(uri, files)
        _refuse_damaged(uri, [n for n in unknown if file_digest(join(uri, n)) != files[n]["sha256"]])
        if unknown:
            verified.remember(uri, files)
    return manifest


def _other_sizes(uri: str, files: Mapping[str, Any]) -> list[str]:
    sizes = {entry.path: entry.size_bytes for entry in files_below(uri)}
    return [name for name in files if sizes.get(name) != files[name]["size_bytes"]]


def _refuse_damaged(uri: str, names: list[str]) -> None:
    if names:
        raise CorruptArtifact(
            f"Every file of an artefact must be as it was published; in {uri} {len(names)} are not: "
            f"{', '.join(names[:5])}. They were changed, cut short or removed. `dml verify` names all that "
            "is damaged; `dml verify --heal` removes it, so that it is made again."
        )


def list_versions(parent_uri: str) -> list[str]:
    """The complete versions in a folder of versions, sorted by name."""
    return [v for v in list_folders(parent_uri) if is_version(v) and is_complete(join(parent_uri, v))]


def remove(uri: str) -> None:
    """Remove an artefact, folder or file; readers see it whole or not at all, also after a crash."""
    if is_complete(uri):
        if is_remote(uri):
            delete(join(uri, MANIFEST))
        elif not is_link(uri):
            parent, name = own_path(uri).rsplit("/", 1)
            aside = join(parent, staging_name(f"{_REMOVED}{name}"))
            with suppress(FileNotFoundError):  # another process was first
                os.rename(join(parent, name), aside)
            uri = aside
    delete(uri)


def is_removed(name: str) -> bool:
    """Whether a folder's name says that `remove` did not get to its end: nobody reads or writes there."""
    return is_staging(name) and name.startswith(f".staging-{_REMOVED}")
