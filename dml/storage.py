"""URIs, and how an artefact appears: written aside, then published whole, then pointed at.

An artefact is a folder. It exists if and only if it holds `manifest.json`, which is written last and names
every other file with its size and SHA-256. A folder of versions (`datasets/NAME`, `indexes/NAME`) has a
`current.json` that names the version in use; replacing that one small file is the only way anything changes.

Local paths and `s3://` URIs go through Arrow's own filesystems: no listing cache, nothing to lose at a fork,
`AWS_ENDPOINT_URL` and the usual AWS variables honoured.
"""

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from pyarrow import fs

from dml.errors import CorruptArtifact, InvalidSetting, MissingArtifact

_ABANDONED_AFTER_S = 24 * 3600.0
MANIFEST = "manifest.json"
POINTER = "current.json"
_HASH_BLOCK_BYTES = 1 << 20


def is_remote(uri: str) -> bool:
    return "://" in uri and not uri.startswith("file://")


def resolve(uri: str) -> str:
    """The absolute form of a path or URI, without trailing slash."""
    if is_remote(uri):
        scheme = uri.split("://", 1)[0]
        if scheme != "s3":
            raise InvalidSetting(f"A store must be a local folder or an s3:// URI; got {uri!r}.")
        return uri.rstrip("/")
    return str(Path(uri.removeprefix("file://")).expanduser().resolve())


def join(uri: str, *names: str) -> str:
    return "/".join([uri.rstrip("/"), *names])


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The Arrow filesystem a URI lives on, and the path there."""
    if not is_remote(uri):
        return fs.LocalFileSystem(), resolve(uri)
    filesystem_, path = fs.FileSystem.from_uri(uri)
    return filesystem_, path


def exists(uri: str) -> bool:
    filesystem_, path = filesystem(uri)
    return bool(filesystem_.get_file_info(path).type != fs.FileType.NotFound)


def read_bytes(uri: str) -> bytes:
    """The whole file; raises MissingArtifact when there is none."""
    filesystem_, path = filesystem(uri)
    try:
        with filesystem_.open_input_stream(path, compression=None) as stream:
            return bytes(stream.read())
    except FileNotFoundError as error:
        raise MissingArtifact(f"A file was expected at {uri}; there is none.") from error


def write_bytes(uri: str, content: bytes) -> None:
    """Replace a file in one step: a reader sees the old content or the new, also after a crash."""
    filesystem_, path = filesystem(uri)
    if is_remote(uri):
        with filesystem_.open_output_stream(path, compression=None) as stream:
            stream.write(content)
        return
    folder, _, name = path.rpartition("/")
    aside = Path(folder, f".{name}.{uuid.uuid4().hex}")
    aside.parent.mkdir(parents=True, exist_ok=True)
    with aside.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    aside.replace(path)


def read_json(uri: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(read_bytes(uri))
    return content


def write_json(uri: str, content: Mapping[str, Any]) -> None:
    write_bytes(uri, json.dumps(content, indent=1, sort_keys=True).encode())


def list_names(uri: str) -> list[str]:
    """The names directly in a folder, sorted; empty when there is no such folder. Names starting with "." are
    left out: they are somebody's unfinished work."""
    filesystem_, path = filesystem(uri)
    entries = filesystem_.get_file_info(fs.FileSelector(path, allow_not_found=True))
    return sorted(entry.base_name for entry in entries if not entry.base_name.startswith("."))


def delete(uri: str) -> None:
    """Remove a folder or file, if it is there."""
    filesystem_, path = filesystem(uri)
    kind = filesystem_.get_file_info(path).type
    if kind == fs.FileType.Directory:
        filesystem_.delete_dir(path)
    elif kind == fs.FileType.File:
        filesystem_.delete_file(path)


def make_folder(uri: str) -> str:
    """Make sure a folder can be written to (S3 needs none); returns the URI."""
    if not is_remote(uri):
        Path(resolve(uri)).mkdir(parents=True, exist_ok=True)
    return uri


def staging(final_uri: str) -> str:
    """A new, private folder next to where an artefact will be published.

    Staging folders there in which nothing was written for a day are removed: their makers were killed.
    """
    parent, name = final_uri.rstrip("/").rsplit("/", 1)
    delete_abandoned(parent, older_than_s=_ABANDONED_AFTER_S)
    return make_folder(join(parent, f".{name}-{uuid.uuid4().hex[:8]}"))


def delete_abandoned(parent_uri: str, *, older_than_s: float) -> None:
    """Remove the staging folders in which nothing was written for so long: their makers were killed."""
    filesystem_, path = filesystem(parent_uri)
    oldest = datetime.now(UTC) - timedelta(seconds=older_than_s)
    for entry in filesystem_.get_file_info(fs.FileSelector(path, allow_not_found=True)):
        if entry.type == fs.FileType.Directory and entry.base_name.startswith("."):
            below = filesystem_.get_file_info(
                fs.FileSelector(entry.path, recursive=True, allow_not_found=True)
            )
            if all(file.mtime is None or file.mtime < oldest for file in [entry, *below]):
                filesystem_.delete_dir(entry.path)


def _files_below(uri: str) -> Iterator[tuple[str, int]]:
    """(path relative to the folder, size in bytes) of every file, sorted; without unfinished ones."""
    filesystem_, path = filesystem(uri)
    selector = fs.FileSelector(path, recursive=True, allow_not_found=True)
    for entry in sorted(filesystem_.get_file_info(selector), key=lambda entry: str(entry.path)):
        if entry.type == fs.FileType.File and not entry.base_name.startswith("."):
            yield str(entry.path).removeprefix(path.rstrip("/") + "/"), int(entry.size)


def file_digest(uri: str) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    filesystem_, path = filesystem(uri)
    digest = hashlib.sha256()
    with filesystem_.open_input_stream(path, compression=None) as stream:
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def publish(staged_uri: str, final_uri: str, description: Mapping[str, Any]) -> None:
    """Make a staged folder visible at its final place, whole or not at all.

    Args:
        staged_uri: a folder of `staging(final_uri)`, holding every file of the artefact.
        final_uri: where readers look. An artefact already there was made from the same inputs and stays.
        description: what the manifest says beyond the list of files.
    """
    if is_complete(final_uri):
        delete(staged_uri)
        return
    manifest = {**description, "files": _describe_files(staged_uri)}
    if is_remote(final_uri):
        filesystem_, staged_path = filesystem(staged_uri)
        _, final_path = filesystem(final_uri)
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda n: filesystem_.copy_file(f"{staged_path}/{n}", f"{final_path}/{n}"),
                    manifest["files"],
                )
            )
        write_json(join(final_uri, MANIFEST), manifest)
        delete(staged_uri)
        return
    write_json(join(staged_uri, MANIFEST), manifest)
    try:
        os.rename(resolve(staged_uri), resolve(final_uri))
    except OSError:
        if not is_complete(final_uri):  # somebody's unfinished copy
            delete(final_uri)
            os.rename(resolve(staged_uri), resolve(final_uri))
        else:  # another process published the same a moment ago
            delete(staged_uri)


def seal(uri: str, description: Mapping[str, Any]) -> None:
    """Make a folder that was filled in place an artefact: from now on it is complete and does not change."""
    write_json(join(uri, MANIFEST), {**description, "files": _describe_files(uri)})


def _describe_files(uri: str) -> dict[str, dict[str, Any]]:
    """Size and SHA-256 of every file below a folder."""
    sizes = dict(_files_below(uri))
    with ThreadPoolExecutor(8) as pool:
        digests = list(pool.map(lambda name: file_digest(join(uri, name)), sizes))
    return {
        name: {"size_bytes": size, "sha256": digest}
        for (name, size), digest in zip(sizes.items(), digests, strict=True)
    }


def is_complete(uri: str) -> bool:
    """Whether an artefact was published there."""
    return exists(join(uri, MANIFEST))


def read_manifest(uri: str) -> dict[str, Any]:
    """What was published there; raises MissingArtifact where nothing complete is."""
    try:
        return read_json(join(uri, MANIFEST))
    except MissingArtifact as error:
        raise MissingArtifact(
            f"A published artefact must hold {MANIFEST}; {uri} has none. "
            "It was never finished, was deleted, or the path is wrong."
        ) from error


def verify(uri: str) -> None:
    """Compare every file of an artefact with its manifest; raises CorruptArtifact at the first difference."""
    for name, expected in read_manifest(uri)["files"].items():
        found = file_digest(join(uri, name)) if exists(join(uri, name)) else "no file"
        if found != expected["sha256"]:
            raise CorruptArtifact(
                f"{join(uri, name)} must have SHA-256 {expected['sha256']}; found {found}. "
                "Delete the folder and make the artefact again."
            )


def point(parent_uri: str, version: str) -> None:
    """Make a version the current one; readers see the former or this, never neither."""
    write_json(join(parent_uri, POINTER), {"version": version})


def current(parent_uri: str) -> str | None:
    """The current version's name, or None before the first."""
    try:
        return str(read_json(join(parent_uri, POINTER))["version"])
    except MissingArtifact:
        return None


def find_version(parent_uri: str, version: str | None, kind: str) -> str:
    """The URI of a version (or of the current one), for messages a user can act on.

    Raises:
        MissingArtifact: no such version, with the list of those there are.
    """
    name = parent_uri.rsplit("/", 1)[-1]
    chosen = version or current(parent_uri)
    if chosen is not None and is_complete(join(parent_uri, chosen)):
        return join(parent_uri, chosen)
    published = [v for v in list_names(parent_uri) if v != POINTER and is_complete(join(parent_uri, v))]
    siblings = list_names(parent_uri.rsplit("/", 1)[0])
    have = f"{kind} {name!r} has versions {published}" if published else f"there are {siblings}"
    wanted = f"{name}@{version}" if version else name
    raise MissingArtifact(f"{kind} {wanted!r} must exist in the store; {have}.")


def cache_dir() -> Path:
    """Local disk for copies that can be made again: `DML_CACHE`, else `~/.cache/dml`."""
    return Path(os.environ.get("DML_CACHE") or Path.home() / ".cache" / "dml")


def fetch(uri: str, fingerprint: str) -> Path:
    """A local folder with the artefact's files.

    The artefact itself where it is local, else a verified copy in the cache, made once per fingerprint.
    """
    if not is_remote(uri):
        read_manifest(uri)
        return Path(resolve(uri))
    target = cache_dir() / "artifacts" / fingerprint
    if (target / MANIFEST).exists():
        return target
    manifest = read_manifest(uri)
    aside = target.with_name(f".{fingerprint}-{uuid.uuid4().hex[:8]}")
    filesystem_, path = filesystem(uri)
    for name, expected in manifest["files"].items():
        (aside / name).parent.mkdir(parents=True, exist_ok=True)
        fs.copy_files(f"{path}/{name}", str(aside / name), filesystem_, fs.LocalFileSystem())
        if file_digest(str(aside / name)) != expected["sha256"]:
            shutil.rmtree(aside)
            raise CorruptArtifact(
                f"{join(uri, name)} does not have the SHA-256 of its manifest. Make the artefact again."
            )
    (aside / MANIFEST).write_text(json.dumps(manifest))
    try:
        aside.rename(target)
    except OSError:  # another process was first; its copy was verified too
        shutil.rmtree(aside)
    return target


def digest_of(*parts: Any) -> str:
    """Hex SHA-256 of JSON-serialisable values: one way to name something by what it was made from."""
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def digest_of_bytes(content: bytes) -> str:
    """Hex SHA-256 of bytes at hand."""
    return hashlib.sha256(content).hexdigest()
