"""One way to list and read a local folder, a zip file or an `s3://` folder."""

import logging
import os
import re
import stat
import threading
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace

from pyarrow import fs

from dml import storage
from dml.data.sources.access import SOURCE_FOLDER_ONLY, Access
from dml.data.sources.sample import (
    BROKEN_LINK,
    MAX_BYTES,
    REPEATED_FOLDER,
    UNREADABLE_FOLDER,
    Listing,
    Problem,
    Refused,
    Stamp,
)
from dml.errors import DmlError, InvalidData, InvalidSetting, MissingArtifact
from dml.progress import count

logger = logging.getLogger(__name__)

_ADDED_BY_SYSTEMS = {
    "__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin",
    "system volume information", "lost+found",
}  # fmt: skip
_LIST_BYTES = 1 << 30
_NOT_READABLE = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
_open = threading.local()


@dataclass(frozen=True)
class Tree:
    """Paths relative to a root, sorted, without hidden ones and what operating systems add."""

    files: list[str]
    folders: list[str]
    problems: list[Problem] = field(default_factory=list)
    """Entries that cannot be listed: broken links, names that are not UTF-8, devices."""

    def named(self, *names: str) -> str | None:
        """The first file with one of these names, in any folder, or None."""
        return next((path for path in self.files if path.rsplit("/", 1)[-1] in names), None)


@dataclass(frozen=True)
class Files:
    """The files below a folder or inside a zip; picklable, opens files on the worker that reads them."""

    uri: str
    is_zip: bool = False
    access: Access = SOURCE_FOLDER_ONLY

    def tree(self) -> Tree:
        """All files and folders; on S3 and in most zips, folders exist only through their files."""
        if self.is_zip:
            tree = self._zip_tree()
        elif storage.is_remote(self.uri):
            tree = self._s3_tree()
        else:
            tree = _Walk(self.uri, self.access).tree()
        return _without_stores(tree)

    def read(self, name: str, max_bytes: int = MAX_BYTES) -> bytes:
        """A file's bytes; raises Refused as `Source.read`."""
        if self.is_zip:
            return self._read_member(name, max_bytes)
        if storage.is_remote(self.uri):
            return read_object(storage.join(self.uri, name), max_bytes)
        return read_local(self.access.real_path(os.path.join(self.uri, name), self.uri), max_bytes)

    def stamps(self, names: Sequence[str]) -> Sequence[Stamp | None]:
        """The stamp of each file, as `Source.stamps`."""
        if self.is_zip:
            members = self._zip().members
            return [_member_stamp(members[name]) if name in members else None for name in names]
        if storage.is_remote(self.uri):
            etags = storage.list_etags(self.uri)
            return [Stamp(etags[name]) if name in etags else None for name in names]
        return [local_stamp(os.path.join(self.uri, name)) for name in names]

    def read_list(self, name: str, max_bytes: int = _LIST_BYTES) -> bytes:
        """The content of a file that lists the images; raises InvalidData if it cannot be read."""
        try:
            return self.read(name, max_bytes)
        except Refused as refusal:
            raise InvalidData(
                f"{name} in {self.uri} must be readable; {refusal.reason}: {refusal.detail}. "
                "Download it again."
            ) from refusal

    def read_text(self, name: str) -> str:
        return self.read_list(name).decode("utf-8", errors="replace")

    def head(self, name: str, num_bytes: int) -> bytes:
        """A file's first bytes; empty if it cannot be read."""
        try:
            if self.is_zip:
                opened = self._zip()
                with opened.archive.open(opened.members[name]) as stream:
                    return stream.read(num_bytes)
            if storage.is_remote(self.uri):
                filesystem, path = storage.filesystem(storage.join(self.uri, name))
                with filesystem.open_input_file(path) as stream:
                    return bytes(stream.read(num_bytes))
            with open(self.access.real_path(os.path.join(self.uri, name), self.uri), "rb") as stream:
                return stream.read(num_bytes)
        except Exception:  # `read` reports the error
            return b""

    def _s3_tree(self) -> Tree:
        filesystem, path = storage.filesystem(self.uri)
        root = path.rstrip("/") + "/"
        try:
            entries = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        except OSError as error:
            raise _unreachable(self.uri, error) from error
        shown = [(str(e.path).removeprefix(root), e.type == fs.FileType.Directory) for e in entries]
        excluded = tuple(f"{prefix.rstrip('/')}/" for prefix in self.access.excluded)
        return _tree(
            (name, is_folder)
            for name, is_folder in shown
            if not _hidden(name) and not f"{self.uri}/{name}/".startswith(excluded)
        )

    def _zip_tree(self) -> Tree:
        shown, problems = [], []
        for info in self._zip().archive.infolist():
            name = _member_name(info)
            if info.filename.startswith(("/", "\\")) or ".." in name.split("/"):
                detail = "a member's name must stay within the zip"
                problems.append(Problem(name, "", info.filename, "outside allowed prefixes", detail))
            elif name and not _hidden(name):
                shown.append((name, info.is_dir() or info.filename.endswith("\\")))
        return replace(_tree(shown), problems=problems)

    def _read_member(self, name: str, max_bytes: int) -> bytes:
        opened = self._zip()
        info = opened.members.get(name)
        if info is None:
            raise Refused("missing file", f"{self.uri} does not contain {name}")
        if info.flag_bits & 0x1:
            raise Refused("encrypted", "a member that needs a password; pack it without")
        _require_size(info.file_size, max_bytes)
        try:
            with opened.archive.open(info) as stream:
                content = stream.read(max_bytes + 1)
        except MemoryError:
            raise
        except NotImplementedError as error:
            detail = (
                f"packed in a way that Python does not unpack: {error}. Unpack the zip and ingest the folder"
            )
            raise Refused("unreadable file", detail) from error
        except Exception as error:  # zlib, lzma, bz2 and zipfile raise various errors for damage
            raise Refused("unreadable file", f"it does not unpack: {error}") from error
        _require_size(len(content), max_bytes)
        return content

    def _zip(self) -> "_OpenZip":
        """One open zip per thread and process, since reading seeks in the shared file."""
        opened: dict[tuple[int, str, Stamp | None], _OpenZip] = _open.__dict__.setdefault("zips", {})
        key = (os.getpid(), self.uri, local_stamp(self.uri))
        if key not in opened:
            opened[key] = _OpenZip(_open_zip(self.uri))
        return opened[key]


@dataclass(frozen=True)
class FilesSource:
    """Base class of layouts whose images are files of a tree; adds the tree's problems to the listing."""

    files: Files

    def list(self) -> Listing:
        tree = self.files.tree()
        listing = self.listing(tree)
        return replace(listing, problems=[*tree.problems, *listing.problems])

    def listing(self, tree: Tree) -> Listing:
        """The samples of this layout among the files of a tree."""
        raise NotImplementedError

    def stamps(self, locators: Sequence[str]) -> Sequence[Stamp | None]:
        return self.files.stamps(locators)

    def read(self, locator: str, max_bytes: int = MAX_BYTES) -> bytes:
        return self.files.read(locator, max_bytes)


def open_files(uri: str, access: Access = SOURCE_FOLDER_ONLY) -> Files:
    """The files of a source; raises MissingArtifact if it does not exist, InvalidData for a damaged zip."""
    location = storage.resolve(uri)
    if storage.is_remote(location):
        if location.lower().endswith(".zip"):
            raise InvalidSetting(
                f"A zip must be on a local disk; got {location}. Copy it, or unpack it there."
            )
        filesystem, path = storage.filesystem(location)
        try:
            kind = filesystem.get_file_info(path).type
        except OSError as error:
            raise _unreachable(location, error) from error
        if kind == fs.FileType.Directory:
            return Files(location, access=access)
    elif os.path.isdir(location):
        return Files(location, access=access)
    elif os.path.isfile(location):
        if not zipfile.is_zipfile(location):
            raise InvalidData(
                f"A source must be a folder, a zip or a manifest (.csv, .tsv, .parquet); the file {location} "
                "is none of them. Download it again, or unpack it."
            )
        files = Files(location, is_zip=True, access=access)
        try:
            files._zip()
        except Exception as error:  # zipfile raises various errors for damage
            raise InvalidData(f"{location} must be a whole zip; reading its list failed: {error}.") from error
        return files
    elif os.path.lexists(location):
        what = "a broken link"
        with suppress(OSError):
            what = _NOT_READABLE.get(stat.S_IFMT(os.stat(location).st_mode), "something else")
        raise InvalidData(f"The source must be a folder, a zip or a manifest; {location} is {what}.")
    missing = "file" if location.lower().endswith(".zip") else "folder"
    raise MissingArtifact(
        f"The source must be a folder, a zip or a manifest; there is no {missing} {location}."
    )


def read_local(path: str, max_bytes: int) -> bytes:
    """A local file's bytes; opens only a regular file within the size limit."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            what = _NOT_READABLE.get(stat.S_IFMT(status.st_mode), "something else")
            raise Refused("not a regular file", f"{path} is {what}")
        _require_size(status.st_size, max_bytes)
        # Never waits, should a named pipe have taken the file's location meanwhile.
        with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            content = stream.read(max_bytes + 1)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refused("missing file", f"there is no file {path}") from error
    except PermissionError as error:
        raise Refused("permission denied", str(error)) from error
    except (OSError, ValueError) as error:  # a failing disk; a name too long, or with a zero byte
        raise Refused("unreadable file", str(error)) from error
    _require_size(len(content), max_bytes)
    return content


def local_stamp(path: str) -> Stamp | None:
    """The stamp of a local file; None if there is no such regular file.

    Nobody can set ctime, so the stamp changes also if a file is replaced by another of the same size and
    mtime (`cp -p`), and the inode tells two files apart whose folders were swapped.
    """
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    text = f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
    return Stamp(text, status.st_ctime_ns)


def object_stamps(uris: Sequence[str]) -> Sequence[Stamp | None]:
    """The stamp of each object on S3, by no more requests than there are objects.

    None in folders that must not be listed, and beyond the first objects of folders with many others.
    """
    etags: dict[str, str] = {}
    for folder, wanted in sorted(Counter(uri.rpartition("/")[0] for uri in uris).items()):
        try:
            listed = storage.list_etags(folder, recursive=False, most_requests=wanted)
        except OSError as error:
            logger.warning("all images of %s are read, since it cannot be listed: %s", folder, error)
            continue
        etags |= {f"{folder}/{name}": etag for name, etag in listed.items()}
    return [Stamp(etags[uri]) if uri in etags else None for uri in uris]


def read_object(uri: str, max_bytes: int) -> bytes:
    """The bytes of an object on S3; raises Refused for a problem of the object, DmlError for the storage."""
    try:
        filesystem, path = storage.filesystem(uri)
        with filesystem.open_input_file(path) as stream:
            _require_size(stream.size(), max_bytes)
            content = bytes(stream.read(max_bytes + 1))
    except (FileNotFoundError, IsADirectoryError) as error:
        raise Refused("missing file", f"there is no file {uri}") from error
    except OSError as error:
        if "ACCESS_DENIED" in str(error):
            raise Refused("permission denied", str(error)) from error
        raise _unreachable(uri, error) from error
    return content


def _require_size(size_bytes: int, max_bytes: int) -> None:
    if size_bytes == 0:
        raise Refused("empty file", "0 bytes")
    if size_bytes > max_bytes:
        raise Refused("too many bytes", f"{size_bytes} bytes; at most {max_bytes} are read")


def _unreachable(uri: str, error: OSError) -> DmlError:
    return storage.unavailable(error, uri) or MissingArtifact(
        f"The source's storage must answer; reading {uri} failed: {error}. Check the address and the "
        "credentials, and start again; what was read so far is not kept."
    )


class _OpenZip:
    """A zip, and its members by the names that they have when unpacked to a folder."""

    def __init__(self, archive: zipfile.ZipFile) -> None:
        self.archive = archive
        self.members = {_member_name(info): info for info in archive.infolist()}


def _member_name(info: zipfile.ZipInfo) -> str:
    """A member's normalized name: `a/b.png` for `./a//b.png` and for .NET's `a\\b.png`."""
    return "/".join(part for part in re.split(r"[/\\]", info.filename) if part not in ("", "."))


def _member_stamp(info: zipfile.ZipInfo) -> Stamp:
    """CRC-32, size and time of a member: what the zip's directory has of its content."""
    return Stamp(f"{info.CRC:08x} {info.file_size} {info.date_time}")


def _open_zip(path: str) -> zipfile.ZipFile:
    try:  # macOS writes UTF-8 names without the UTF-8 flag
        return zipfile.ZipFile(path, metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return zipfile.ZipFile(path)


class _Walk:
    """Walk of a local folder that follows links, but visits no folder twice and none outside the source."""

    def __init__(self, root: str, access: Access) -> None:
        self.root, self.access = root, access
        self.files: list[str] = []
        self.folders: list[str] = []
        self.problems: list[Problem] = []
        self.links: list[str] = []
        self.seen: set[tuple[int, int]] = set()
        self.excluded = {_identity(path) for path in access.excluded if os.path.isdir(path)}

    def tree(self) -> Tree:
        self._folder("")
        while self.links:  # after the real folders, so that a folder is listed under its real path
            links, self.links = sorted(self.links), []
            for name in links:
                self._link(name)
        return Tree(sorted(self.files), sorted(self.folders), sorted(self.problems))

    def _folder(self, name: str) -> None:
        pending = [name]
        while pending:
            folder = pending.pop()
            try:
                self.seen.add(_identity(self._path(folder)))
                entries = list(os.scandir(self._path(folder)))
            except OSError as error:
                if not folder:
                    raise MissingArtifact(f"The source {self.root} must be readable: {error}.") from error
                self._problem(folder, UNREADABLE_FOLDER, str(error))
                continue
            count(len(entries))
            for entry in entries:
                if not _hidden(entry.name):
                    pending += self._entry(folder, entry)

    def _entry(self, folder: str, entry: os.DirEntry[str]) -> list[str]:
        """Add a file, or return a folder to visit."""
        name = f"{folder}/{entry.name}" if folder else entry.name
        try:
            name.encode()
        except UnicodeEncodeError:
            shown = os.fsencode(name).decode(errors="backslashreplace")
            self._problem(shown, "name is not UTF-8", "rename it")
            return []
        if entry.is_symlink():
            self.links.append(name)
        elif entry.is_file(follow_symlinks=False):
            self.files.append(name)
        elif not entry.is_dir(follow_symlinks=False):
            mode = stat.S_IFMT(entry.stat(follow_symlinks=False).st_mode)
            self._problem(name, "not a regular file", _NOT_READABLE.get(mode, "something else"))
        else:
            return self._real_folder(name)
        return []

    def _real_folder(self, name: str) -> list[str]:
        try:
            key = _identity(self._path(name))
        except OSError as error:
            self._problem(name, UNREADABLE_FOLDER, str(error))
            return []
        if key in self.excluded:
            return []
        if key in self.seen:
            self._problem(name, REPEATED_FOLDER, "a link leads here; its files are listed once")
            return []
        self.folders.append(name)
        return [name]

    def _link(self, name: str) -> None:
        path = self._path(name)
        try:
            status = os.stat(path)
        except OSError:
            self._problem(name, BROKEN_LINK, f"it leads to {os.readlink(path)!a}")
            return
        try:
            self.access.real_path(path, self.root)
        except Refused as refusal:
            self._problem(name, refusal.reason, refusal.detail)
            return
        key = (status.st_dev, status.st_ino)
        if stat.S_ISREG(status.st_mode):
            self.files.append(name)
        elif not stat.S_ISDIR(status.st_mode):
            what = _NOT_READABLE.get(stat.S_IFMT(status.st_mode), "something else")
            self._problem(name, "not a regular file", what)
        elif key in self.seen:
            self._problem(name, REPEATED_FOLDER, f"it leads to {os.readlink(path)!a}, which is listed once")
        elif key not in self.excluded:
            self.folders.append(name)
            self._folder(name)

    def _path(self, name: str) -> str:
        return os.path.join(self.root, name) if name else self.root

    def _problem(self, name: str, reason: str, detail: str) -> None:
        self.problems.append(Problem(name, "", name, reason, detail))


def _identity(path: str) -> tuple[int, int]:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _tree(entries: Iterator[tuple[str, bool]] | Sequence[tuple[str, bool]]) -> Tree:
    files: list[str] = []
    folders: list[str] = []
    for name, is_folder in entries:
        (folders if is_folder else files).append(name)
    return Tree(sorted(files), sorted(set(folders)))


def _without_stores(tree: Tree) -> Tree:
    """Leave out every store inside a source, since its files were made from the source."""
    markers = [path for path in tree.files if path.rpartition("/")[2] == storage.MARKER]
    if not markers:
        return tree
    inside = {path.rpartition("/")[0] for path in markers}

    def is_kept(path: str) -> bool:
        parts = path.split("/")
        if "" in inside and parts[0] in storage.STORE_FOLDERS:
            return False
        return all("/".join(parts[:depth]) not in inside for depth in range(1, len(parts) + 1))

    return Tree(
        [path for path in tree.files if is_kept(path)],
        [path for path in tree.folders if is_kept(path)],
        [problem for problem in tree.problems if is_kept(problem.locator)],
    )


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part.lower() in _ADDED_BY_SYSTEMS for part in name.split("/"))
