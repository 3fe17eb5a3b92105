"""Two-dimensional embeddings with their lengths: points of a plane above the circles of their directions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dml.report import style
from dml.report.circle_histogram import CircleHistogram, class_color, draw_circle

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 4


@dataclass(frozen=True)
class PlanePoints:
    """Embeddings that keep their lengths, and the circle of the same network."""

    points: NDArray[np.float32]
    """(N, 2), any length."""
    labels: NDArray[np.int64]
    """(N,) class ids."""
    circle: CircleHistogram


def draw_planes(planes: Sequence[PlanePoints]) -> bytes:
    """Each plane, on its own scale, above its circle, PNG; a class has the same colour everywhere."""
    classes = sorted({int(label) for plane in planes for label in plane.circle.labels})
    columns = min(len(planes), _COLUMNS)
    lines = -(-len(planes) // columns)
    with style.figure(3.5 * columns, 7.4 * lines) as (figure, out):
        for number, plane in enumerate(planes):
            line, column = divmod(number, columns)
            at = 2 * line * columns + column + 1
            _draw_points(figure.add_subplot(2 * lines, columns, at), plane, classes)
            draw_circle(figure.add_subplot(2 * lines, columns, at + columns), plane.circle, classes)
    return out.getvalue()


def _draw_points(axes: "Axes", plane: PlanePoints, classes: Sequence[int]) -> None:
    for axis in (axes.axhline, axes.axvline):
        axis(0, color=style.FAINT, linewidth=0.6, zorder=0)
    for label in np.unique(plane.labels).tolist():
        points = plane.points[plane.labels == label]
        color = class_color(label, classes)
        axes.scatter(points[:, 0], points[:, 1], s=3, color=color, linewidths=0)
    reach = 1.05 * max(float(np.abs(plane.points).max(initial=0)), 1e-12)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), aspect="equal")
    axes.tick_params(labelsize=8)
