"""What a damaged file looks like to whoever reads it: one error that names the file and the remedy."""

from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from dml.errors import CorruptArtifact, MissingArtifact


@contextmanager
def reading(uri: str, remedy: str) -> Iterator[None]:
    """Around code that decodes a published Parquet or Arrow file.

    Args:
        uri: the file.
        remedy: a sentence: what to do when it is damaged.

    Raises:
        CorruptArtifact: Arrow cannot make sense of its bytes, or a checksum differs.
        MissingArtifact: there is no such file.
        OSError: the disk, the network or S3 failed; the file may be whole.
    """
    try:
        yield
    except FileNotFoundError as error:
        raise MissingArtifact(f"A file must exist at {uri}; there is none. {remedy}") from error
    except (pa.ArrowMemoryError, pa.ArrowCancelled):
        raise
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and (error.errno is not None or "AWS Error" in str(error)):
            raise  # Arrow gives no errno to what it cannot decode
        raise CorruptArtifact(
            f"{uri} must be as it was published; it cannot be read: {_first_line(error)}. {remedy}"
        ) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
