"""A small file on S3 that is replaced only if nobody else replaced it since it was read."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from dml.errors import IncompatibleArtifact

_OVERTAKEN = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey")
"""What S3 answers where the key was written since, is being written at this moment, or was removed."""


class Held(NamedTuple):
    """What a key held when it was read; both None where there was none."""

    content: bytes | None
    etag: str | None


class Overtaken(IncompatibleArtifact):
    """Another process wrote the same file first."""


def client_of(uri: str) -> tuple[Any, str, str]:
    """A client, the bucket and the key of an `s3://` URI."""
    import boto3

    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return boto3.client("s3"), bucket, key


@contextmanager
def s3_answers() -> Iterator[None]:
    """Turn boto3's errors into the OSError that Arrow raises for S3, which names AWS."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise OSError(f"AWS Error: {error}") from error


def read_held(uri: str) -> Held:
    """The key's content and its version."""
    client, bucket, key = client_of(uri)
    with s3_answers():
        try:
            answer = client.get_object(Bucket=bucket, Key=key)
        except client.exceptions.NoSuchKey:
            return Held(None, None)
        return Held(answer["Body"].read(), answer["ETag"])


def replace_held(uri: str, content: bytes, held: Held) -> None:
    """Write the key if it is still what was read.

    Raises:
        Overtaken: it is not; nothing was written.
    """
    from botocore.exceptions import ClientError

    client, bucket, key = client_of(uri)
    unchanged = {"IfNoneMatch": "*"} if held.etag is None else {"IfMatch": held.etag}
    with s3_answers():
        try:
            client.put_object(Bucket=bucket, Key=key, Body=content, **unchanged)
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in _OVERTAKEN:
                raise
            raise Overtaken(
                f"Only one process must write {uri} at a time; another was first. Begin again."
            ) from error
