"""Access control of a source: it reads only its folder and the prefixes allowed by a setting.

Manifests, links and redirects come from others. Without this check, a row that names a private file or a
service of the local network would publish its content.
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
    """The locations that a source may read, and the timeout and retries of its downloads."""

    allowed_prefixes: tuple[str, ...] = ()
    """Folders, `s3://bucket/folder/` and `https://host/folder/` in addition to the source's folder."""
    excluded: tuple[str, ...] = ()
    """Folders inside the source that do not belong to it, such as the store."""
    timeout_s: float = 30.0
    """For one file from the web, including retries and pauses."""
    retries: int = 3

    def real_path(self, path: str, root: str) -> str:
        """A local path with links and `..` resolved.

        Args:
            path: an absolute path.
            root: the source's folder, with links resolved.

        Raises:
            Refused: the path is outside the root and every allowed folder.
        """
        real = os.path.realpath(path)
        allowed = (storage.resolve(p) for p in self.allowed_prefixes if not storage.is_remote(p))
        if not any(_is_below(real, folder) for folder in (root, *allowed)):
            raise _outside_prefixes(path if real == path else f"{path} leads to {real}")
        return real

    def require_key(self, uri: str, root: str) -> None:
        """Raise Refused for an `s3://` URI outside the root and every allowed prefix."""
        prefixes = (root, *(p for p in self.allowed_prefixes if p.startswith("s3://")))
        if _has_dot_segments(uri) or not any(_is_below(uri, prefix.rstrip("/")) for prefix in prefixes):
            raise _outside_prefixes(uri)

    def require_url(self, url: str) -> None:
        """Raise Refused for a URL outside every allowed prefix of the same host."""
        requested = _web_parts(url)
        allowed = (_web_parts(p) for p in self.allowed_prefixes if p.startswith(("http://", "https://")))
        if requested is None or not any(
            prefix is not None
            and requested[0] == prefix[0]
            and _is_below(requested[1], prefix[1].rstrip("/"))
            for prefix in allowed
        ):
            raise _outside_prefixes(without_query(url))


SOURCE_FOLDER_ONLY = Access()
"""Access to the source's folder only."""


def local_path(uri: str) -> str:
    """The path of a `file://` URI, percent-encoded or not, or of a path."""
    path = uri.removeprefix(_FILE)
    return path if path == uri or os.path.lexists(path) else unquote(path)


def without_query(url: str) -> str:
    """A URL for messages, without query and user, which can hold secrets."""
    return without_password(re.split(r"[?#]", url, maxsplit=1)[0])


def shown_address(url: str) -> str:
    """The beginning of a URL of any kind, for messages; a `data:` URL holds a whole file."""
    shown = without_query(url)
    return shown if len(shown) <= _SHOWN_CHARACTERS else f"{shown[:_SHOWN_CHARACTERS]}..."


def require_web_address(url: str, what: str) -> None:
    """Raise Refused for a URL that is not an http or https URL with a host.

    Args:
        url: the URL to check.
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
    """((scheme, host, port), decoded path), or None for a URL that parsers could interpret differently."""
    if re.search(r"[\\\x00-\x1f\x7f]", url):
        return None
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        return None
    path = unquote(parts.path)
    if parts.scheme not in _WEB or not host or "@" in parts.netloc or _has_dot_segments(path) or "\\" in path:
        return None
    return (parts.scheme, host.lower().rstrip("."), port or _DEFAULT_PORTS[parts.scheme]), path or "/"


def _has_dot_segments(path: str) -> bool:
    return not {".", ".."}.isdisjoint(path.split("/"))


def _is_below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def _outside_prefixes(what: str) -> Refused:
    return Refused(
        "outside allowed prefixes",
        f"{what}; it must be below the source's folder or an entry of the setting allowed_prefixes",
    )
