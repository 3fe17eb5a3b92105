"""For who runs or calls the service: is it alive, is it ready, what is wrong."""

from typing import Literal

from pydantic import ConfigDict, Field

from dml.serving.app.messages.base import Message


class Health(Message):
    """Whether the process answers."""

    status: Literal["ok"] = "ok"
    version: str = Field(description="of this program")


class Readiness(Message):
    """Whether requests can be answered: there are indexes to search, all of them opened."""

    status: Literal["ready"] = "ready"
    indexes: list[str] = Field(description="NAME@VERSION of those that the caller may read")


class Problem(Message):
    """What is wrong: what must hold, what came, what to do."""

    code: str = Field(description="what kind of error, such as not_found; stable")
    must: str = Field(description="what must hold")
    got: str = Field(description="what came instead; empty: `must` says it")
    do: str = Field(description="what to do; empty: `must` says it")
    request_id: str = Field(description="also in the header X-Request-Id and in the log")
    write_committed: bool | None = Field(
        None,
        description="of a write that is not acknowledged. true: it is durable; do not write it again. null: "
        "it may be durable, now or soon; the same write with the same ids is safe. false, or left out: "
        "nothing was written",
    )


class ErrorResponse(Message):
    """Every error has this form."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "error": {
                        "code": "not_found",
                        "must": "An index must exist",
                        "got": "there is no shopp",
                        "do": "Did you mean 'shop'?",
                        "request_id": "0f8fad5bd9cb",
                    }
                }
            ]
        }
    )

    error: Problem
