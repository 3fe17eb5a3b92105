"""The connection to S3: Arrow's filesystem and boto3's client for a bucket, whose server has answered.

Both have the same `s3_settings`, and raise the errors of `s3_errors`. Each finds the credentials itself, in
the order of AWS.
"""

import logging
import socket
import time
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from pyarrow import fs

from dml.deadline import call_within
from dml.storage.s3_errors import START_IT, TRIES, error_for, status_of, translated_errors
from dml.storage.s3_settings import (
    TIMEOUT,
    Environment,
    Settings,
    current_environment,
    sessions_of,
    settings_of,
)

CONNECT_WITHIN_S = 4.0
_FIND_WITHIN_S = 8.0  # the host's name and all its addresses
_START_WITHIN_S = 1.0  # a server that is just starting again
_PAUSE_S = 0.25
_MAY_LACK_LISTING = ("AccessDenied", "AllAccessDisabled", "403", "MethodNotAllowed", "NotImplemented", "501")
"""Codes of servers that answer, and may serve the objects all the same."""

logger = logging.getLogger(__name__)


def filesystem(bucket: str) -> fs.S3FileSystem:
    """Arrow's filesystem for a bucket, whose server has answered.

    Raises:
        InvalidSetting: a setting cannot be.
        StorageUnavailable: the server does not answer, refuses, or has no such bucket.
    """
    return _filesystem(current_environment(), bucket)


def client(bucket: str) -> Any:
    """boto3's client for a bucket, whose server has answered; raises as `filesystem`."""
    environment = current_environment()
    _region(environment, bucket)
    return _client(environment)


def client_within(answer_within_s: float) -> Any:
    """boto3's client with a limit of its own for each answer, whose server was not asked yet."""
    return _client(current_environment(), answer_within_s / 2, answer_within_s / 2)


@lru_cache(maxsize=64)
def _filesystem(environment: Environment, bucket: str) -> fs.S3FileSystem:
    settings = settings_of(environment)
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

    sessions, settings = sessions_of(environment), settings_of(environment)
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


@lru_cache(maxsize=64)
def _region(environment: Environment, bucket: str) -> str | None:
    """The region to ask for a bucket, after one cheap request that shows what is wrong with the settings.

    A dead server is named within 10 s and a silent one after `DML_S3_TIMEOUT_S`; only successes are kept.
    """
    settings = settings_of(environment)
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
            raise error_for(bucket, f"its host {address[0]} is not known", START_IT) from error
        except TimeoutError as error:
            raise error_for(bucket, "it takes no connection in time", START_IT) from error
        except (OSError, UnicodeError) as error:
            if time.monotonic() - start > _START_WITHIN_S:
                reason = getattr(error, "strerror", None) or str(error)
                raise error_for(bucket, f"there is no connection: {reason}", START_IT) from error
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
            if status_of(error) < 500:
                raise
            response = patient.list_objects_v2(**request)
        if not {"Name", "KeyCount", "IsTruncated"} & response.keys():  # as each list of S3 says
            raise error_for(bucket, "its answer is another server's than S3's", START_IT)
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
