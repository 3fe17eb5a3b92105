"""Multipart uploads that killed processes left open on S3: invisible, and paid for until they are aborted."""

from datetime import datetime
from typing import Any, NamedTuple

from dml.storage.files import is_remote


class Upload(NamedTuple):
    """An upload that was begun and neither completed nor aborted."""

    uri: str
    initiated: datetime


def open_uploads(store: str) -> list[Upload]:
    """The open uploads below a store; none on a local disk."""
    return [] if not is_remote(store) else [upload for upload, _ in _uploads(store)]


def abort_uploads(uri: str) -> None:
    """Abort every open upload of one key."""
    client, bucket, _ = _client(uri)
    for upload, upload_id in _uploads(uri):
        if upload.uri == uri:
            key = uri.removeprefix(f"s3://{bucket}/")
            client.abort_multipart_upload(Bucket=bucket, Key=key, UploadId=upload_id)


def _uploads(uri: str) -> list[tuple[Upload, str]]:
    client, bucket, prefix = _client(uri)
    pages = client.get_paginator("list_multipart_uploads").paginate(Bucket=bucket, Prefix=prefix)
    return [
        (Upload(f"s3://{bucket}/{entry['Key']}", entry["Initiated"]), entry["UploadId"])
        for page in pages
        for entry in page.get("Uploads", [])
    ]


def _client(uri: str) -> tuple[Any, str, str]:
    import boto3

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return boto3.client("s3"), bucket, prefix
