"""Settings of the connection to S3, read from the environment and AWS's configuration files.

`AWS_ENDPOINT_URL_S3` or `AWS_ENDPOINT_URL`, else the profile's `endpoint_url`; `AWS_DEFAULT_REGION` or
`AWS_REGION`, else the profile's `region`; `AWS_CA_BUNDLE`; and `DML_S3_TIMEOUT_S`.
"""

import math
import os
import threading
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from dml.errors import InvalidSetting, without_password

TIMEOUT = "DML_S3_TIMEOUT_S"
"""The variable with the seconds after which a request that makes no progress is given up."""
TIMEOUT_S = 20.0


class Settings(NamedTuple):
    """Where S3 is, and how long it may take; the same for Arrow's filesystem and boto3's client."""

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


def current_environment() -> Environment:
    """This process, and its variables for S3: what clients are made of and kept by."""
    names = sorted(name for name in os.environ if name.startswith("AWS_") or name == TIMEOUT)
    return os.getpid(), tuple((name, os.environ[name]) for name in names)


class Sessions(NamedTuple):
    """The session of both libraries, and the lock to make a client of it."""

    core: Any
    boto3: Any
    making: threading.Lock


@lru_cache(maxsize=64)
def sessions_of(environment: Environment) -> Sessions:
    """botocore's session and boto3's.

    Raises:
        InvalidSetting: there is no such profile.
    """
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
    return Sessions(core, boto3.Session(botocore_session=core), threading.Lock())


@lru_cache(maxsize=64)
def settings_of(environment: Environment) -> Settings:
    """The settings, each from the first place that has it.

    Raises:
        InvalidSetting: an address that is no URL, a time that is no number of seconds, or no such profile.
    """
    variables, session = dict(environment[1]), sessions_of(environment).core
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
