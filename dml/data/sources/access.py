"""What a source may read: its own folder and what a setting names, never where else its rows point to.

A manifest, a link in a folder and a redirect are written by others. Without this, a row that names a private
file or a service of the local network would publish what it says.
"""

import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from dml import storage
from dml.data.sources.sample import Refused
from dml.errors import without_password

_WEB = ("http", "https")
_DEFAULT_PORTS = {"http": 80, "https": 443}
_FILE = "file://"
_SHOWN_CHARACTERS = 100


@dataclass(frozen=True)
class Access:
    """Where a source may read, and how patiently it fetches."""

    allowed_prefixes: tuple[str, ...] = ()
    """Folders, `s3://bucket/folder/` and `https://host/folder/` beside the source's own."""
    excluded: tuple[str, ...] = ()
    """Folders within the source that are none of it, such as the store."""
    timeout_s: float = 30.0
    """For one file from the web, tries and pauses together."""
    retries: int = 3

    def real_path(self, path: str, root: str) -> str:
        """A local path without links and `..`.

        Args:
            path: absolute.
            root: the source's own folder, itself without links.

        Raises:
            Refused: it leads out of the root and of every allowed folder.
        """
        real = os.path.realpath(path)
        allowed = (storage.resolve(p) for p in self.allowed_prefixes if not storage.is_remote(p))
        if not any(_lies_below(real, folder) for folder in (root, *allowed)):
            raise _outside(path if real == path else f"{path} leads to {real}")
        return real

    def require_key(self, uri: str, root: str) -> None:
        """Raises Refused for an `s3://` URI outside the root and every allowed one."""
        prefixes = (root, *(p for p in self.allowed_prefixes if p.startswith("s3://")))
        if _climbs(uri) or not any(_lies_below(uri, prefix.rstrip("/")) for prefix in prefixes):
            raise _outside(uri)

    def require_url(self, url: str) -> None:
        """Raises Refused for a web address that no allowed one of the same host begins."""
        wanted = _web_parts(url)
        allowed = (_web_parts(p) for p in self.allowed_prefixes if p.startswith(("http://", "https://")))
        if wanted is None or not any(
            prefix is not None and wanted[0] == prefix[0] and _lies_below(wanted[1], prefix[1].rstrip("/"))
            for prefix in allowed
        ):
            raise _outside(without_query(url))


OWN_FOLDER = Access()
"""Nothing but the source itself."""


def local_path(uri: str) -> str:
    """The path of a `file://` URI, percent-encoded or not, or of a path."""
    path = uri.removeprefix(_FILE)
    return path if path == uri or os.path.lexists(path) else unquote(path)


def without_query(url: str) -> str:
    """A web address to show: what is signed or secret stands in the query or before the host."""
    return without_password(re.split(r"[?#]", url, maxsplit=1)[0])


def shown_address(url: str) -> str:
    """What an address of any kind begins with: one of `data:` holds a whole file."""
    shown = without_query(url)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."


def require_web_address(url: str, what: str) -> None:
    """Raises Refused for what is no http or https address with a host.

    Args:
        url: to look at.
        what: the beginning of the message, up to "an address".
    """
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in _WEB and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        is_one = False
    if not is_one:
        raise Refused("not a web address", f"{what} an address http://HOST/PATH or https://HOST/PATH")


def _web_parts(url: str) -> tuple[tuple[str, str, int], str] | None:
    """((scheme, host, port), decoded path), or None for what two parsers could read differently."""
    if re.search(r"[\\\x00-\x1f\x7f]", url):
        return None
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    path = unquote(parts.path)
    if parts.scheme not in _WEB or not host or "@" in parts.netloc or _climbs(path) or "\\" in path:
        return None
    return (parts.scheme, host.lower().rstrip("."), port or _DEFAULT_PORTS[parts.scheme]), path or "/"


def _climbs(path: str) -> bool:
    return not {".", ".."}.isdisjoint(path.split("/"))


def _lies_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _outside(what: str) -> Refused:
    return Refused(
        "outside allowed prefixes",
        f"{what}; it must lie below the source's own folder or an entry of the setting allowed_prefixes",
    )
