"""A folder of objects on S3, listed and written often, by one client: names in, contents and ETags out."""

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, NamedTuple

from dml.deadline import call_within
from dml.storage import s3, s3_errors
from dml.storage.conditional import (
    StoredObject,
    read_with_etag,
    replace_if_unchanged,
    s3_client,
)

ANSWER_WITHIN_S = 10.0


class ListedObject(NamedTuple):
    """An object of a folder, as it was listed."""

    name: str
    etag: str
    age_s: float
    """Since it was written, by the clock of the server."""
    size_bytes: int


class ObjectFolder:
    """A folder on S3; can be shared between threads.

    Args:
        uri: of the folder, `s3://BUCKET/PREFIX`.
        answer_within_s: limit of one page of a listing with all its tries. boto3 would wait for five minutes
            for a server that takes a request and never answers.

    Raises:
        StorageUnavailable: S3 cannot be reached, or refuses. By every method.
    """

    def __init__(self, uri: str, *, answer_within_s: float = ANSWER_WITHIN_S) -> None:
        self.uri, self._answer_within_s = uri.rstrip("/"), answer_within_s
        with s3_errors.translated_errors(self.uri):
            client = s3.client_within(answer_within_s)
        self._client, self._bucket, self._key = s3_client(self.uri, client)

    def list_from(self, name: str = "", *, most: int | None = None) -> list[ListedObject]:
        """The objects whose names come after `name`, in order.

        Args:
            name: "": all.
            most: only the first; None: all.
        """
        prefix = f"{self._key}/"
        options: dict[str, Any] = {}
        if most is not None:
            options = {"PaginationConfig": {"MaxItems": most, "PageSize": min(most, 1000)}}
        listed = []
        with s3_errors.translated_errors(self.uri):
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=prefix, StartAfter=f"{prefix}{name}", **options
            )
            each = iter(pages)
            while (page := call_within(self._answer_within_s, lambda: next(each, None))) is not None:
                now = _server_time(page)
                listed += [
                    ListedObject(
                        str(entry["Key"]).removeprefix(prefix),
                        str(entry["ETag"]),
                        (now - entry["LastModified"]).total_seconds(),
                        int(entry["Size"]),
                    )
                    for entry in page.get("Contents", ())
                ]
        return listed

    def read(self, name: str) -> StoredObject:
        """An object's content and ETag; both None: there is none."""
        return read_with_etag(f"{self.uri}/{name}", client=self._client)

    def write_if_unchanged(self, name: str, content: bytes, read_before: StoredObject) -> str:
        """Write an object if it has not changed since it was read; its new ETag.

        Raises:
            WriteConflict: it has changed; or an earlier try of this write succeeded, whose answer was lost.
        """
        return replace_if_unchanged(f"{self.uri}/{name}", content, read_before, client=self._client)


def _server_time(response: Any) -> datetime:
    """The server's time when it answered."""
    sent = response.get("ResponseMetadata", {}).get("HTTPHeaders", {}).get("date")
    return parsedate_to_datetime(sent) if sent else datetime.now(UTC)
