"""One way to list and read a local folder, a zip file or an `s3://` folder."""

import os
import threading
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from dml import storage
from dml.errors import InvalidData, MissingArtifact

_ADDED_BY_SYSTEMS = ("__MACOSX", "Thumbs.db", "desktop.ini")
_open = threading.local()


@dataclass(frozen=True)
class Tree:
    """Paths relative to a root, sorted, without hidden ones and what operating systems add."""

    files: list[str]
    folders: list[str]

    def named(self, *names: str) -> str | None:
        """The first file with one of these names, in whatever folder, or None."""
        return next((path for path in self.files if path.rsplit("/", 1)[-1] in names), None)


@dataclass(frozen=True)
class Files:
    """The files below a folder or inside a zip; travels to workers and opens there what it needs."""

    uri: str

    @property
    def is_zip(self) -> bool:
        return self.uri.lower().endswith(".zip")

    def tree(self) -> Tree:
        """Every file and folder there is; on S3, and in most zips, folders exist only by their files."""
        if self.is_zip:
            entries = [(info.filename.rstrip("/"), info.is_dir()) for info in self._zip().infolist()]
        else:
            filesystem, path = storage.filesystem(self.uri)
            root = path.rstrip("/") + "/"
            entries = [
                (str(entry.path).removeprefix(root), entry.type == fs.FileType.Directory)
                for entry in filesystem.get_file_info(fs.FileSelector(path, recursive=True))
            ]
        shown = [(name, is_folder) for name, is_folder in entries if not _hidden(name)]
        return Tree(
            files=sorted(name for name, is_folder in shown if not is_folder),
            folders=sorted(name for name, is_folder in shown if is_folder),
        )

    def read(self, name: str) -> bytes:
        """A file's bytes; raises MissingArtifact when there is no such file."""
        if not self.is_zip:
            return storage.read_bytes(storage.join(self.uri, name))
        try:
            return self._zip().read(name)
        except KeyError as error:
            raise MissingArtifact(f"{self.uri} must hold {name}; it does not.") from error
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise InvalidData(f"{name} in {self.uri} must unpack; it does not: {error}.") from error

    def read_text(self, name: str) -> str:
        return self.read(name).decode("utf-8", errors="replace")

    def _zip(self) -> zipfile.ZipFile:
        """One open zip per thread and process: reading seeks, so nobody may share it."""
        opened: dict[tuple[int, str], zipfile.ZipFile] = _open.__dict__.setdefault("zips", {})
        key = (os.getpid(), self.uri)
        if key not in opened:
            opened[key] = zipfile.ZipFile(self.uri)
        return opened[key]


def open_files(uri: str) -> Files:
    """The files of a source; raises MissingArtifact where there is nothing, InvalidData for a broken zip."""
    files = Files(storage.resolve(uri))
    if files.is_zip:
        if not Path(files.uri).is_file():
            raise MissingArtifact(
                f"The source must be a folder, a zip or a manifest; there is no file {files.uri}."
            )
        if not zipfile.is_zipfile(files.uri):
            raise InvalidData(f"{files.uri} is named .zip but is none. Download it again.")
        return files
    filesystem, path = storage.filesystem(files.uri)
    if filesystem.get_file_info(path).type != fs.FileType.Directory:
        raise MissingArtifact(
            f"The source must be a folder, a zip or a manifest; there is no folder {files.uri}."
        )
    return files


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part in _ADDED_BY_SYSTEMS for part in name.split("/"))
