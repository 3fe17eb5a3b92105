"""The address of a Milvus server and of a collection in it: text in, host, port, database and names out."""

import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from dml.errors import InvalidSetting, without_password

SCHEMES = {"milvus": "http", "milvus+tls": "https"}
DEFAULT_PORT = 19530


@dataclass(frozen=True)
class MilvusAddress:
    """Where a Milvus server is: `milvus://HOST[:PORT][/DATABASE]`, `milvus+tls://...` if encrypted."""

    host: str
    port: int
    database: str = ""
    is_encrypted: bool = False

    @classmethod
    def parse(cls, text: str) -> "MilvusAddress":
        """The address that a text is.

        Raises:
            InvalidSetting: it is none.
        """
        try:
            parts = urlsplit(text)
            port = parts.port or DEFAULT_PORT
        except ValueError:
            parts, port = urlsplit(""), 0
        database = parts.path.strip("/")
        wrong = not parts.hostname or "/" in database or parts.query or parts.fragment
        if parts.scheme not in SCHEMES or wrong:
            raise InvalidSetting(
                "An engine must be milvus://HOST:PORT, or milvus+tls://HOST:PORT, and may end in /DATABASE; "
                "got "
                f"{without_password(text)!r}."
            )
        if parts.username or parts.password:
            raise InvalidSetting(
                "An engine's address must hold no password, which others on this machine could read; got "
                "one for "
                f"{parts.hostname}. Set DML_MILVUS_TOKEN=USER:PASSWORD instead."
            )
        return cls(str(parts.hostname), port, unquote(database), parts.scheme == "milvus+tls")

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}" + (f"/{self.database}" if self.database else "")

    @property
    def uri(self) -> str:
        """As pymilvus takes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.is_encrypted else 'http'}://{host}:{self.port}"


def collection_name(index: str) -> str:
    """The collection of an index version NAME@VERSION; Milvus allows letters, digits and underscores.

    Example:
        >>> collection_name("shop-2@0123456789ab")
        'dml_shop_2_0123456789ab'
    """
    return "dml_" + re.sub("[^A-Za-z0-9]", "_", index)
