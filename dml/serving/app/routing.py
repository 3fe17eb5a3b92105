"""What routes share: the service, permissions, and the statuses that every route may answer with."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from fastapi import Depends, Path, Request

from dml.names import MAX_LENGTH
from dml.serving.app.audit import Action
from dml.serving.app.keys import Caller, Permission
from dml.serving.app.messages import ErrorResponse
from dml.serving.app.problems import Refused
from dml.serving.app.service import Service
from dml.serving.app.writes import Audited, WriteProgress

_STATUSES = {
    400: "The request is malformed.",
    401: "There is no key, or it is none of this service's.",
    403: "The key does not permit it; or the service was called by another name.",
    404: "There is no such index, item or identity.",
    405: "The path has other methods.",
    408: "The body did not arrive in time.",
    409: "It cannot be done as things are: not calibrated, made by another model, or the id is taken.",
    413: "The body or an image is too large.",
    415: "The body is not said to be JSON.",
    422: "The request is not as described.",
    429: "Too many queries; try again after Retry-After seconds.",
    500: "An error of the service; its log has it under the request_id.",
    503: "Overloaded, not ready or too slow; try again after Retry-After seconds.",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorResponse, "description": text} for status, text in _STATUSES.items()
}


# Coroutines, since they wait for nothing: FastAPI calls a plain function in a thread, in each request.
async def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


TheService = Annotated[Service, Depends(_service)]
Name = Annotated[str, Path(description="of the index", max_length=MAX_LENGTH, examples=["shop"])]


def permitted(permission: Permission) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency: the caller, who has a permission in the gallery that the path names."""

    async def caller(request: Request) -> Caller:
        caller: Caller = request.state.caller
        gallery = request.path_params.get("name")
        if not caller.may(permission, gallery):
            raise Refused(
                403,
                "forbidden",
                f"A key must have the permission {permission}" + (f" in {gallery}" if gallery else ""),
                f"key {caller.id} has not",
                "Ask the operator for another key.",
            )
        return caller

    return caller


def _of_whole_store(permission: Permission) -> Callable[[Request], Awaitable[Caller]]:
    """A dependency: the caller, who has a permission in all galleries, as of what belongs to none of them."""

    async def caller(request: Request) -> Caller:
        caller: Caller = request.state.caller
        if caller.galleries or not caller.may(permission, None):
            raise Refused(
                403,
                "forbidden",
                f"A key must have the permission {permission} in all galleries, as this is of none alone",
                f"key {caller.id} has not",
                "Ask the operator for another key.",
            )
        return caller

    return caller


Reader = Annotated[Caller, Depends(permitted("read"))]
Enroller = Annotated[Caller, Depends(permitted("enrol"))]
Forgetter = Annotated[Caller, Depends(permitted("forget"))]
Admin = Annotated[Caller, Depends(permitted("admin"))]
WholeStoreReader = Annotated[Caller, Depends(_of_whole_store("read"))]
WholeStoreAdmin = Annotated[Caller, Depends(_of_whole_store("admin"))]


def audited(
    request: Request,
    action: Action,
    gallery: str,
    *,
    identity: str | None = None,
    ids: Sequence[str] = (),
) -> Audited:
    """What the caller of a request is about to do, for the audit log; `gallery` is that or a dataset."""
    caller: Caller = request.state.caller
    address = "" if request.client is None else request.client.host
    request.state.write = progress = WriteProgress()  # for `Guard`, should the request be given up
    return Audited(
        who=caller.label,
        address=address,
        request_id=request.state.request_id,
        action=action,
        gallery=gallery,
        progress=progress,
        identity=identity,
        ids=tuple(ids),
    )


async def _limit_rate(request: Request) -> Callable[[int], None]:
    """Counts more queries of a request than one against the caller's rate."""
    limit: Callable[[int], None] = request.state.limit_rate
    return limit


LimitRate = Annotated[Callable[[int], None], Depends(_limit_rate)]
