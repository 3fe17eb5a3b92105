"""Local, verified copy of an artefact: a URI and fingerprint in, a local folder out."""

import shutil
from pathlib import Path

from pyarrow import fs

from dml.errors import CorruptArtifact
from dml.storage.artifacts import (
    MANIFEST,
    is_intact,
    read_manifest,
    staging_name,
    verify_opened,
    write_manifest,
)
from dml.storage.cache import cache_dir
from dml.storage.files import file_digest, is_remote, join, opened, resolve


def fetch(uri: str, fingerprint: str) -> Path:
    """A local folder with the artefact's files, verified.

    A local artefact is returned in place. A remote one is copied to the cache once per fingerprint, and again
    if the copy is damaged.

    Raises:
        MissingArtifact, CorruptArtifact: as `verify_opened`.
    """
    if not is_remote(uri):
        verify_opened(uri)
        return Path(resolve(uri))
    target = cache_dir() / "artifacts" / fingerprint
    if (target / MANIFEST).exists():
        if is_intact(str(target)):
            return target
        shutil.rmtree(target, ignore_errors=True)
    _copy(uri, target)
    return target


def _copy(uri: str, target: Path) -> None:
    manifest = read_manifest(uri)
    temporary = target.with_name(staging_name(target.name))
    try:
        for name, expected in manifest["files"].items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            with opened(join(uri, name)) as (filesystem_, path):
                fs.copy_files(path, str(temporary / name), filesystem_, fs.LocalFileSystem())
            if file_digest(str(temporary / name)) != expected["sha256"]:
                raise CorruptArtifact(
                    f"{join(uri, name)} must have the SHA-256 in its manifest; it has another. "
                    "Make the artefact again."
                )
        write_manifest(str(temporary), manifest)
        temporary.rename(target)
    except OSError:
        if not is_intact(str(target)):
            raise
        # another process was first; its copy was verified too
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
