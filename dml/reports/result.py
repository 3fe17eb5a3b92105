"""Base of all results: whole, or with what is wrong beside it."""

from pydantic import BaseModel, ConfigDict, Field


class Result(BaseModel):
    """Base of all results."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class PartialResult(Result):
    """A result that can be incomplete: the rest is there, and `error` says what is wrong."""

    error: str | None = Field(
        None,
        description="what is wrong; absent where nothing is. The exit status is then not 0",
        exclude_if=lambda error: error is None,
    )
