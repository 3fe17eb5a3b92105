"""Files and folders by path or URI, on a local disk or on S3.

Local paths and `s3://` URIs use Arrow's filesystems: no listing cache, and safe to fork. A key is used
literally, never URL-decoded: `a b#1%.jpg`.
"""

import errno
import hashlib
import json
import os
import posixpath
import re
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from pyarrow import fs

from dml.errors import CorruptArtifact, InvalidSetting, MissingArtifact
from dml.storage import s3, s3_errors
from dml.storage.conditional import StoredObject, WriteConflict, replace_if_unchanged
from dml.storage.lock import exclusive

_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_ONE_SLASH = re.compile(r"(s3|gs|https?):(/(?!/)|$)")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_HASH_BLOCK_BYTES = 1 << 20
_TRIES = 100
_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{32}")
_REFERENCES = ("uri", "page")
"""Keys of JSON objects whose values name other files of the store."""


def is_remote(uri: str) -> bool:
    return _SCHEME.match(uri) is not None and not uri.startswith("file://")


def resolve(uri: str) -> str:
    """The absolute form of a path or URI, without trailing slash.

    Raises:
        InvalidSetting: the path cannot be resolved, the URI is not `s3://`, or it holds credentials or a
            query, which would end up in manifests, logs and the registry.
    """
    if not is_remote(uri):
        if _ONE_SLASH.match(uri):
            raise InvalidSetting(f"A URI must have two slashes after its scheme; got {_shown(uri)!r}.")
        try:
            return str(Path(uri.removeprefix("file://")).expanduser().resolve())
        except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name too long, no such user
            raise InvalidSetting(f"A path must be resolvable; {uri[:200]!r} is not: {error}.") from error
    scheme, _, rest = uri.partition("://")
    bucket = rest.split("/", 1)[0]
    if "@" in bucket or ":" in bucket:
        raise InvalidSetting(
            "An s3:// URI must hold no credentials and no port; got "
            f"{scheme}://***@{bucket.rpartition('@')[2]}. Set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and "
            "AWS_ENDPOINT_URL."
        )
    if scheme != "s3" or not _BUCKET.fullmatch(bucket):
        raise InvalidSetting(f"A store must be a local folder or s3://BUCKET/PREFIX; got {_shown(uri)!r}.")
    if "?" in rest:
        raise InvalidSetting(
            f"An s3:// URI must hold no query; got {uri.partition('?')[0]}?***. Set AWS_ENDPOINT_URL and "
            "AWS_DEFAULT_REGION instead."
        )
    return uri.rstrip("/")


def _shown(uri: str) -> str:
    """The URI without its query, which may hold a signature."""
    before, mark, _ = uri.partition("?")
    return f"{before}?***" if mark else before


def join(uri: str, *names: str) -> str:
    return "/".join([uri.rstrip("/"), *names])


def filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The Arrow filesystem of a URI, and the path on it."""
    if not is_remote(uri):
        return fs.LocalFileSystem(), resolve(uri)
    path = uri.partition("://")[2]
    bucket = resolve(f"{uri.partition('://')[0]}://{path.split('/', 1)[0]}")
    return s3.filesystem(bucket.removeprefix("s3://")), path


@contextmanager
def opened(uri: str) -> Iterator[tuple[fs.FileSystem, str]]:
    """As `filesystem`; what Arrow raises for S3 within becomes StorageUnavailable."""
    with s3_errors.translated_errors(uri) if is_remote(uri) else nullcontext():
        yield filesystem(uri)


def exists(uri: str) -> bool:
    with opened(uri) as (filesystem_, path):
        return bool(filesystem_.get_file_info(path).type != fs.FileType.NotFound)


def read_bytes(uri: str) -> bytes:
    """The content of a file; raises MissingArtifact if it does not exist."""
    try:
        with (
            opened(uri) as (filesystem_, path),
            filesystem_.open_input_stream(path, compression=None) as stream,
        ):
            return bytes(stream.read())
    except FileNotFoundError as error:
        raise MissingArtifact(f"A file must exist at {uri}; there is none.") from error


def write_bytes(uri: str, content: bytes) -> None:
    """Replace a file atomically: a reader sees the old content or the new, also after a crash."""
    if is_remote(uri):
        with (
            opened(uri) as (filesystem_, path),
            filesystem_.open_output_stream(path, compression=None) as stream,
        ):
            stream.write(content)
        return
    _write_and_rename(resolve(uri), content, Path.replace)


def _write_and_rename(path: str, content: bytes, rename: Callable[[Path, str], Any]) -> None:
    folder, _, name = path.rpartition("/")
    temporary = Path(folder, f".{name}.{uuid.uuid4().hex}")
    temporary.parent.mkdir(parents=True, exist_ok=True)
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        rename(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_new(uri: str, content: bytes) -> None:
    """Write a file atomically if it does not exist; an existing file is kept."""
    if is_remote(uri):
        with suppress(WriteConflict):
            replace_if_unchanged(uri, content, StoredObject(None, None))
        return
    _write_and_rename(resolve(uri), content, _link_new)


def _link_new(temporary: Path, path: str) -> None:
    with suppress(FileExistsError):
        os.link(temporary, path)
    temporary.unlink()


def is_temporary(name: str) -> bool:
    """Whether a file name is that of an unfinished `write_bytes`."""
    return _TEMPORARY_NAME.fullmatch(name) is not None


def read_json(uri: str) -> dict[str, Any]:
    """A JSON object that `write_json` wrote, with absolute references.

    Raises:
        MissingArtifact: the file does not exist.
        CorruptArtifact: it does not hold a JSON object.
    """
    try:
        content = json.loads(read_bytes(uri))
    except ValueError as error:
        raise CorruptArtifact(
            f"{uri} must hold a JSON object; {error}. Make it again, or remove it."
        ) from error
    if not isinstance(content, dict):
        raise CorruptArtifact(f"{uri} must hold a JSON object; got {type(content).__name__}. Make it again.")
    result: dict[str, Any] = absolute_references(content, uri.rpartition("/")[0])
    return result


def write_json(uri: str, content: Mapping[str, Any]) -> None:
    """Write a JSON object; references to files of the same store become relative to its folder.

    So the references stay right when a store is copied or moved.
    """
    relative = relative_references(content, uri.rpartition("/")[0])
    write_bytes(uri, json.dumps(relative, indent=1).encode())


def relative_references(content: Any, folder: str) -> Any:
    """A JSON tree whose values under "uri" and "page" are relative to a folder, `../../packages/4f0c...`.

    A reference to another bucket, or from S3 to a local disk, stays absolute.
    """
    return _map_references(content, lambda uri: _relative(uri, folder))


def absolute_references(content: Any, folder: str) -> Any:
    """The inverse of `relative_references`, for the folder's present location."""
    return _map_references(content, lambda uri: _absolute(uri, folder))


def _map_references(content: Any, change: Callable[[str], str]) -> Any:
    if isinstance(content, Mapping):
        return {
            key: change(value)
            if key in _REFERENCES and isinstance(value, str)
            else _map_references(value, change)
            for key, value in content.items()
        }
    if isinstance(content, list | tuple):
        return [_map_references(value, change) for value in content]
    return content


def _root(uri: str) -> tuple[str, str]:
    """The root of relative references (the local disk, or the bucket), and the path below it."""
    if not is_remote(uri):
        return "", resolve(uri)
    bucket, _, key = uri.partition("://")[2].partition("/")
    return f"{uri.partition('://')[0]}://{bucket}", f"/{key}"


def _relative(uri: str, folder: str) -> str:
    (root, path), (folder_root, start) = _root(uri), _root(folder)
    return posixpath.relpath(path, start) if root == folder_root else uri


def _absolute(uri: str, folder: str) -> str:
    if _SCHEME.match(uri) or uri.startswith("/"):
        return uri
    root, start = _root(folder)
    return root + posixpath.normpath(posixpath.join(start, uri))


class Entry(NamedTuple):
    """A file or folder below another."""

    path: str
    """Relative to the folder that was listed."""
    is_folder: bool
    size_bytes: int
    modified: datetime | None
    """None if the filesystem stores no time, as for folders on S3."""

    @property
    def name(self) -> str:
        return self.path.rpartition("/")[2]


def list_entries(uri: str, *, recursive: bool = False, follow_links: bool = True) -> list[Entry]:
    """The entries of a folder, sorted by path; empty if the folder does not exist or is a file.

    Args:
        uri: the folder.
        recursive: also list subfolders.
        follow_links: False lists symbolic links but not the content of their targets.
    """
    if recursive and not follow_links and not is_remote(uri):
        entries = list_entries(uri)
        for folder in [entry.path for entry in entries if entry.is_folder]:
            subfolder = join(uri, folder)
            if not is_link(subfolder):
                inner = list_entries(subfolder, recursive=True, follow_links=False)
                entries += [entry._replace(path=f"{folder}/{entry.path}") for entry in inner]
        return sorted(entries)
    try:
        with opened(uri) as (filesystem_, path):
            selector = fs.FileSelector(path, recursive=recursive, allow_not_found=True)
            infos = filesystem_.get_file_info(selector)
    except NotADirectoryError:
        return []
    root = path.rstrip("/") + "/"
    return sorted(
        Entry(
            str(info.path).removeprefix(root),
            info.type == fs.FileType.Directory,
            0 if info.type == fs.FileType.Directory else int(info.size),
            info.mtime,
        )
        for info in infos
    )


def list_names(uri: str) -> list[str]:
    """The names directly in a folder, sorted; names that start with "." are unfinished work and left out."""
    return [entry.name for entry in list_entries(uri) if not entry.name.startswith(".")]


def list_folders(uri: str) -> list[str]:
    """The names of a folder's direct subfolders, as `list_names`."""
    return [e.name for e in list_entries(uri) if e.is_folder and not e.name.startswith(".")]


def files_below(uri: str) -> Iterator[Entry]:
    """Every file below a folder, sorted by path; unfinished files are left out."""
    yield from (
        e for e in list_entries(uri, recursive=True) if not e.is_folder and not e.name.startswith(".")
    )


def delete(uri: str) -> None:
    """Remove a folder or file if it exists. A symbolic link is removed, never its target."""
    if is_link(uri):
        Path(unresolved_path(uri)).unlink(missing_ok=True)
        return
    with opened(uri) as (filesystem_, path):
        path = path if is_remote(uri) else unresolved_path(uri)
        for _ in range(_TRIES):
            kind = filesystem_.get_file_info(path).type
            try:
                if kind == fs.FileType.Directory:
                    filesystem_.delete_dir(path)
                elif kind == fs.FileType.File:
                    filesystem_.delete_file(path)
                return
            except FileNotFoundError:
                continue  # another process is removing it too
        raise OSError(errno.EBUSY, "other processes keep writing to it", uri)


def unresolved_path(uri: str) -> str:
    """The absolute path of a local file or folder; unlike `resolve`, a symbolic link is not followed."""
    parent, _, name = uri.rstrip("/").rpartition("/")
    return join(resolve(parent or ("/" if uri.startswith("/") else ".")), name)


def lock_of(uri: str) -> Path:
    """The lock file of a local file or folder: beside it, not inside, since a folder can be removed."""
    path = Path(resolve(uri))
    return path.with_name(f".{path.name}.lock")


@contextmanager
def folder_lock(uri: str, *, wait: bool = True) -> Iterator[bool]:
    """An exclusive lock on a folder among the processes of this machine; S3 has no lock.

    Args:
        uri: the folder.
        wait: True waits until the lock is free; False does not wait.

    Yields:
        Whether this process holds the lock; always True on S3.
    """
    if is_remote(uri):
        yield True
        return
    with exclusive(lock_of(uri), wait=wait) as is_holder:
        yield is_holder


def link_above(uri: str, root: str) -> str | None:
    """The first symbolic link on the path from `root` down to `uri`; None if there is none."""
    path = root.rstrip("/")
    for name in uri.removeprefix(path).strip("/").split("/"):
        path = join(path, name)
        if is_link(path):
            return path
    return None


def is_link(uri: str) -> bool:
    """Whether a local file or folder is a symbolic link; always False on S3."""
    return not is_remote(uri) and os.path.islink(unresolved_path(uri))


def delete_empty(uri: str) -> None:
    """Remove a folder if it is empty. S3 has no empty folders."""
    if not is_remote(uri) and not any(Path(resolve(uri)).iterdir()):
        Path(resolve(uri)).rmdir()


def make_folder(uri: str) -> str:
    """Create a local folder if it does not exist (S3 needs none); returns the URI."""
    if not is_remote(uri):
        Path(resolve(uri)).mkdir(parents=True, exist_ok=True)
    return uri


def file_digest(uri: str) -> str:
    """Hex SHA-256 of a file, read in blocks."""
    digest = hashlib.sha256()
    with (
        opened(uri) as (filesystem_, path),
        filesystem_.open_input_stream(path, compression=None) as stream,
    ):
        while block := stream.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
