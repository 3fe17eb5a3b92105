"""A client of the service: Python values in, HTTP, typed answers out.

with Client("http://127.0.0.1:8000") as client:
    answer = client.search("shop", [Path("shirt.jpg").read_bytes()], k=3)
    print(answer.results[0].answers[0].id)
"""

import re
from collections.abc import Mapping, Sequence
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
        InvalidSetting: what cannot be an address, or cannot be a key.
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
        try:
            self._http = httpx.Client(
                base_url=address, headers=headers, timeout=timeout_s, transport=transport
            )
        except httpx.InvalidURL as error:
            raise InvalidSetting(
                f"address must be such as http://127.0.0.1:8000; got {address!r}: {error}. Correct it."
            ) from None

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
        request = messages.SearchRequest(
            queries=[query_of(each) for each in queries], k=k, filter=filter, **options
        )
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
        request = messages.IdentifyRequest(queries=[query_of(each) for each in queries], **options)
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
        request = messages.EnrolRequest(
            identity=identity,
            images=[messages.Image.of(image) for image in images],
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
    """A query of an image file's bytes, a vector or an id."""
    if isinstance(probe, bytes):
        return messages.ImageQuery(image=messages.Image.of(probe))
    if isinstance(probe, str):
        return messages.IdQuery(id=probe)
    return messages.VectorQuery(vector=np.asarray(probe).tolist())


def _of(index: str) -> str:
    return f"/v1/indexes/{_path(index)}"


def _path(id: str) -> str:
    """As one part of a path; `.` and `..`, which `quote` leaves, would be taken for folders."""
    return quote(id, safe="").replace(".", "%2E")
