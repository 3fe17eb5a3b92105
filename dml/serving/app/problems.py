"""The one form of all errors: an exception in, a status and `messages.Problem` out."""

import re
from collections.abc import Mapping
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from dml.errors import (
    CorruptArtifact,
    DmlError,
    GalleryUnavailable,
    IncompatibleArtifact,
    InvalidData,
    InvalidFilter,
    InvalidSetting,
    MissingArtifact,
    StorageUnavailable,
    Unreachable,
    WriteCommitted,
    without_password,
)
from dml.faces import NoFace
from dml.preprocessing import OversizedImage, UnreadableImage
from dml.serving.app.messages import ErrorResponse, Problem

MAX_TEXT = 600
_PARTS = re.compile(r"(?P<must>.+?)(?:; (?P<got>.+?))?\.(?: (?P<do>.*))?", re.DOTALL)
_SHOWN_MISTAKES = 3


class Refused(Exception):
    """A request that is not answered.

    Args:
        status: of HTTP.
        code: of the problem.
        must: what must hold.
        got: what came.
        do: what to do.
        retry_after: seconds after which it may go well.
        write_committed: whether what was to be written is durable all the same.
        is_write_unknown: that is not known.
    """

    def __init__(
        self,
        status: int,
        code: str,
        must: str,
        got: str = "",
        do: str = "",
        *,
        retry_after: int | None = None,
        write_committed: bool | None = None,
        is_write_unknown: bool = False,
    ) -> None:
        super().__init__(f"{must}; {got}. {do}")
        self.status, self.code, self.must, self.got, self.do = status, code, must, got, do
        self.retry_after, self.write_committed = retry_after, write_committed
        self.is_write_unknown = is_write_unknown


_OF_ERRORS: tuple[tuple[type[Exception], int, str], ...] = (
    (WriteCommitted, 503, "write_committed"),
    (GalleryUnavailable, 503, "unavailable"),
    (OversizedImage, 413, "too_many_pixels"),
    (UnreadableImage, 422, "unreadable_image"),
    (NoFace, 422, "no_face"),
    (InvalidFilter, 422, "invalid_filter"),
    (InvalidSetting, 422, "invalid_request"),
    (InvalidData, 422, "invalid_request"),
    (MissingArtifact, 404, "not_found"),
    (IncompatibleArtifact, 409, "incompatible"),
    (CorruptArtifact, 503, "damaged"),
    (Unreachable, 503, "unavailable"),
    (DmlError, 409, "refused"),
)
_OF_STATUS = {
    400: (
        "malformed",
        "A request must be well-formed HTTP with a JSON body",
        "See /openapi.json for what it may hold.",
    ),
    404: ("not_found", "A path must be one of the service's", "See /openapi.json for those there are."),
    405: (
        "method_not_allowed",
        "A path must be asked with one of its methods",
        "See the header Allow.",
    ),
    413: ("too_large", "A body must be within the limit", "Send less."),
    415: ("unsupported_media_type", "A body must be JSON", "Send Content-Type: application/json."),
}


def told(error: Exception) -> str:
    """An error's message for clients: without the address and the bucket of the store."""
    text = str(error)
    for unreached in (error, error.__cause__):
        if isinstance(unreached, StorageUnavailable):
            text = text.replace(str(unreached), "The store must answer; it does not. Try again later.")
    return text


def refusal_of(error: Exception, *, hide: str = "") -> Refused:
    """What to answer instead of an exception.

    Args:
        error: raised while a request was answered.
        hide: the store's URI, which is nothing to a client.
    """
    if isinstance(error, Refused):
        return error
    if isinstance(error, RequestValidationError):
        return _of_validation(error)
    for kind, status, code in _OF_ERRORS:
        if isinstance(error, kind):
            text = without_password(told(error).replace(f"{hide}/", "") if hide else told(error))
            refused = _split(status, code, text, retry_after=5 if status == 503 else None)
            refused.write_committed = True if kind is WriteCommitted else None
            return refused
    if isinstance(error, HTTPException):
        code, must, do = _OF_STATUS.get(error.status_code, ("refused", "A request must be allowed", ""))
        return Refused(error.status_code, code, must, f"got {error.status_code}", do)
    return Refused(
        500,
        "internal",
        "A request must be answered",
        "an unexpected error came instead",
        "The service's log has it under this request_id; report it.",
    )


def _split(status: int, code: str, message: str, *, retry_after: int | None = None) -> Refused:
    """A message of `dml.errors`, "A must B; got C. Do D.", in its three parts."""
    parts = _PARTS.fullmatch(message)
    if parts is None:
        return Refused(status, code, message, retry_after=retry_after)
    got, do = parts["got"] or "", parts["do"] or ""
    return Refused(status, code, parts["must"], got, do, retry_after=retry_after)


def _of_validation(error: RequestValidationError) -> Refused:
    """Where the mistakes are and what they are; never the values, which may be somebody's picture."""
    mistakes = error.errors()
    if any(mistake["type"] == "json_invalid" for mistake in mistakes):
        return Refused(400, "malformed", "A body must be JSON", "it cannot be read", "Send one JSON object.")
    if any(mistake["loc"] == ("body",) and isinstance(mistake.get("input"), bytes) for mistake in mistakes):
        code, must, do = _OF_STATUS[415]  # curl -d says that it is a form
        return Refused(415, code, must, "one of another Content-Type came, or of none", do)
    said = [f"{_field(mistake['loc'])}: {mistake['msg']}" for mistake in mistakes[:_SHOWN_MISTAKES]]
    more = f"; and {len(mistakes) - len(said)} more" if len(mistakes) > len(said) else ""
    return Refused(
        422,
        "invalid_request",
        "A request must be as /openapi.json describes it",
        "; ".join(said) + more,
        "Correct what is named.",
    )


def _field(location: tuple[Any, ...]) -> str:
    return ".".join(str(part) for part in location if part != "body") or "body"


def clean(text: str) -> str:
    """A text that can be sent: cut, and without what UTF-8 cannot hold."""
    cut = text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}..."
    return cut.encode("utf-8", "replace").decode()


def problem_of(refused: Refused, request_id: str) -> str:
    """The JSON of an error."""
    problem = Problem(
        code=refused.code,
        must=clean(refused.must),
        got=clean(refused.got),
        do=clean(refused.do),
        request_id=request_id,
    )
    if refused.write_committed is not None or refused.is_write_unknown:
        problem.write_committed = refused.write_committed
    return ErrorResponse(error=problem).model_dump_json(exclude_unset=True)


def response_of(refused: Refused, request_id: str, headers: Mapping[str, str] | None = None) -> Response:
    """The answer of a request that is refused."""
    more = dict(headers or {})
    if refused.retry_after is not None:
        more["Retry-After"] = str(refused.retry_after)
    if refused.status == 401:
        more["WWW-Authenticate"] = "Bearer"
    return Response(
        problem_of(refused, request_id),
        status_code=refused.status,
        media_type="application/json",
        headers=more,
    )
