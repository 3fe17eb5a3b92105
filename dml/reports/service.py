"""The service: where it answers, and its API keys."""

from datetime import datetime

from pydantic import Field

from dml.reports.result import Result


class ServedAddress(Result):
    """Where a service answers."""

    address: str = Field(description="http://HOST:PORT")
    store: str = Field(description="path or URI")
    keys: bool = Field(description="whether it asks for API keys")


class ListedKey(Result):
    """An API key of the service, without the key itself."""

    id: str = Field(description="in the logs, and to revoke it")
    name: str = Field(description="who has it")
    permissions: list[str] = Field(description="read, enrol, forget, admin")
    galleries: list[str] = Field(description="names of indexes; empty: all")
    created: datetime = Field(description="UTC")


class NewKey(ListedKey):
    """A key that was just made."""

    key: str = Field(description="the key itself; it is kept nowhere")


class KeyList(Result):
    """The API keys of a service."""

    keys: list[ListedKey]
