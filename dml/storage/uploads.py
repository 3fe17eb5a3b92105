"""Multipart uploads that killed processes left open on S3: hidden from listings, billed until aborted."""

from datetime import datetime
from typing import NamedTuple

from dml.storage import s3_errors
from dml.storage.conditional import s3_client
from dml.storage.files import is_remote


class Upload(NamedTuple):
    """An upload that was started and neither completed nor aborted."""

    uri: str
    initiated: datetime


def open_uploads(store: str) -> list[Upload]:
    """The open uploads below a store; none on a local disk."""
    return [] if not is_remote(store) else [upload for upload, _ in _uploads(store)]


def abort_uploads(uri: str) -> None:
    """Abort every open upload of one key."""
    client, bucket, _ = s3_client(uri)
    for upload, upload_id in _uploads(uri):
        if upload.uri == uri:
            key = uri.removeprefix(f"s3://{bucket}/")
            with s3_errors.translated_errors(uri):
                client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)


def _uploads(uri: str) -> list[tuple[Upload, str]]:
    client, bucket, prefix = s3_client(uri)
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    with s3_errors.translated_errors(uri):
        return [
            (Upload(f"s3://{bucket}/{entry['Key']}", entry["Initiated"]), entry["UploadId"])
            for page in pages
            for entry in page.get("Uploads", [])
        ]
