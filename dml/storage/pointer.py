"""Which version of several is in use: `current.json` beside them.

A folder of versions (`datasets/NAME`, `indexes/NAME`) has a `current.json` that names the version in use and
those before it; replacing that one small file is the only way anything changes. One process at a time may do
so: on a local disk it holds a lock, `.NAME.lock` beside the folder; on S3 the file is replaced only if it is
still what was read.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from typing import Any, Generic, NamedTuple, TypeVar

from dml.errors import CorruptArtifact, DmlError, MissingArtifact, did_you_mean
from dml.names import is_version
from dml.storage.artifacts import is_complete, list_versions, read_manifest
from dml.storage.conditional import Held, Overtaken, read_held, replace_held
from dml.storage.digest import with_own_digest, without_own_digest
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
    """A folder's pointer, as `held_pointer` gives it; its parts raise CorruptArtifact where it is damaged."""

    def __init__(self, parent_uri: str, held: Held) -> None:
        self._parent, self._held = parent_uri, held

    @cached_property
    def _history(self) -> list[str]:
        content = self._held.content
        return [] if content is None else _parse(content, join(self._parent, POINTER))

    @property
    def version(self) -> str | None:
        """The current one; None before the first."""
        return next(iter(self._history), None)

    @property
    def former(self) -> list[str]:
        """Those that were current before, the latest first."""
        return self._history[1:]

    @cached_property
    def remembered(self) -> dict[str, Any]:
        """What is known of the current version beyond its manifest, which does not change; often nothing."""
        content = self._held.content
        return {} if content is None else _remembered(content, join(self._parent, POINTER))

    def move(self, version: str, remember: Mapping[str, Any] | None = None) -> None:
        """Make a version the current one; readers see the former or this, never neither.

        Args:
            version: which.
            remember: what `remembered` gives from now on, a JSON tree; None: what it gave before.

        Raises:
            MissingArtifact: it is not there.
            Overtaken: on S3, another process moved the pointer since this one read it; it stays as that did.
        """
        self._require(version)
        remember = self.remembered if remember is None else remember
        if version != self.version or remember != self.remembered:
            self._write([version, *(name for name in self._history if name != version)], remember)

    def back(self, version: str | None = None) -> str:
        """Make a former version the current one again, and forget that the later ones were current.

        Args:
            version: which; None: the one before the current.

        Returns:
            The version that is current now.

        Raises:
            MissingArtifact: there is no such former version.
            Overtaken: as `move`.
        """
        version = self.before(version)
        self._write(self._history[self._history.index(version) :])
        return version

    def before(self, version: str | None = None) -> str:
        """The version that `back` would make current; raises as it does."""
        whole = [name for name in self.former if self.can_go_back_to(name)]
        if version is None and whole:
            version = whole[0]
        if version is None or version not in whole:
            raise MissingArtifact(
                f"{self._parent.rsplit('/', 1)[-1]} must have a former version to go back to; wanted "
                f"{version or 'the one before'}, there are {whole or 'none'}."
            )
        return version

    def can_go_back_to(self, version: str) -> bool:
        """Whether it was current before and is still there."""
        return version in self.former and is_complete(join(self._parent, version))

    def _require(self, version: str) -> None:
        if not is_complete(join(self._parent, version)):
            raise MissingArtifact(
                f"What is made current must be there; {join(self._parent, version)} is not: it was removed "
                "meanwhile, as by `dml gc`. Make it again."
            )

    def _write(self, history: list[str], remember: Mapping[str, Any] | None = None) -> None:
        uri = join(self._parent, POINTER)
        content = {"version": history[0], "former": history[1 : _MOST_FORMER_VERSIONS + 1]}
        content |= {"remembered": relative_references(remember, self._parent)} if remember else {}
        encoded = with_own_digest(content)
        if is_remote(uri):
            replace_held(uri, encoded, self._held)
        else:
            write_bytes(uri, encoded)


@contextmanager
def held_pointer(parent_uri: str) -> Iterator[Pointer]:
    """A folder's pointer, which nobody else changes meanwhile.

    On a local disk others wait; on S3 nobody waits, and of two that move it the later is `Overtaken`.
    """
    uri = join(parent_uri, POINTER)
    if is_remote(parent_uri):
        yield Pointer(parent_uri, read_held(uri))
        return
    with exclusive(lock_of(parent_uri)):
        yield Pointer(parent_uri, _read(uri))


def _read(uri: str) -> Held:
    try:
        return Held(read_bytes(uri), None)
    except MissingArtifact:
        return Held(None, None)


def read_checked(uri: str) -> dict[str, Any] | None:
    """A JSON object as `update_checked` wrote it; None where there is none.

    Raises:
        CorruptArtifact: it is not as it was written.
    """
    return _checked(_read(uri).content, uri)


def update_checked(uri: str, change: Callable[[dict[str, Any] | None], dict[str, Any]]) -> None:
    """Replace a JSON object by what becomes of it; of several processes at once, none undoes another's.

    Args:
        uri: the file, which holds no references.
        change: from what it holds, None where there is none, to what it shall hold.

    Raises:
        CorruptArtifact: it is not as it was written.
        Overtaken: on S3, others wrote it each time this one tried.
    """
    _until_first(lambda: _update_checked(uri, change))


def _update_checked(uri: str, change: Callable[[dict[str, Any] | None], dict[str, Any]]) -> None:
    if is_remote(uri):
        held = read_held(uri)
        replace_held(uri, with_own_digest(change(_checked(held.content, uri))), held)
        return
    with exclusive(lock_of(uri)):
        write_bytes(uri, with_own_digest(change(read_checked(uri))))


def _checked(content: bytes | None, uri: str) -> dict[str, Any] | None:
    if content is None:
        return None
    held = without_own_digest(content)
    if held is None:
        raise CorruptArtifact(f"{uri} must be as it was written; it was changed. Bring it back from a copy.")
    return held


def point(parent_uri: str, version: str, remember: Mapping[str, Any] | None = None) -> None:
    """Make a version the current one, whatever was before; as `Pointer.move`."""

    def move() -> None:
        with held_pointer(parent_uri) as pointer:
            pointer.move(version, remember)

    _until_first(move)


def _until_first(write: Callable[[], None]) -> None:
    """Try again what others overtook; each time somebody was first, so there is progress."""
    for _ in range(_TRIES - 1):
        with suppress(Overtaken):
            write()
            return
    write()


def current(parent_uri: str) -> str | None:
    """The current version's name, or None before the first; raises CorruptArtifact for a damaged pointer."""
    return next(iter(_history(parent_uri)), None)


class Version(NamedTuple, Generic[R]):
    """A complete version, and what its pointer says of it."""

    ref: R
    created: str
    """When it was published, ISO 8601 in UTC."""
    is_current: bool
    """Whether the name alone stands for it."""


def read_versions(
    root: str, read_ref: Callable[[str, dict[str, Any]], R], damaged: list[DmlError] | None = None
) -> list[Version[R]]:
    """Every version of every name below a folder, by name, the oldest first.

    Args:
        root: "STORE/datasets" or "STORE/indexes".
        read_ref: makes a version's ref of its URI and its manifest.
        damaged: takes what is wrong with each pointer and version that cannot be read, and the others are
            read all the same; of a name whose pointer is damaged no version is current. None: it is raised.

    Raises:
        CorruptArtifact: a pointer or manifest cannot be read, and `damaged` is None.
        DmlError: what `read_ref` raises, where `damaged` is None.
    """
    versions: list[Version[R]] = []
    problems: list[DmlError] = [] if damaged is None else damaged
    for name in list_folders(root):
        folder = join(root, name)
        of_name, in_use = [], None
        try:
            in_use = current(folder)
        except CorruptArtifact as error:
            problems.append(error)
        for version in list_versions(folder):
            uri = join(folder, version)
            try:
                manifest = read_manifest(uri)
                ref = read_ref(uri, manifest)
            except DmlError as error:
                problems.append(error)
            else:
                of_name.append(Version(ref, str(manifest.get("created", "")), version == in_use))
        if damaged is None and problems:
            raise problems[0]
        versions += sorted(of_name, key=lambda version: version.created)
    return versions


def former_versions(parent_uri: str) -> list[str]:
    """The versions that were current before the current one, the latest first."""
    return _history(parent_uri)[1:]


def remembered(parent_uri: str) -> dict[str, Any]:
    """What is known of the current version beyond its manifest, which does not change; often nothing."""
    uri = join(parent_uri, POINTER)
    content = _read(uri).content
    return {} if content is None else _remembered(content, uri)


def _remembered(content: bytes, uri: str) -> dict[str, Any]:
    known = absolute_references(without_own_digest(content) or {}, uri.rpartition("/")[0]).get("remembered")
    return known if isinstance(known, dict) else {}


def _history(parent_uri: str) -> list[str]:
    uri = join(parent_uri, POINTER)
    content = _read(uri).content
    return [] if content is None else _parse(content, uri)


def _parse(content: bytes, uri: str) -> list[str]:
    held = without_own_digest(content) or {}
    former = held.get("former")
    history = [held.get("version"), *(former if isinstance(former, list) else [None])]
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
