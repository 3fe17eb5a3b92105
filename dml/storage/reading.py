"""Errors of reading Parquet and Arrow files, translated to `dml.errors` with the file and a remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from dml.errors import CorruptArtifact, MissingArtifact, StorageUnavailable
from dml.storage import s3_errors


@contextmanager
def reading(uri: str, remedy: str) -> Iterator[None]:
    """Context manager around code that decodes a published Parquet or Arrow file.

    Args:
        uri: the file.
        remedy: a sentence that tells the user what to do if the file is damaged.

    Raises:
        CorruptArtifact: Arrow cannot decode the file, or a checksum differs.
        MissingArtifact: the file does not exist.
        StorageUnavailable: S3 failed; the file may be intact.
        OSError: the disk or the network failed; the file may be intact.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise MissingArtifact(f"A file must exist at {uri}; there is none. {remedy}") from error
    except (pa.ArrowMemoryError, pa.ArrowCancelled, StorageUnavailable):
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if (unavailable := s3_errors.unavailable(error, uri)) is not None:
            raise unavailable from error
        if isinstance(error, OSError) and error.errno is not None:
            raise  # Arrow's decoding errors have no errno
        raise CorruptArtifact(
            f"{uri} must be as it was published; it cannot be read: {_first_line(error)}. {remedy}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
