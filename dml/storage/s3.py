"""The connection to S3: settings in, Arrow's filesystem and boto3's client out, and one error for both.

Both clients read the same settings: `AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, else the profile's
`endpoint_url`; `AWS_DEFAULT_REGION` or `AWS_REGION`, else the profile's `region`; `AWS_CA_BUNDLE`; and
`DML_S3_TIMEOUT_S`. Each finds the credentials itself, in the order of AWS.
"""

import logging
import math
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pyarrow import fs

from dml.deadline import call_within
from dml.errors import InvalidSetting, StorageUnavailable, without_password

TIMEOUT = "DML_S3_TIMEOUT_S"
"""The variable with the seconds after which a request that makes no progress is given up."""
TIMEOUT_S = 20.0
TRIES = 3
"""Of each request, for what another try can help: no progress, a broken connection, "slow down"."""
CONNECT_WITHIN_S = 4.0
_FIND_WITHIN_S = 8.0  # the host's name and all its addresses
_START_WITHIN_S = 1.0  # a server that is just starting again
_PAUSE_S = 0.25
_SECRET_LENGTH = 8

_AWS_ERROR = re.compile(
    r"AWS Error (?:\[code )?(\w+)\]?(?: \(HTTP status \d+\))?(?: during \w+ operation)?(?:: (.*))?", re.DOTALL
)
_IN_BUCKET = re.compile(r"bucket '([^']+)'")
_CURL = re.compile(r"curlCode: (\d+), ([^;\n]*)")
_TLS_CODES = ("35", "60", "77")
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
_MAY_LACK_LISTING = ("AccessDenied", "AllAccessDisabled", "403", "MethodNotAllowed", "NotImplemented", "501")
"""Codes of servers that answer, and may serve the objects all the same."""

logger = logging.getLogger(__name__)


class Settings(NamedTuple):
    """What both clients are told."""

    endpoint: str | None
    """None: Amazon's."""
    region: str | None
    """None: where the bucket is, or us-east-1 at another endpoint than Amazon's."""
    ca_file: str | None
    timeout_s: float
    """Of a request without progress; a transfer that goes on has no limit."""

    @property
    def shown(self) -> str:
        """The server's address for messages, without credentials."""
        if self.endpoint is not None:
            return without_password(self.endpoint)
        return f"https://s3.{self.region}.amazonaws.com" if self.region else "https://s3.amazonaws.com"


Environment = tuple[int, tuple[tuple[str, str], ...]]
"""The process, since connections must not be shared with a fork, and the variables that clients read."""


def _environment() -> Environment:
    names = sorted(name for name in os.environ if name.startswith("AWS_") or name == TIMEOUT)
    return os.getpid(), tuple((name, os.environ[name]) for name in names)


def filesystem(bucket: str) -> fs.S3FileSystem:
    """Arrow's filesystem for a bucket, whose server has answered.

    Raises:
        InvalidSetting: a setting cannot be.
        StorageUnavailable: the server does not answer, refuses, or has no such bucket.
    """
    return _filesystem(_environment(), bucket)


def client(bucket: str) -> Any:
    """boto3's client for a bucket, whose server has answered; raises as `filesystem`."""
    environment = _environment()
    _region(environment, bucket)
    return _client(environment)


def client_within(answer_within_s: float) -> Any:
    """boto3's client with a limit of its own for each answer, whose server was not asked yet."""
    return _client(_environment(), answer_within_s / 2, answer_within_s / 2)


@lru_cache(maxsize=64)
def _filesystem(environment: Environment, bucket: str) -> fs.S3FileSystem:
    settings = _settings(environment)
    return fs.S3FileSystem(
        endpoint_override=settings.endpoint,
        scheme=urlsplit(settings.endpoint).scheme if settings.endpoint else "https",
        region=_region(environment, bucket),
        connect_timeout=CONNECT_WITHIN_S,
        request_timeout=settings.timeout_s,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=TRIES),
        tls_ca_file_path=settings.ca_file,
    )


@lru_cache(maxsize=64)
def _client(
    environment: Environment,
    connect_within_s: float = CONNECT_WITHIN_S,
    answer_within_s: float | None = None,
    tries: int = TRIES,
) -> Any:
    from botocore import UNSIGNED
    from botocore.config import Config

    sessions, settings = _sessions(environment), _settings(environment)
    with sessions.making:
        unsigned = {"signature_version": UNSIGNED} if sessions.core.get_credentials() is None else {}
        return sessions.boto3.client(
            "s3",
            region_name=settings.region,
            endpoint_url=settings.endpoint,
            verify=settings.ca_file,
            config=Config(
                connect_timeout=connect_within_s,
                read_timeout=answer_within_s or settings.timeout_s,
                retries={"mode": "standard", "total_max_attempts": tries},
                **unsigned,
            ),
        )


class _Sessions(NamedTuple):
    """The session of both libraries, and the lock to make a client of it."""

    core: Any
    boto3: Any
    making: threading.Lock


@lru_cache(maxsize=64)
def _sessions(environment: Environment) -> _Sessions:
    import boto3
    from botocore.exceptions import BotoCoreError
    from botocore.session import Session

    core = Session()
    try:
        core.get_scoped_config()
    except BotoCoreError as error:
        raise InvalidSetting(
            f"AWS_PROFILE must name a profile of AWS's configuration files; {str(error).rstrip('.')}. "
            "Name another, or unset it."
        ) from error
    return _Sessions(core, boto3.Session(botocore_session=core), threading.Lock())


@lru_cache(maxsize=64)
def _settings(environment: Environment) -> Settings:
    variables, session = dict(environment[1]), _sessions(environment).core
    profile = session.get_scoped_config()
    services = session.full_config.get("services", {}).get(profile.get("services"), {})
    of_profile = services.get("s3", {}).get("endpoint_url") or profile.get("endpoint_url")
    configured = {
        "AWS_ENDPOINT_URL_S3": variables.get("AWS_ENDPOINT_URL_S3"),
        "AWS_ENDPOINT_URL": variables.get("AWS_ENDPOINT_URL"),
        "endpoint_url of the profile": of_profile,
    }
    if session.get_config_variable("ignore_configured_endpoint_urls"):
        configured = {}
    name, endpoint = next(((name, value) for name, value in configured.items() if value), ("", None))
    if endpoint is not None:
        _require_url(name, endpoint)
    region = (
        variables.get("AWS_DEFAULT_REGION")
        or variables.get("AWS_REGION")
        or session.get_config_variable("region")
        or ("us-east-1" if endpoint else None)
    )
    ca_file = session.get_config_variable("ca_bundle") or None
    return Settings(endpoint, region, ca_file, _timeout_s(variables.get(TIMEOUT)))


def _require_url(name: str, endpoint: str) -> None:
    shown = without_password(endpoint)
    try:
        parts = urlsplit(endpoint)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_url = False
    if not is_url:
        raise InvalidSetting(
            f"{name} must be http://HOST:PORT or https://HOST:PORT; got {shown!r}. Write the scheme before "
            "the host: http:// for a server without TLS."
        )


def _timeout_s(text: str | None) -> float:
    if not text:
        return TIMEOUT_S
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not 1 <= timeout_s <= 3600:
        raise InvalidSetting(f"{TIMEOUT} must be a number of seconds from 1 to 3600; got {text!r}.")
    return timeout_s


@lru_cache(maxsize=64)
def _region(environment: Environment, bucket: str) -> str | None:
    """The region to ask for a bucket, after one cheap request that shows what is wrong with the settings.

    A dead server is named within 10 s and a silent one after `DML_S3_TIMEOUT_S`; only successes are kept.
    """
    settings = _settings(environment)
    if settings.endpoint is not None:  # before clients look for credentials, which can take a while
        _require_server(settings.endpoint, bucket)
    with translated_errors(bucket):
        clients = _client(environment, tries=1), _client(environment)
        if settings.endpoint is None:
            _require_server(clients[0].meta.endpoint_url, bucket)
        response = _first_answer(*clients, bucket, settings)
    if settings.endpoint is not None:
        return settings.region
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    return headers.get("x-amz-bucket-region") or settings.region


def _require_server(endpoint: str, bucket: str) -> None:
    """Connect to the server once, by itself: every network error has its own class there."""
    parts = urlsplit(endpoint)
    address = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    start = time.monotonic()
    while True:
        try:
            call_within(
                _FIND_WITHIN_S, lambda: socket.create_connection(address, timeout=CONNECT_WITHIN_S).close()
            )
            return
        except socket.gaierror as error:
            raise _error(bucket, f"its host {address[0]} is not known", _remedy()) from error
        except TimeoutError as error:
            raise _error(bucket, "it takes no connection in time", _remedy()) from error
        except (OSError, UnicodeError) as error:
            if time.monotonic() - start > _START_WITHIN_S:
                reason = getattr(error, "strerror", None) or str(error)
                raise _error(bucket, f"there is no connection: {reason}", _remedy()) from error
            time.sleep(_PAUSE_S)


def _first_answer(once: Any, patient: Any, bucket: str, settings: Settings) -> dict[str, Any]:
    from botocore.exceptions import ClientError, ReadTimeoutError

    def ask() -> dict[str, Any]:
        request = {"Bucket": bucket, "MaxKeys": 1}
        try:
            response = once.list_objects_v2(**request)
        except ReadTimeoutError as error:  # boto3's limit is the same
            raise TimeoutError(f"no complete answer within {settings.timeout_s:g} s") from error
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in _MAY_LACK_LISTING:
                return dict(error.response)
            if _status(error) < 500:
                raise
            response = patient.list_objects_v2(**request)
        if not {"Name", "KeyCount", "IsTruncated"} & response.keys():  # as each list of S3 says
            raise _error(bucket, "its answer is another server's than S3's", _remedy())
        return dict(response)

    def say(seconds: float) -> None:
        logger.warning(
            "waiting for S3 at %s, which has not answered for %.0f s; it is given up after %g s (%s)",
            settings.shown,
            seconds,
            settings.timeout_s,
            TIMEOUT,
        )

    return call_within(settings.timeout_s, ask, waiting=say)


def _remedy() -> str:
    return "Start it, or set AWS_ENDPOINT_URL to its address."


def _error(bucket: str, reason: str, remedy: str) -> StorageUnavailable:
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        secret = os.environ.get(name, "")
        if len(secret) >= _SECRET_LENGTH:  # a shorter one, as of a test server, is a part of words
            reason = reason.replace(secret, "***")
    must = f"must answer for bucket {bucket!r}" if bucket else "must answer"
    return StorageUnavailable(
        f"S3 at {_settings(_environment()).shown} {must}; {reason.rstrip('. ')}. {remedy}"
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
            translated = _error(_bucket(uri), f"it gave {error}", _slow_remedy())
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
        return _error(bucket, *_network_reason(curl[1], curl[2].strip(), text))
    found = _AWS_ERROR.search(text)
    code, detail = (found[1], (found[2] or "").partition("\n")[0]) if found else ("", text.splitlines()[0])
    if code == "NETWORK_CONNECTION":
        return _error(bucket, f"the connection broke: {detail}", _again())
    return _refusal(bucket, code, "" if detail.startswith("No response body") else detail)


def _network_reason(code: str, words: str, text: str) -> tuple[str, str]:
    if code == "6":
        return "its host is not known", _remedy()
    if code == "7":
        return "there is no connection", _remedy()
    if code == "28":
        slow = re.search(r"the last (\d+) seconds", text)
        if slow is not None:
            return f"a request made no progress for {slow[1]} s, in each of {TRIES} tries", _slow_remedy()
        return "it takes no connection in time", _remedy()
    if code in _TLS_CODES:
        return f"TLS fails: {words}", _tls_remedy()
    return f"the connection broke in each of {TRIES} tries: {words}", _again()


def _boto_error(error: BaseException, bucket: str) -> StorageUnavailable:
    from botocore import exceptions
    from botocore.parsers import ResponseParserError

    text = (str(error).splitlines() or [type(error).__name__])[0]
    if isinstance(error, exceptions.ClientError):
        answer = error.response.get("Error", {})
        code = str(answer.get("Code", ""))
        if not code or code.isdigit():  # no words of S3's
            status = _status(error) or code
            return _error(bucket, f"its answer is another server's than S3's, status {status}", _remedy())
        return _refusal(bucket, code, str(answer.get("Message", "")))
    if isinstance(error, exceptions.SSLError):
        return _error(bucket, f"TLS fails: {error.kwargs.get('error', text)}", _tls_remedy())
    if isinstance(error, exceptions.ReadTimeoutError):
        return _error(bucket, "it takes the connection and does not answer in time", _slow_remedy())
    if isinstance(error, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError):
        return _error(bucket, f"there is no connection: {text}", _remedy())
    if isinstance(error, exceptions.ResponseStreamingError | exceptions.IncompleteReadError):
        return _error(bucket, f"the connection broke: {text}", _again())
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return _error(bucket, text, _KEYS)
    if isinstance(error, exceptions.HTTPClientError):  # also a connection that ends in the middle
        return _error(bucket, f"the connection broke, or its answer is not HTTP: {text}", _tls_remedy())
    if isinstance(error, ResponseParserError):
        return _error(bucket, "its answer is another server's than S3's", _remedy())
    return _error(bucket, text, _again())


def _status(error: Any) -> int:
    """The HTTP status of a ClientError."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _refusal(bucket: str, code: str, detail: str) -> StorageUnavailable:
    known = code.replace("_", "").lower()
    said = f"{code}: {detail}" if detail else code
    return _error(bucket, f"it refuses the request, {said}", _REMEDIES.get(known, _again()))


def _slow_remedy() -> str:
    seconds = _settings(_environment()).timeout_s
    return (
        f"Check that it is an S3 server and well; {TIMEOUT}, now {seconds:g}, is how long it may be silent."
    )


def _tls_remedy() -> str:
    return (
        "Set AWS_ENDPOINT_URL to http:// for a server without TLS and to https:// for one with it, and "
        "AWS_CA_BUNDLE to the certificates of an authority of your own."
    )


def _again() -> str:
    return "Check the server, then run the same command again."
