"""Errors of S3, of Arrow and of boto3, as one class whose message names the server and the bucket."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from dml.errors import StorageUnavailable
from dml.storage.s3_settings import TIMEOUT, current_environment, settings_of

TRIES = 3
"""Of each request, for what another try can help: no progress, a broken connection, "slow down"."""
_SECRET_LENGTH = 8

_AWS_ERROR = re.compile(
    r"AWS Error (?:\[code )?(\w+)\]?(?: \(HTTP status \d+\))?(?: during \w+ operation)?(?:: (.*))?", re.DOTALL
)
_IN_BUCKET = re.compile(r"bucket '([^']+)'")
_CURL = re.compile(r"curlCode: (\d+), ([^;\n]*)")
_TLS_CODES = ("35", "60", "77")
START_IT = "Start it, or set AWS_ENDPOINT_URL to its address."
_TRY_AGAIN = "Check the server, then run the same command again."
_FIX_TLS = (
    "Set AWS_ENDPOINT_URL to http:// for a server without TLS and to https:// for one with it, and "
    "AWS_CA_BUNDLE to the certificates of an authority of your own."
)
_KEYS = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, to credentials of that server."
_REGION = "Set AWS_DEFAULT_REGION to the region of the bucket."
_REMEDIES = {  # by the error codes of S3, as boto3 and Arrow spell them
    "accessdenied": "Use credentials that may list, read and write the bucket.",
    **dict.fromkeys(
        ("invalidaccesskeyid", "signaturedoesnotmatch", "invalidtoken", "invalidclienttokenid"), _KEYS
    ),
    **dict.fromkeys(
        ("expiredtoken", "tokenrefreshrequired", "requestexpired"), f"They have expired. {_KEYS}"
    ),
    "nosuchbucket": "Make the bucket, or name another.",
    **dict.fromkeys(
        ("permanentredirect", "authorizationheadermalformed", "illegallocationconstraintexception"), _REGION
    ),
    "requesttimetooskewed": "Set the clock of this machine.",
}


def error_for(bucket: str, reason: str, remedy: str) -> StorageUnavailable:
    """The error for a server that does not serve a bucket.

    Args:
        bucket: its name; "": not known.
        reason: what came; secrets in it are left out.
        remedy: what to do, a sentence.
    """
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        secret = os.environ.get(name, "")
        if len(secret) >= _SECRET_LENGTH:  # a shorter one, as of a test server, is a part of words
            reason = reason.replace(secret, "***")
    must = f"must answer for bucket {bucket!r}" if bucket else "must answer"
    return StorageUnavailable(
        f"S3 at {settings_of(current_environment()).shown} {must}; {reason.rstrip('. ')}. {remedy}"
    )


@contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Context manager around requests to S3: what Arrow, boto3 and `call_within` raise has one class.

    Args:
        uri: of an object, or the bucket's name.

    Raises:
        StorageUnavailable: the server does not answer, or refuses; the message names it and the bucket.
    """
    from botocore.exceptions import BotoCoreError, ClientError
    from botocore.parsers import ResponseParserError

    try:
        yield
    except StorageUnavailable:
        raise
    except (OSError, BotoCoreError, ClientError, ResponseParserError) as error:
        translated = unavailable(error, uri)
        if translated is None and isinstance(error, TimeoutError):  # of `call_within`
            translated = error_for(_bucket(uri), f"it gave {error}", _slow_remedy())
        if translated is None:
            raise
        raise translated from error


def _bucket(uri: str) -> str:
    return uri.removeprefix("s3://").partition("/")[0]


def unavailable(error: BaseException, uri: str = "") -> StorageUnavailable | None:
    """The error to raise for one of Arrow or boto3 that tells of S3; None: it tells of something else.

    Args:
        error: what was raised.
        uri: of an object, or the bucket's name; "" looks for it in the error.
    """
    if isinstance(error, StorageUnavailable):
        return error
    if type(error).__module__.startswith(("botocore.", "boto3.")):  # some of them are OSErrors, too
        return _boto_error(error, _bucket(uri))
    return _arrow_error(error, _bucket(uri)) if isinstance(error, OSError) else None


def _arrow_error(error: OSError, bucket: str) -> StorageUnavailable | None:
    text = str(error)
    if error.errno is not None or "AWS Error" not in text:
        return None
    named = _IN_BUCKET.search(text)
    bucket = bucket or (named[1] if named else "")
    if (curl := _CURL.search(text)) is not None:
        return error_for(bucket, *_network_reason(curl[1], curl[2].strip(), text))
    found = _AWS_ERROR.search(text)
    code, detail = (found[1], (found[2] or "").partition("\n")[0]) if found else ("", text.splitlines()[0])
    if code == "NETWORK_CONNECTION":
        return error_for(bucket, f"the connection broke: {detail}", _TRY_AGAIN)
    return _refusal(bucket, code, "" if detail.startswith("No response body") else detail)


def _network_reason(code: str, words: str, text: str) -> tuple[str, str]:
    if code == "6":
        return "its host is not known", START_IT
    if code == "7":
        return "there is no connection", START_IT
    if code == "28":
        slow = re.search(r"the last (\d+) seconds", text)
        if slow is not None:
            return f"a request made no progress for {slow[1]} s, in each of {TRIES} tries", _slow_remedy()
        return "it takes no connection in time", START_IT
    if code in _TLS_CODES:
        return f"TLS fails: {words}", _FIX_TLS
    return f"the connection broke in each of {TRIES} tries: {words}", _TRY_AGAIN


def _boto_error(error: BaseException, bucket: str) -> StorageUnavailable:
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    text = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, exceptions.ClientError):
        answer = error.response.get("Error", {})
        code = str(answer.get("Code", ""))
        if not code or code.isdigit():  # no words of S3's
            status = status_of(error) or code
            return error_for(bucket, f"its answer is another server's than S3's, status {status}", START_IT)
        return _refusal(bucket, code, str(answer.get("Message", "")))
    if isinstance(error, exceptions.SSLError):
        return error_for(bucket, f"TLS fails: {error.kwargs.get('error', text)}", _FIX_TLS)
    if isinstance(error, exceptions.ReadTimeoutError):
        return error_for(bucket, "it takes the connection and does not answer in time", _slow_remedy())
    if isinstance(error, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError):
        return error_for(bucket, f"there is no connection: {text}", START_IT)
    if isinstance(error, exceptions.ResponseStreamingError | exceptions.IncompleteReadError):
        return error_for(bucket, f"the connection broke: {text}", _TRY_AGAIN)
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return error_for(bucket, text, _KEYS)
    if isinstance(error, exceptions.HTTPClientError):  # also a connection that ends in the middle
        return error_for(bucket, f"the connection broke, or its answer is not HTTP: {text}", _FIX_TLS)
    if isinstance(error, ResponseParserError):
        return error_for(bucket, "its answer is another server's than S3's", START_IT)
    return error_for(bucket, text, _TRY_AGAIN)


def status_of(error: Any) -> int:
    """The HTTP status of a ClientError."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _refusal(bucket: str, code: str, detail: str) -> StorageUnavailable:
    known = code.replace("_", "").lower()
    said = f"{code}: {detail}" if detail else code
    return error_for(bucket, f"it refuses the request, {said}", _REMEDIES.get(known, _TRY_AGAIN))


def _slow_remedy() -> str:
    seconds = settings_of(current_environment()).timeout_s
    return (
        f"Check that it is an S3 server and well; {TIMEOUT}, now {seconds:g}, is how long it may be silent."
    )
