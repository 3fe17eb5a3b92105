"""One way to list and read a local folder, a zip file or an `s3://` folder."""

import threading
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pyarrow import fs

from dml import storage
from dml.errors import InvalidData, MissingArtifact

_open = threading.local()


@dataclass(frozen=True)
class Files:
    """The files below a folder or in a zip; a value that travels to workers and opens its files there."""

    uri: str

    @property
    def is_zip(self) -> bool:
        return self.uri.lower().endswith(".zip")

    def names(self) -> list[str]:
        """Every file's path relative to the root, sorted, without hidden files and what systems add."""
        if self.is_zip:
            found = [info.filename for info in self._zip().infolist() if not info.is_dir()]
        else:
            filesystem, path = storage.filesystem(self.uri)
            entries = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
            root = path.rstrip("/") + "/"
            found = [e.path.removeprefix(root) for e in entries if e.type == fs.FileType.File]
        return sorted(name for name in found if not _hidden(name))

    def folders(self) -> list[str]:
        """Every folder's path relative to the root, sorted; also empty ones, where the storage knows them."""
        if self.is_zip:
            return sorted(i.filename.rstrip("/") for i in self._zip().infolist() if i.is_dir())
        filesystem, path = storage.filesystem(self.uri)
        entries = filesystem.get_file_info(fs.FileSelector(path, recursive=True))
        root = path.rstrip("/") + "/"
        found = [e.path.removeprefix(root) for e in entries if e.type == fs.FileType.Directory]
        return sorted(name for name in found if not _hidden(name))

    def read(self, name: str) -> bytes:
        """A file's bytes; raises MissingArtifact when there is no such file."""
        if not self.is_zip:
            return storage.read_bytes(storage.join(self.uri, name))
        try:
            return self._zip().read(name)
        except KeyError as error:
            raise MissingArtifact(f"{self.uri} must hold {name}; it does not.") from error
        except (zipfile.BadZipFile, EOFError, OSError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
            raise InvalidData(f"{name} in {self.uri} must unpack; it does not: {error}.") from error

    def read_text(self, name: str) -> str:
        return self.read(name).decode("utf-8", errors="replace")

    def _zip(self) -> zipfile.ZipFile:
        """One open zip per thread: reading seeks, so threads must not share it."""
        opened: dict[str, zipfile.ZipFile] = _open.__dict__.setdefault("zips", {})
        if self.uri not in opened:
            opened[self.uri] = zipfile.ZipFile(self.uri)
        return opened[self.uri]


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
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/")) or name.endswith(
        ("Thumbs.db", "desktop.ini")
    )
