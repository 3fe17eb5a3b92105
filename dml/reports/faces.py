"""Where a face is in a picture, for the answers to each face."""

from typing import Self

from pydantic import Field

from dml.reports.result import Result


class Box(Result):
    """A rectangle in pixels of the picture upright."""

    left: float
    top: float
    width: float
    height: float

    @classmethod
    def of(cls, box: tuple[float, float, float, float]) -> Self:
        """Of (left, top, width, height)."""
        return cls(**dict(zip(cls.model_fields, box, strict=True)))


class FaceBox(Result):
    """A face that a detector has found."""

    box: Box
    score: float = Field(description="of the detector, [0, 1]")
