"""Conditional writes on S3: replace an object only if it has not changed since it was read."""

from itertools import islice
from typing import Any, NamedTuple

from dml.errors import IncompatibleArtifact
from dml.storage import s3, s3_errors

_CONFLICT_CODES = ("PreconditionFailed", "ConditionalRequestConflict", "NoSuchKey")
"""S3 error codes for a key that was written since, is being written now, or was removed."""


class StoredObject(NamedTuple):
    """An object's content and ETag when it was read; both None if it did not exist."""

    content: bytes | None
    etag: str | None


class WriteConflict(IncompatibleArtifact):
    """Another process wrote the same file first."""


def s3_client(uri: str, client: Any = None) -> tuple[Any, str, str]:
    """A client (the given one, else the process's), the bucket and the key of an `s3://` URI."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return client or s3.client(bucket), bucket, key


def list_etags(uri: str, *, recursive: bool = True, most_requests: int | None = None) -> dict[str, str]:
    """Size and ETag of every object below an `s3://` folder, by its key relative to the folder.

    Args:
        uri: the folder.
        recursive: also of its subfolders.
        most_requests: the first objects only, a thousand a request; None: all.
    """
    client, bucket, key = s3_client(uri)
    prefix = f"{key.rstrip('/')}/" if key.rstrip("/") else ""
    options = {} if recursive else {"Delimiter": "/"}
    with s3_errors.translated_errors(uri):
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, **options)
        return {
            str(entry["Key"]).removeprefix(prefix): f"{entry['Size']} {entry['ETag']}"
            for page in islice(pages, most_requests)
            for entry in page.get("Contents", ())
        }


def read_with_etag(uri: str, client: Any = None) -> StoredObject:
    """The object's content and ETag, by a client; None: the process's."""
    client, bucket, key = s3_client(uri, client)
    with s3_errors.translated_errors(uri):
        try:
            response = client.get_object(Bucket=bucket, Key=key)
        except client.exceptions.NoSuchKey:
            return StoredObject(None, None)
        return StoredObject(response["Body"].read(), response["ETag"])


def replace_if_unchanged(uri: str, content: bytes, read_before: StoredObject, client: Any = None) -> str:
    """Write the object if it has not changed since it was read; its new ETag.

    Raises:
        WriteConflict: it has changed; nothing was written.
    """
    from botocore.exceptions import ClientError

    client, bucket, key = s3_client(uri, client)
    unchanged = {"IfNoneMatch": "*"} if read_before.etag is None else {"IfMatch": read_before.etag}
    with s3_errors.translated_errors(uri):
        try:
            return str(client.put_object(Bucket=bucket, Key=key, Body=content, **unchanged)["ETag"])
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") not in _CONFLICT_CODES:
                raise
            raise WriteConflict(
                f"Only one process must write {uri} at a time; another process wrote it first. Give the "
                "command again."
            ) from error
