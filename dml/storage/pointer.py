"""Pointer file `current.json`: the current version of a dataset or index, and the former ones.

It is in a folder of versions (`datasets/NAME`, `indexes/NAME`). A version becomes current only by replacing
this small file, one process at a time: on a local disk the writer holds the lock file `.NAME.lock` beside
the folder; on S3 the file is replaced only if it has not changed since it was read.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

from dml.errors import CorruptArtifact, DmlError, MissingArtifact, StorageUnavailable, did_you_mean
from dml.names import is_version, versioned
from dml.storage.artifacts import is_complete, list_versions, read_manifest
from dml.storage.conditional import StoredObject, WriteConflict, read_with_etag, replace_if_unchanged
from dml.storage.digest import decode_checked, encode_checked
from dml.storage.files import (
    absolute_references,
    is_remote,
    join,
    list_folders,
    lock_of,
    read_bytes,
    relative_references,
    write_bytes,
)
from dml.storage.lock import exclusive

POINTER = "current.json"
R = TypeVar("R")
_MOST_FORMER_VERSIONS = 100
_TRIES = 20


class Pointer:
    """A folder's pointer, opened by `locked_pointer`; reading a damaged one raises CorruptArtifact."""

    def __init__(self, parent_uri: str, stored: StoredObject) -> None:
        self._parent, self._stored = parent_uri, stored

    @cached_property
    def _history(self) -> list[str]:
        content = self._stored.content
        return [] if content is None else _parse(content, join(self._parent, POINTER))

    @property
    def version(self) -> str | None:
        """The current version; None if there is none yet."""
        return next(iter(self._history), None)

    @property
    def former(self) -> list[str]:
        """The versions that were current before, the latest first."""
        return self._history[1:]

    @cached_property
    def remembered(self) -> dict[str, Any]:
        """Facts about the current version that are not in its immutable manifest; often empty."""
        content = self._stored.content
        return {} if content is None else _remembered(content, join(self._parent, POINTER))

    def move(self, version: str, remember: Mapping[str, Any] | None = None) -> None:
        """Make a version the current one, atomically: readers see the former or the new one.

        Args:
            version: the new current version.
            remember: the new value of `remembered`, a JSON tree; None keeps the present value.

        Raises:
            MissingArtifact: the version does not exist.
            WriteConflict: on S3, another process moved the pointer since it was read. Its change is kept.
        """
        self._require(version)
        remember = self.remembered if remember is None else remember
        if version != self.version or remember != self.remembered:
            self._write([version, *(name for name in self._history if name != version)], remember)

    def roll_back(self, version: str | None = None) -> str:
        """Make a former version the current one again, and drop the later ones from the history.

        Args:
            version: a former version; None for the last one that still exists.

        Returns:
            The new current version.

        Raises:
            MissingArtifact: there is no such former version.
            WriteConflict: as `move`.
        """
        version = self.rollback_target(version)
        self._write(self._history[self._history.index(version) :])
        return version

    def rollback_target(self, version: str | None = None) -> str:
        """The version that `roll_back` would make current; raises as it does."""
        available = [name for name in self.former if self.can_roll_back_to(name)]
        if version is None and available:
            version = available[0]
        if version is None or version not in available:
            raise MissingArtifact(
                f"{self._parent.rsplit('/', 1)[-1]} must have a former version to roll back to; requested "
                f"{version or 'the last former one'}, available: {available or 'none'}."
            )
        return version

    def can_roll_back_to(self, version: str) -> bool:
        """Whether a version was current before and still exists."""
        return version in self.former and is_complete(join(self._parent, version))

    def _require(self, version: str) -> None:
        if not is_complete(join(self._parent, version)):
            raise MissingArtifact(
                f"A version must exist to become current; {join(self._parent, version)} does not: it was "
                "removed meanwhile, for example by `dml gc`. Make it again."
            )

    def _write(self, history: list[str], remember: Mapping[str, Any] | None = None) -> None:
        uri = join(self._parent, POINTER)
        content = {"version": history[0], "former": history[1 : _MOST_FORMER_VERSIONS + 1]}
        content |= {"remembered": relative_references(remember, self._parent)} if remember else {}
        encoded = encode_checked(content)
        if is_remote(uri):
            replace_if_unchanged(uri, encoded, self._stored)
        else:
            write_bytes(uri, encoded)


@contextmanager
def locked_pointer(parent_uri: str) -> Iterator[Pointer]:
    """A folder's pointer, protected from changes by other processes.

    On a local disk other processes wait. On S3 they do not; if two move the pointer, the second raises
    `WriteConflict`.
    """
    uri = join(parent_uri, POINTER)
    if is_remote(parent_uri):
        yield Pointer(parent_uri, read_with_etag(uri))
        return
    with exclusive(lock_of(parent_uri)):
        yield Pointer(parent_uri, _read(uri))


def _read(uri: str) -> StoredObject:
    try:
        return StoredObject(read_bytes(uri), None)
    except MissingArtifact:
        return StoredObject(None, None)


def read_checked(uri: str) -> dict[str, Any] | None:
    """A JSON object that `update_checked` wrote; None if the file does not exist.

    Raises:
        CorruptArtifact: the file was changed.
    """
    return _checked(_read(uri).content, uri)


def update_checked(uri: str, change: Callable[[dict[str, Any] | None], dict[str, Any]]) -> None:
    """Update a JSON object; concurrent updates by several processes are all applied.

    Args:
        uri: the file; it holds no references.
        change: maps the present object (None if the file does not exist) to the new one.

    Raises:
        CorruptArtifact: the file was changed.
        WriteConflict: on S3, another process wrote the file at every attempt.
    """
    _retry_on_conflict(lambda: _update_checked(uri, change))


def _update_checked(uri: str, change: Callable[[dict[str, Any] | None], dict[str, Any]]) -> None:
    if is_remote(uri):
        stored = read_with_etag(uri)
        replace_if_unchanged(uri, encode_checked(change(_checked(stored.content, uri))), stored)
        return
    with exclusive(lock_of(uri)):
        write_bytes(uri, encode_checked(change(read_checked(uri))))


def _checked(content: bytes | None, uri: str) -> dict[str, Any] | None:
    if content is None:
        return None
    decoded = decode_checked(content)
    if decoded is None:
        raise CorruptArtifact(f"{uri} must be as it was written; it was changed. Restore it from a copy.")
    return decoded


def point(parent_uri: str, version: str, remember: Mapping[str, Any] | None = None) -> None:
    """Make a version the current one, whichever was current before; see `Pointer.move`."""

    def move() -> None:
        with locked_pointer(parent_uri) as pointer:
            pointer.move(version, remember)

    _retry_on_conflict(move)


def _retry_on_conflict(write: Callable[[], None]) -> None:
    """Retry a write after a conflict. Each conflict means that another process succeeded."""
    for _ in range(_TRIES - 1):
        with suppress(WriteConflict):
            write()
            return
    write()


def current(parent_uri: str) -> str | None:
    """The current version's name, or None; raises CorruptArtifact if the pointer is damaged."""
    return next(iter(_history(parent_uri)), None)


class Version(NamedTuple, Generic[R]):
    """A complete version, and whether it is the current one."""

    ref: R
    created: str
    """When it was published, ISO 8601 in UTC."""
    is_current: bool
    """Whether NAME without @VERSION refers to it."""


def read_versions(
    root: str, read_ref: Callable[[str, dict[str, Any]], R], damaged: list[DmlError] | None = None
) -> list[Version[R]]:
    """Every version of every name below a folder, sorted by name, then the oldest first.

    Args:
        root: "STORE/datasets" or "STORE/indexes".
        read_ref: makes a version's ref from its URI and manifest.
        damaged: a list that collects the error of each pointer or version that cannot be read, so that the
            others are still read. A name with a damaged pointer has no current version. None raises instead.

    Raises:
        CorruptArtifact: a pointer or manifest cannot be read, and `damaged` is None.
        DmlError: `read_ref` raised it, and `damaged` is None.
        StorageUnavailable: S3 failed, which is no damage.
    """
    versions: list[Version[R]] = []
    problems: list[DmlError] = [] if damaged is None else damaged
    for name in list_folders(root):
        folder = join(root, name)
        versions_of_name, current_version = [], None
        try:
            current_version = current(folder)
        except CorruptArtifact as error:
            problems.append(error)
        for version in list_versions(folder):
            uri = join(folder, version)
            try:
                manifest = read_manifest(uri)
                ref = read_ref(uri, manifest)
            except StorageUnavailable:
                raise
            except DmlError as error:
                problems.append(error)
            else:
                versions_of_name.append(
                    Version(ref, str(manifest.get("created", "")), version == current_version)
                )
        if damaged is None and problems:
            raise problems[0]
        versions += sorted(versions_of_name, key=lambda version: version.created)
    return versions


def former_versions(parent_uri: str) -> list[str]:
    """The versions that were current before the current one, the latest first."""
    return _history(parent_uri)[1:]


def remembered(parent_uri: str) -> dict[str, Any]:
    """Facts about the current version that are not in its immutable manifest; often empty."""
    uri = join(parent_uri, POINTER)
    content = _read(uri).content
    return {} if content is None else _remembered(content, uri)


def _remembered(content: bytes, uri: str) -> dict[str, Any]:
    known = absolute_references(decode_checked(content) or {}, uri.rpartition("/")[0]).get("remembered")
    return known if isinstance(known, dict) else {}


def _history(parent_uri: str) -> list[str]:
    uri = join(parent_uri, POINTER)
    content = _read(uri).content
    return [] if content is None else _parse(content, uri)


def _parse(content: bytes, uri: str) -> list[str]:
    decoded = decode_checked(content) or {}
    former = decoded.get("former")
    history = [decoded.get("version"), *(former if isinstance(former, list) else [None])]
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
    """The URI of a version, or of the current one.

    Args:
        parent_uri: the folder of versions.
        version: None for the current one.
        kind: "dataset" or "index", for the message.

    Raises:
        MissingArtifact: no such version; the message lists the existing ones.
    """
    chosen = version or current(parent_uri)
    if chosen is not None and is_version(chosen) and is_complete(join(parent_uri, chosen)):
        return join(parent_uri, chosen)
    raise missing_version(parent_uri, version, kind)


def _listed(names: list[str]) -> str:
    return f"there are {names}" if names else "there is none"


def missing_version(parent_uri: str, version: str | None, kind: str) -> MissingArtifact:
    """The error for a missing version or name; it lists the existing ones and suggests the nearest."""
    parent, name = parent_uri.rsplit("/", 1)
    published = list_versions(parent_uri)
    siblings = [sibling for sibling in list_folders(parent) if list_versions(join(parent, sibling))]
    existing = f"{kind} {name!r} has versions {published}" if published else _listed(siblings)
    wanted = versioned(name, version or None)
    near = "" if published else did_you_mean(name, siblings)
    return MissingArtifact(f"{kind} {wanted!r} must exist in the store; {existing}.{near}")
