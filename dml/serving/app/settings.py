"""What the service is started with: the store, who may ask, and the limits."""

from ipaddress import ip_address
from pathlib import Path
from typing import Literal

from pydantic import Field

from dml.config import Part
from dml.errors import InvalidSetting


class Limits(Part):
    """What is refused before it costs much."""

    body_bytes: int = Field(16 << 20, gt=0, description="of one request")
    bodies_bytes: int = Field(512 << 20, gt=0, description="of all requests that are being answered")
    pixels: int = Field(25_000_000, gt=0, description="of one image")
    requests: int = Field(1_024, gt=0, description="that are being answered; more are refused with 503")
    rate: float = Field(
        500.0, gt=0, description="queries a second of one key, or of one address without keys"
    )
    burst: int = Field(2_000, gt=0, description="queries at once, before `rate` holds")
    body_seconds: float = Field(20.0, gt=0, description="in which a request's body must arrive")
    head_seconds: float = Field(10.0, gt=0, description="in which a request's headers must arrive")
    seconds: float = Field(30.0, gt=0, description="in which a request must be answered")


class Batching(Part):
    """How images of different requests are encoded together."""

    images: int = Field(32, gt=0, description="encoded at once, at most")
    wait_ms: float = Field(
        5.0, ge=0, description="for images that are being decoded, once one is there and the encoder is idle"
    )


class ServiceSettings(Part):
    """All of it; can be sent to another process."""

    store: str
    indexes: tuple[str, ...] = Field((), description="NAME; empty: all of the store, new ones too")
    keys: Path | None = Field(None, description="file of API keys; null: no key is needed")
    hosts: tuple[str, ...] = Field(
        (), description="names by which clients may call it; empty: any. Without keys: those of loopback"
    )
    audit: Path | None = Field(None, description="file of the audit log; null: that of the store")
    galleries: Path | None = Field(
        None, description="folder of enrolments for a remote store; null: the cache"
    )
    refresh_seconds: float = Field(1.0, gt=0, description="between looks for new versions and enrolments")
    recall_share: float = Field(0.01, ge=0, le=1, description="of the queries that are compared exactly, too")
    threads: int | None = Field(
        None, gt=0, description="that decode, and that search; null: the machine's cores"
    )
    encoder: Literal["torch", "onnx"] = Field(
        "torch",
        description="onnx: by ONNX Runtime on the CPU, in about half the time; needs the extra [onnx]",
    )
    telemetry: str | None = Field(None, description="address of an OTLP collector for traces; null: none")
    limits: Limits = Limits()
    batching: Batching = Batching()


LOOPBACK_NAMES = ("127.0.0.1", "localhost", "[::1]")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server at this address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def require_keys_beyond_loopback(host: str, keys: Path | None) -> None:
    """Raise InvalidSetting for an address that other machines reach, and no keys."""
    if keys is None and not is_loopback(host):
        raise InvalidSetting(
            f"A service that other machines reach must ask for API keys; got --host {host} and none. Make "
            "one: dml keys make NAME --permissions read; or leave out --host."
        )
