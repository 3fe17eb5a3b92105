"""Artefact folders: written to a staging folder, published atomically, verified against their manifest.

An artefact exists if and only if its folder holds `manifest.json`, which is written last and lists every
other file with its size and SHA-256. A pointer file beside the versions names the current one.
"""

import os
import posixpath
import re
import uuid
from collections.abc import Collection, Container, Iterator, Mapping, Sequence
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
from dml.storage import s3_errors, verified
from dml.storage.conditional import WriteConflict, read_with_etag, replace_if_unchanged
from dml.storage.digest import decode_checked, encode_checked
from dml.storage.files import (
    Entry,
    absolute_references,
    delete,
    exists,
    file_digest,
    files_below,
    filesystem,
    is_link,
    is_remote,
    join,
    list_entries,
    list_folders,
    make_folder,
    opened,
    read_bytes,
    read_json,
    relative_references,
    resolve,
    unresolved_path,
    write_bytes,
    write_json,
)

MANIFEST = "manifest.json"
CHANGES = "changes"
"""The folder of an index that holds what was built into its versions from its gallery."""
SHARDS = "shards"
"""The folder of an index that holds the shards of all its versions."""
SHARED = "fragments"
"""The folder beside the versions of a dataset that holds the files that several of them can have."""
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
        "service",
        "thresholds",
        "vectors",
    ]
)
"""Folders that stages write below a store. They are skipped when the store is inside an image source."""
STORE_FORMAT = 2
KIND_OF_FOLDER = {
    "datasets": "dataset",
    "indexes": "index",
    "vectors": "name of vectors",
    "galleries": "gallery",
}
_STAGING = re.compile(r"\.staging-.+-[0-9a-f]{8}")
_REMOVED = "removed-"
_TRIES = 5
_HASHING_THREADS = 8


def mark_store(store: str) -> None:
    """Make a folder a store by writing a marker file. Nothing is ever removed from a folder without one.

    Raises:
        IncompatibleArtifact: the store has another format.
        InvalidSetting: the path is a file.
    """
    if not is_remote(store) and Path(resolve(store)).exists() and not Path(resolve(store)).is_dir():
        raise InvalidSetting(f"A store must be a folder; {store} is a file. Give another with --store.")
    marker = join(store, MARKER)
    if not exists(marker):
        write_json(marker, {"format": STORE_FORMAT})
    require_store(store)


def require_store(store: str) -> None:
    """Raise MissingArtifact if there is no store, IncompatibleArtifact if it has another format."""
    marker = join(store, MARKER)
    if not exists(marker):
        raise MissingArtifact(f"A store must hold {MARKER}; {store} does not. Check --store or DML_STORE.")
    store_format = read_json(marker).get("format")
    if store_format != STORE_FORMAT:
        raise IncompatibleArtifact(
            f"A store must have format {STORE_FORMAT} for this program; {store} has {store_format!r}. "
            "Use the version of this project that made it, or another store."
        )


def named_folder(store: str, folder: str, name: str) -> str:
    """The folder that holds the versions of a dataset or an index.

    Args:
        store: the store's URI.
        folder: one of `KIND_OF_FOLDER`.
        name: as the user gave it.

    Raises:
        InvalidSetting: `name` is not a valid name, so it must not become part of a path.
    """
    return join(store, folder, check_name(name, KIND_OF_FOLDER[folder]))


def staging(final_uri: str) -> str:
    """A new, private folder next to where an artefact will be published."""
    parent, name = final_uri.rstrip("/").rsplit("/", 1)
    return make_folder(join(parent, staging_name(name)))


def staging_name(name: str) -> str:
    """A new hidden folder name, recognised by `is_staging`, for unfinished work or a folder being removed."""
    return f".staging-{name}-{uuid.uuid4().hex[:8]}"


@contextmanager
def staged(final_uri: str) -> Iterator[str]:
    """`staging`, removed if the body fails, so that retries do not fill the disk."""
    folder = staging(final_uri)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):
            delete(folder)
        raise


def is_staging(name: str) -> bool:
    """Whether a folder name was made by `staging_name`."""
    return _STAGING.fullmatch(name) is not None


def publish(
    staged_uri: str,
    final_uri: str,
    description: Mapping[str, Any],
    shared: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Make a staged folder visible under its final name, atomically.

    The files in the staged folder's subfolder `SHARED` come to the folder of that name beside the versions,
    where later versions can have them too. They must be named by their content.

    Args:
        staged_uri: a folder made by `staged(final_uri)` that holds every file of the artefact.
        final_uri: the URI that readers open. An intact artefact that already exists there was made from the
            same inputs and is kept; a damaged one is replaced.
        description: manifest entries besides the list of files.
        shared: files of other versions that this one has too, as their manifests list them.

    Raises:
        IncompatibleArtifact: one of `shared` was removed meanwhile.
    """
    if is_intact(final_uri):
        delete(staged_uri)
        return
    described = _describe_files(staged_uri)
    new = {name.removeprefix(f"{SHARED}/"): e for name, e in described.items() if _is_shared(name)}
    own = {name: entry for name, entry in described.items() if not _is_shared(name)}
    all_shared = {**(shared or {}), **new}
    manifest = {**description, "files": own, **({"shared": all_shared} if all_shared else {})}
    _move_shared(staged_uri, final_uri, sorted(new))
    if missing := _changed_sizes(final_uri, {f"../{SHARED}/{name}": e for name, e in all_shared.items()}):
        remove_unshared(final_uri.rpartition("/")[0], new)
        raise IncompatibleArtifact(
            f"A version must not be removed while the next is made; {len(missing)} files that both have "
            f"were, such as {missing[0]}. Nothing was published; start again."
        )
    if is_remote(final_uri):
        _publish_remote(staged_uri, final_uri, manifest)
        return
    write_manifest(staged_uri, manifest)
    source, target = resolve(staged_uri), resolve(final_uri)
    try:
        os.rename(source, target)
    except OSError:
        if is_intact(final_uri):  # another process has just published the same artefact
            delete(staged_uri)
            return
        delete(final_uri)  # unfinished or damaged
        os.rename(source, target)
    verified.remember(final_uri, _all_files(manifest))


def replace_shared(staged_uri: str, uri: str, description: Mapping[str, Any], names: Collection[str]) -> None:
    """Give a published version other shared files, atomically, for example without rows that it never reads.

    Args:
        staged_uri: a folder made by `staged(uri)` with the new files in its subfolder `SHARED`.
        uri: the version.
        description: manifest entries besides the lists of files.
        names: the shared files that it has from now on.
    """
    manifest = read_manifest(uri)
    described = _describe_files(join(staged_uri, SHARED))
    _move_shared(staged_uri, uri, sorted(described))
    shared = {name: entry for name, entry in {**manifest["shared"], **described}.items() if name in names}
    replaced = {**description, "files": manifest["files"], "shared": shared}
    write_manifest(uri, replaced)
    verified.remember(uri, _all_files(replaced))


def _is_shared(name: str) -> bool:
    return name.startswith(f"{SHARED}/")


def _move_shared(staged_uri: str, final_uri: str, names: Sequence[str]) -> None:
    """Move the staged shared files beside the versions; one that is there already has the same content."""
    if not names:
        return
    make_folder(shared_folder(final_uri))
    for name in names:
        source, target = join(staged_uri, SHARED, name), shared_file(final_uri, name)
        if is_remote(final_uri):
            with opened(source) as (filesystem_, path):
                filesystem_.copy_file(path, filesystem(target)[1])
            delete(source)
        else:
            os.replace(resolve(source), resolve(target))
        count()
    delete(join(staged_uri, SHARED))


def shared_folder(uri: str) -> str:
    """The folder of shared files beside a version."""
    return join(uri.rstrip("/").rpartition("/")[0], SHARED)


def shared_file(uri: str, name: str) -> str:
    """The URI of a shared file of a version."""
    return join(shared_folder(uri), name)


def _all_files(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """The entries of an artefact's files, the shared ones as `../fragments/NAME`."""
    shared = {f"../{SHARED}/{name}": entry for name, entry in manifest.get("shared", {}).items()}
    return {**manifest["files"], **shared}


def _file_uri(uri: str, name: str) -> str:
    """The URI of a file that `_all_files` names."""
    return shared_file(uri, name.removeprefix(f"../{SHARED}/")) if name.startswith("../") else join(uri, name)


def unshared_files(parent_uri: str, without: Collection[str] = ()) -> list[Entry]:
    """The shared files beside the versions of a folder that no version has.

    Args:
        parent_uri: the folder of versions.
        without: URIs of versions that do not count, since they will be removed.

    Returns:
        Nothing if a version's manifest cannot be read: its files must be kept.
    """
    entries = list_entries(join(parent_uri, SHARED))
    used: set[str] = set()
    for version in list_versions(parent_uri) if entries else ():
        if (uri := join(parent_uri, version)) not in without:
            try:
                used |= read_manifest(uri).get("shared", {}).keys()
            except MissingArtifact:  # removed meanwhile
                continue
            except CorruptArtifact:
                return []
    return [entry for entry in entries if not entry.is_folder and entry.name not in used]


def remove_unshared(parent_uri: str, names: Container[str]) -> None:
    """Remove those of these shared files that no version has, after a publication that failed."""
    for entry in unshared_files(parent_uri):
        if entry.name in names:
            delete(join(parent_uri, SHARED, entry.path))


def _publish_remote(staged_uri: str, final_uri: str, manifest: Mapping[str, Any]) -> None:
    filesystem_, staged_path = filesystem(staged_uri)
    _, final_path = filesystem(final_uri)

    def copy(name: str) -> None:
        with s3_errors.translated_errors(final_uri):
            filesystem_.copy_file(f"{staged_path}/{name}", f"{final_path}/{name}")

    # Two processes that publish the same artefact at once overwrite each other's files. The one whose
    # manifest comes second starts again, so that in the end all files come from one process.
    for _ in range(_TRIES):
        read_before = read_with_etag(join(final_uri, MANIFEST))
        with ThreadPoolExecutor(_HASHING_THREADS) as pool:
            for _ in pool.map(copy, manifest["files"]):
                count()
        with suppress(WriteConflict):
            replace_if_unchanged(
                join(final_uri, MANIFEST), _encode_manifest(final_uri, manifest), read_before
            )
            break
    else:
        raise WriteConflict(
            f"Only one process must publish {final_uri} at a time; several do. Give the command again."
        )
    delete(staged_uri)


def seal(uri: str, description: Mapping[str, Any]) -> None:
    """Write the manifest of a folder that was filled in place. After that the folder must not change."""
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
    """Whether `uri` holds a published artefact."""
    return exists(join(uri, MANIFEST))


def is_intact(uri: str) -> bool:
    """Whether `uri` holds a published artefact that passes `verify_opened`."""
    try:
        verify_opened(uri)
    except (MissingArtifact, CorruptArtifact):
        return False
    return True


def read_manifest(uri: str) -> dict[str, Any]:
    """The manifest of a published artefact, with absolute references.

    Raises:
        MissingArtifact: there is no complete artefact.
        CorruptArtifact: the manifest cannot be read.
    """
    try:
        content = decode_checked(read_bytes(join(uri, MANIFEST)))
    except MissingArtifact as error:
        raise MissingArtifact(
            f"A published artefact must hold {MANIFEST}; {uri} has none. "
            "It was never finished, was deleted, or the path is wrong."
        ) from error
    if content is None or not isinstance(content.get("files"), dict):
        raise CorruptArtifact(
            f"{join(uri, MANIFEST)} must be as it was published; it was changed. `dml verify --repair` "
            "makes again what can be; else restore it from a copy, or remove the folder."
        )
    outside = [name for name in content["files"] if name != posixpath.normpath(name) or _leads_out(name)]
    outside += [name for name in content.get("shared", {}) if "/" in name or name.startswith(".")]
    if outside:
        raise CorruptArtifact(
            f"{join(uri, MANIFEST)} must list only files inside its folder; it lists {outside[:3]}. "
            "It was not made by this program: remove the folder."
        )
    manifest: dict[str, Any] = absolute_references(content, uri)
    return manifest


def _leads_out(name: str) -> bool:
    """Whether a path leads out of the folder it is relative to."""
    return name.startswith("/") or ".." in name.split("/")


def write_manifest(uri: str, content: Mapping[str, Any]) -> None:
    """Write the manifest: an artefact's files and inputs, with a digest that reveals later changes."""
    write_bytes(join(uri, MANIFEST), _encode_manifest(uri, content))


def _encode_manifest(uri: str, content: Mapping[str, Any]) -> bytes:
    return encode_checked(relative_references(content, uri))


def verify(uri: str) -> None:
    """Compare every byte of an artefact with its manifest.

    Raises:
        MissingArtifact: there is no complete artefact.
        CorruptArtifact: files differ or are missing; the message lists them.
    """
    _require_undamaged(uri, damaged_files(uri))


def damaged_files(uri: str) -> list[str]:
    """The files of an artefact that differ from its manifest, compared byte by byte; raises like `verify`."""
    files = _all_files(read_manifest(uri))
    resized = set(_changed_sizes(uri, files))

    def differs(name: str) -> bool:
        return name in resized or file_digest(_file_uri(uri, name)) != files[name]["sha256"]

    damaged = []
    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        for name, is_damaged in zip(files, pool.map(differs, files), strict=True):
            if is_damaged:
                damaged.append(name)
            count()
    if not damaged:
        verified.remember(uri, files)
    return damaged


def verify_opened(uri: str, *, digests: bool = True) -> dict[str, Any]:
    """Check an artefact before it is read, and return its manifest.

    File sizes are always compared. Bytes are hashed once per version and machine, and again when a file's
    size or times change; not on S3, where `fetch` hashes the files it copies.

    Args:
        uri: the artefact's folder.
        digests: False for Parquet data, whose pages carry checksums.

    Raises:
        MissingArtifact, CorruptArtifact: as `verify`.
    """
    manifest = read_manifest(uri)
    _require_undamaged(uri, changed_files(uri, manifest, digests=digests))
    return manifest


def changed_files(uri: str, manifest: Mapping[str, Any], *, digests: bool = True) -> list[str]:
    """The files that `verify_opened` finds damaged; a shared one is `../fragments/NAME`."""
    files = _all_files(manifest)
    changed = _changed_sizes(uri, files)
    if digests and not changed and not is_remote(uri):
        unknown = verified.unknown_files(uri, files)
        changed = [name for name in unknown if file_digest(_file_uri(uri, name)) != files[name]["sha256"]]
        if unknown and not changed:
            verified.remember(uri, files)
    return changed


def _changed_sizes(uri: str, files: Mapping[str, Any]) -> list[str]:
    sizes = {entry.path: entry.size_bytes for entry in files_below(uri)}
    if any(name.startswith("../") for name in files):
        shared = list_entries(shared_folder(uri))
        sizes |= {f"../{SHARED}/{entry.name}": entry.size_bytes for entry in shared}
    return [name for name in files if sizes.get(name) != files[name]["size_bytes"]]


def _require_undamaged(uri: str, names: list[str]) -> None:
    if names:
        raise CorruptArtifact(
            f"Every file of an artefact must be as it was published; in {uri} {len(names)} are not: "
            f"{', '.join(names[:5])}. They were changed, truncated or removed. `dml verify` lists all "
            "damaged artefacts; `dml verify --repair` removes them, so that they can be made again."
        )


def list_versions(parent_uri: str) -> list[str]:
    """The complete versions in a folder of versions, sorted by name."""
    return [v for v in list_folders(parent_uri) if is_version(v) and is_complete(join(parent_uri, v))]


def remove(uri: str) -> None:
    """Remove an artefact, folder or file. Readers see all of it or nothing, also after a crash."""
    if is_complete(uri):
        if is_remote(uri):
            delete(join(uri, MANIFEST))
        elif not is_link(uri):
            parent, name = unresolved_path(uri).rsplit("/", 1)
            aside = join(parent, staging_name(f"{_REMOVED}{name}"))
            with suppress(FileNotFoundError):  # another process was first
                os.rename(join(parent, name), aside)
            uri = aside
    delete(uri)


def is_removed(name: str) -> bool:
    """Whether a folder is left over from an interrupted `remove`; no process reads or writes it."""
    return is_staging(name) and name.startswith(f".staging-{_REMOVED}")
