"""How an artefact appears: written aside, then published whole, then pointed at.

An artefact is a folder. It exists if and only if it holds `manifest.json`, which is written last and names
every other file with its size and SHA-256. A folder of versions (`datasets/NAME`, `indexes/NAME`) has a
`current.json` that names the version in use and those before it; replacing that one small file is the only
way anything changes.
"""

import json
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
    did_you_mean,
)
from dml.names import check_name, is_version
from dml.storage import verified
from dml.storage.digest import digest_of
from dml.storage.files import (
    absolute_references,
    delete,
    exists,
    file_digest,
    files_below,
    filesystem,
    is_remote,
    join,
    list_folders,
    make_folder,
    read_bytes,
    read_json,
    relative_references,
    resolve,
    write_bytes,
    write_json,
)

MANIFEST = "manifest.json"
POINTER = "current.json"
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
_MOST_FORMER_VERSIONS = 100
_STAGING = re.compile(r"\.staging-.+-[0-9a-f]{8}")
_HASHING_THREADS = 8
_OWN_DIGEST = "manifest_sha256"


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

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        list(pool.map(copy, manifest["files"]))
    write_manifest(final_uri, manifest)
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
        digests = list(pool.map(lambda entry: file_digest(join(uri, entry.path)), entries))
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
        content = json.loads(read_bytes(join(uri, MANIFEST)))
    except MissingArtifact as error:
        raise MissingArtifact(
            f"A published artefact must hold {MANIFEST}; {uri} has none. "
            "It was never finished, was deleted, or the path is wrong."
        ) from error
    except ValueError:
        content = None
    if (
        not isinstance(content, dict)
        or content.pop(_OWN_DIGEST, None) != digest_of(content)
        or not isinstance(content.get("files"), dict)
    ):
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
    kept = json.loads(json.dumps(relative_references(content, uri)))
    write_bytes(join(uri, MANIFEST), json.dumps({**kept, _OWN_DIGEST: digest_of(kept)}, indent=1).encode())


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

    with ThreadPoolExecutor(_HASHING_THREADS) as pool:
        found = [name for name, wrong in zip(files, pool.map(differs, files), strict=True) if wrong]
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


def point(parent_uri: str, version: str, remember: Mapping[str, Any] | None = None) -> None:
    """Make a version the current one; readers see the former or this, never neither.

    Args:
        parent_uri: the folder of versions.
        version: which.
        remember: what `remembered` gives from now on, a JSON tree; None: what it gave before.
    """
    history, known = _history(parent_uri), remembered(parent_uri)
    remember = known if remember is None else remember
    if history[:1] == [version] and remember == known:
        return
    former = [name for name in history if name != version]
    _write_pointer(parent_uri, [version, *former], remember)


def remembered(parent_uri: str) -> dict[str, Any]:
    """What is known of the current version beyond its manifest, which does not change; often nothing."""
    try:
        known = read_json(join(parent_uri, POINTER)).get("remembered", {})
    except (MissingArtifact, CorruptArtifact):
        return {}
    return known if isinstance(known, dict) else {}


def point_back(parent_uri: str, version: str | None = None) -> str:
    """Make a former version the current one again, and forget that the later ones were current.

    Args:
        parent_uri: the folder of versions.
        version: which; None: the one before the current.

    Returns:
        The version that is current now.

    Raises:
        MissingArtifact: there is no such former version.
    """
    history = _history(parent_uri)
    whole = [name for name in history[1:] if is_complete(join(parent_uri, name))]
    if version is None and whole:
        version = whole[0]
    if version is None or version not in whole:
        raise MissingArtifact(
            f"{parent_uri.rsplit('/', 1)[-1]} must have a former version to go back to; wanted "
            f"{version or 'the one before'}, there are {whole or 'none'}."
        )
    _write_pointer(parent_uri, history[history.index(version) :])
    return version


def current(parent_uri: str) -> str | None:
    """The current version's name, or None before the first; raises CorruptArtifact for a damaged pointer."""
    return next(iter(_history(parent_uri)), None)


def former_versions(parent_uri: str) -> list[str]:
    """The versions that were current before the current one, the latest first."""
    return _history(parent_uri)[1:]


def _write_pointer(parent_uri: str, history: list[str], remember: Mapping[str, Any] | None = None) -> None:
    content = {"version": history[0], "former": history[1 : _MOST_FORMER_VERSIONS + 1]}
    write_json(join(parent_uri, POINTER), content | ({"remembered": remember} if remember else {}))


def _history(parent_uri: str) -> list[str]:
    uri = join(parent_uri, POINTER)
    try:
        content = read_json(uri)
    except MissingArtifact:
        return []
    except CorruptArtifact as error:
        raise _damaged_pointer(uri) from error
    former = content.get("former", [])
    history = [content.get("version"), *(former if isinstance(former, list) else [former])]
    if not all(isinstance(name, str) and is_version(name) for name in history):
        raise _damaged_pointer(uri)
    return [str(name) for name in history]


def _damaged_pointer(uri: str) -> CorruptArtifact:
    versions = [name for name in list_folders(uri.rpartition("/")[0]) if is_version(name)]
    return CorruptArtifact(
        f"{uri} must name the current version; it is damaged. Remove the file and make the version again, "
        f"or name one of {versions} with NAME@VERSION."
    )


def find_version(parent_uri: str, version: str | None, kind: str) -> str:
    """The URI of a version (or of the current one), for messages a user can act on.

    Raises:
        MissingArtifact: no such version, with the list of those there are.
    """
    chosen = version or current(parent_uri)
    if chosen is not None and is_version(chosen) and is_complete(join(parent_uri, chosen)):
        return join(parent_uri, chosen)
    raise missing_version(parent_uri, version, kind)


def missing_version(parent_uri: str, version: str | None, kind: str) -> MissingArtifact:
    """The error for a version, or a name, that is not there: with those there are, and the nearest."""
    parent, name = parent_uri.rsplit("/", 1)
    published = list_versions(parent_uri)
    siblings = [sibling for sibling in list_folders(parent) if list_versions(join(parent, sibling))]
    have = f"{kind} {name!r} has versions {published}" if published else f"there are {siblings}"
    wanted = f"{name}@{version}" if version else name
    near = "" if published else did_you_mean(name, siblings)
    return MissingArtifact(f"{kind} {wanted!r} must exist in the store; {have}.{near}")


def list_versions(parent_uri: str) -> list[str]:
    """The complete versions in a folder of versions, sorted by name."""
    return [v for v in list_folders(parent_uri) if is_version(v) and is_complete(join(parent_uri, v))]


def remove(uri: str) -> None:
    """Remove an artefact, folder or file; readers see it whole or not at all, also after a crash."""
    if is_complete(uri):
        if is_remote(uri):
            delete(join(uri, MANIFEST))
        else:
            parent, name = resolve(uri).rsplit("/", 1)
            aside = join(parent, staging_name(name))
            os.rename(resolve(uri), aside)
            uri = aside
    delete(uri)
