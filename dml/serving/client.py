"""A client of the service: Python values in, HTTP, typed answers out.

with Client("http://127.0.0.1:8000") as client:
    answer = client.search("shop", [Path("shirt.jpg").read_bytes()], k=3)
    print(answer.results[0].answers[0].id)
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from dml.errors import DmlError, InvalidSetting, Unreachable
from dml.serving.app import messages

_KEY = re.compile(r"[!-~]+")
R = TypeVar("R", bound=messages.Message)
Probe = bytes | NDArray[np.float32] | str
"""An image file's bytes, a vector (D,) of the index's embedder, or the id of an item."""


class ServiceError(DmlError):
    """A request that the service refused.

    Args:
        status: of HTTP.
        problem: what must hold, what came, what to do.
        retry_after: seconds after which it may go well; None: it is not said.
    """

    def __init__(self, status: int, problem: messages.Problem, retry_after: float | None) -> None:
        super().__init__(f"{problem.must}; {problem.got}. {problem.do}")
        self.status, self.problem, self.retry_after = status, problem, retry_after


class Client:
    """Connections to one service; can be shared between threads.

    Args:
        address: such as "http://127.0.0.1:8000".
        key: API key; None: the service asks for none.
        timeout_s: of a request.
        transport: of httpx, for tests.

    Raises:
        InvalidSetting: what cannot be an address or a key; of each method, what cannot be a request.
    """

    def __init__(
        self,
        address: str,
        key: str | None = None,
        *,
        timeout_s: float = 60.0,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        if key is not None and not _KEY.fullmatch(key):  # never shown: part of it may be right
            raise InvalidSetting("A key must be as `dml keys make` shows it; this one is not. Copy it whole.")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._address = address
        self._http = httpx.Client(
            base_url=_checked_address(address), headers=headers, timeout=timeout_s, transport=transport
        )

    def search(
        self,
        index: str,
        queries: Sequence[Probe],
        *,
        k: int = 10,
        filter: messages.Where | list[messages.Where] | None = None,
        **options: Any,
    ) -> messages.SearchResponse:
        """Find the most similar items of each query.

        Args:
            index: NAME.
            queries: images, vectors or ids, mixed as you like.
            k: answers of each.
            filter: as text, JSON, or a list of these.
            options: more of `messages.SearchRequest`: group_by_identity, rerank, threshold, fpir,
                explain, faces.

        Raises:
            ServiceError: it was refused.
            Unreachable: the service does not answer.
        """
        with _well_formed():
            request = messages.SearchRequest(queries=_queries_of(queries), k=k, filter=filter, **options)
        return self._call("POST", f"{_of(index)}/search", messages.SearchResponse, request)

    def verify(
        self, index: str, probe: Probe, other: Probe | messages.IdentityQuery, **options: Any
    ) -> messages.VerifyResponse:
        """Decide whether two images show the same identity, or one image an enrolled identity.

        Args:
            index: NAME.
            probe: image, vector or id.
            other: another such, or `messages.IdentityQuery(identity=...)`.
            options: fmr or threshold, faces.
        """
        with _well_formed():
            known = other if isinstance(other, messages.IdentityQuery) else query_of(other)
            request = messages.VerifyRequest(probe=query_of(probe), other=known, **options)
        return self._call("POST", f"{_of(index)}/verify", messages.VerifyResponse, request)

    def identify(self, index: str, queries: Sequence[Probe], **options: Any) -> messages.IdentifyResponse:
        """Find out who each query shows.

        Args:
            index: NAME.
            queries: images, vectors or ids.
            options: of `messages.IdentifyRequest`: scopes, hint, fpir, threshold, never_ask, margin, faces.
        """
        with _well_formed():
            request = messages.IdentifyRequest(queries=_queries_of(queries), **options)
        return self._call("POST", f"{_of(index)}/identify", messages.IdentifyResponse, request)

    def enrol(
        self,
        index: str,
        identity: str,
        *,
        images: Sequence[bytes] = (),
        vectors: Sequence[NDArray[np.float32]] | NDArray[np.float32] = (),
        **options: Any,
    ) -> messages.EnrolResponse:
        """Add images or vectors of an identity; they are found once this returns.

        Args:
            index: NAME.
            identity: the label.
            images: files' bytes.
            vectors: (D,) each, of the index's embedder.
            options: of `messages.EnrolRequest`: attributes, ids, quality.
        """
        with _well_formed():
            request = messages.EnrolRequest(
                identity=identity,
                images=[_image_of(image) for image in _several(images, "images")],
                vectors=[np.asarray(vector).tolist() for vector in vectors],
                **options,
            )
        return self._call("POST", f"{_of(index)}/enrol", messages.EnrolResponse, request)

    def update(
        self,
        index: str,
        id: str,
        *,
        attributes: Mapping[str, messages.Scalar] | None = None,
        label: str | None = None,
    ) -> messages.ChangeResponse:
        """Change attributes or label of an item."""
        with _well_formed():
            request = messages.UpdateRequest(
                attributes=None if attributes is None else dict(attributes), label=label
            )
        return self._call("PATCH", f"{_of(index)}/items/{_path(id)}", messages.ChangeResponse, request)

    def forget(self, index: str, id: str) -> messages.ChangeResponse:
        """Remove an item: no search answers with it any more."""
        return self._call("DELETE", f"{_of(index)}/items/{_path(id)}", messages.ChangeResponse)

    def forget_identity(self, index: str, identity: str) -> messages.ChangeResponse:
        """Remove all items of an identity."""
        return self._call("DELETE", f"{_of(index)}/identities/{_path(identity)}", messages.ChangeResponse)

    def item(self, index: str, id: str) -> messages.Item:
        """An item's label and attributes."""
        return self._call("GET", f"{_of(index)}/items/{_path(id)}", messages.Item)

    def picture(self, index: str, id: str) -> bytes:
        """An item's image file."""
        return self._send("GET", f"{_of(index)}/pictures/{_path(id)}", None).content

    def indexes(self) -> messages.IndexList:
        """The indexes that are served."""
        return self._call("GET", "/v1/indexes", messages.IndexList)

    def index(self, name: str) -> messages.IndexDetail:
        """An index with its columns, versions and thresholds."""
        return self._call("GET", _of(name), messages.IndexDetail)

    def models(self) -> messages.ModelList:
        """The models that embed queries."""
        return self._call("GET", "/v1/models", messages.ModelList)

    def ready(self) -> messages.Readiness:
        """Raises ServiceError while indexes are being opened."""
        return self._call("GET", "/readyz", messages.Readiness)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _call(self, method: str, path: str, kind: type[R], request: messages.Message | None = None) -> R:
        answer = self._send(method, path, request)
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError:
            raise self._another_server(answer) from None

    def _another_server(self, answer: httpx.Response) -> Unreachable:
        return Unreachable(
            f"A dml service must answer at {self._address}; something else answered with status "
            f"{answer.status_code}. Check the address; `dml serve` prints it."
        )

    def _send(self, method: str, path: str, request: messages.Message | None) -> httpx.Response:
        content = None if request is None else request.model_dump_json(exclude_none=True)
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            answer = self._http.request(method, path, content=content, headers=headers)
        except httpx.HTTPError as error:
            raise Unreachable(
                f"The service at {self._address} must answer; {error or type(error).__name__}. Start it: "
                "dml serve."
            ) from error
        if answer.is_success:
            return answer
        try:
            problem = messages.ErrorResponse.model_validate_json(answer.content).error
        except ValidationError:
            raise self._another_server(answer) from None
        after = answer.headers.get("Retry-After", "")
        raise ServiceError(answer.status_code, problem, float(after) if after.isdecimal() else None)


def query_of(probe: Probe) -> Any:
    """A query of an image file's bytes, a vector or an id.

    Raises:
        InvalidSetting: it is none of them.
    """
    if isinstance(probe, bytes):
        return messages.ImageQuery(image=_image_of(probe))
    if isinstance(probe, str):
        return messages.IdQuery(id=probe)
    if np.ndim(probe) != 1:
        raise InvalidSetting(
            "A query must be an image file's bytes, a vector (D,) or an item's id; got "
            f"{type(probe).__name__}. Of a file: Path(...).read_bytes()."
        )
    return messages.VectorQuery(vector=np.asarray(probe).tolist())


def _queries_of(queries: Sequence[Probe]) -> list[Any]:
    return [query_of(each) for each in _several(queries, "queries")]


def _several(given: Sequence[Any], name: str) -> Sequence[Any]:
    """Of one text or file, each character would be taken for a query."""
    if isinstance(given, str | bytes):
        raise InvalidSetting(
            f"{name} must be several; got one {type(given).__name__}. Write [...] around it."
        )
    return given


def _image_of(content: bytes) -> messages.Image:
    if not isinstance(content, bytes | bytearray | memoryview) or not len(content):
        raise InvalidSetting(
            f"An image must be a file's bytes; got {content!r:.60}. Of a file: Path(...).read_bytes()."
        )
    return messages.Image.of(content)


@contextmanager
def _well_formed() -> Iterator[None]:
    """Raise what the description of the service refuses as a mistake of the caller."""
    try:
        yield
    except ValidationError as error:
        mistakes = error.errors(include_url=False, include_input=False)
        said = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in mistakes[:3])
        raise InvalidSetting(
            f"A request must be as dml.serving.app.messages describes it; got {said}. Correct it."
        ) from None


def _checked_address(address: str) -> httpx.URL:
    try:
        url = httpx.URL(address)
        reason = "" if url.scheme in ("http", "https") and url.host else "it begins with no http://HOST"
    except httpx.InvalidURL as error:
        reason = str(error)
    if reason:
        raise InvalidSetting(
            f"address must be such as http://127.0.0.1:8000; got {address!r}: {reason}. Correct it."
        )
    return url


def _of(index: str) -> str:
    return f"/v1/indexes/{_path(index)}"


def _path(id: str) -> str:
    """As one part of a path; `.` and `..`, which `quote` leaves, would be taken for folders."""
    try:
        return quote(id, safe="").replace(".", "%2E")
    except UnicodeEncodeError:
        raise InvalidSetting(f"An id must be UTF-8; got {id!r}. Write it whole.") from None
