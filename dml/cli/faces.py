"""The option of the verbs that answer each face of a picture, and how its answers are made and shown."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dml.errors import InvalidSetting

if TYPE_CHECKING:
    from dml.reports import FaceBox
    from dml.serving.searcher import FaceAnswer

    F = TypeVar("F", bound=FaceBox)

Faces = Annotated[
    str,
    typer.Option(help="main: of several faces in a picture the largest is the query; all: each, by itself"),
]
_CHOICES = ("main", "all")


def wants_all(faces: str) -> bool:
    """Whether each face is wanted; raises InvalidSetting for another word."""
    if faces not in _CHOICES:
        raise InvalidSetting(f"--faces must be main or all; got {faces!r}.")
    return faces == "all"


def require_image(probe: object, path: Path | None) -> bytes:
    """The bytes of the picture in which faces are found; raises InvalidSetting for another query.

    Args:
        probe: the query, as it was read.
        path: of its file, for the message; None: it is an item or a vector.
    """
    if not isinstance(probe, bytes):
        got = "an item or a vector" if path is None else str(path)
        raise InvalidSetting(f"--faces all needs an image file, in which faces are found; got {got}.")
    return probe


def faces_of(kind: "type[F]", answers: "Sequence[FaceAnswer[Any]]") -> "list[F]":
    """Each face with its box and what a result says of it."""
    from dml.reports import Box

    return [kind(**dict(face.answer), box=Box.of(face.box), score=face.score) for face in answers]


def show_faces(faces: "Sequence[F]", show: "Callable[[F], None]") -> None:
    """Print a line about each face, and below it what was answered; or that the picture shows none."""
    if not faces:
        print("no face is found in the picture")
    for number, face in enumerate(faces, 1):
        box = face.box
        print(
            f"face {number}: {box.width:.0f} x {box.height:.0f} pixels at ({box.left:.0f}, {box.top:.0f}), "
            f"score {face.score:.2f}"
        )
        show(face)
