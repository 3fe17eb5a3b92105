"""What the routes share that answer each face of a picture."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from dml.faces import Region
from dml.reports import Box
from dml.serving.app import messages
from dml.serving.app.opened import OpenIndex
from dml.serving.app.problems import Refused
from dml.serving.app.service import Service, Stages

A = TypeVar("A")
F = TypeVar("F")
Faces: TypeAlias = list[list[tuple[Region, NDArray[np.float32]]]]
"""Of each picture its faces, each with its embedding (D,)."""


async def find_faces(
    service: Service,
    opened: OpenIndex,
    stages: Stages,
    queries: Sequence[Any],
    limit_rate: Callable[[int], None],
    *,
    times: int = 1,
) -> Faces:
    """The faces of each query; each beyond the first of its picture counts against the caller's rate.

    Args:
        times: searches of each.

    Raises:
        Refused: a query that is no image, or beyond a limit.
    """
    images = [query.image for query in queries if isinstance(query, messages.ImageQuery)]
    if len(images) < len(queries):
        raise Refused(
            422,
            "invalid_request",
            "Queries must be images where all faces are asked for",
            f"{len(queries) - len(images)} of {len(queries)} are not",
            "Leave faces out.",
        )
    faces = await service.faces(opened, stages, images)
    limit_rate(sum(max(len(of_picture) - 1, 0) for of_picture in faces) * times)
    return faces


def vectors_of(faces: Faces) -> list[NDArray[np.float32]]:
    """Of all faces, in order."""
    return [vector for of_picture in faces for _, vector in of_picture]


def by_picture(faces: Faces, answers: Iterable[A], made: Callable[[A, Box, float], F]) -> list[list[F]]:
    """The answers to `vectors_of(faces)`, each with its face's box and score, in a list of each picture."""
    each_answer = iter(answers)
    return [
        [made(next(each_answer), Box.of(region.box), region.score) for region, _ in each] for each in faces
    ]
