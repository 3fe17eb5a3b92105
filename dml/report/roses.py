"""Embeddings of two dimensions: unit vectors are points on a circle, drawn as a histogram of directions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dml.report import style

_BINS = 180  # of two degrees each
_TALLEST = 0.75  # of the circle's radius
_MOST_NAMED = 16  # names around one circle


@dataclass(frozen=True)
class Rose:
    """One circle: what is on it and what is written above."""

    title: str
    vectors: NDArray[np.float32]
    """(N, 2), unit length."""
    labels: NDArray[np.int64]
    """(N,) class ids."""
    names: Mapping[int, str]
    """Of every class."""


def draw_roses(roses: Sequence[Rose]) -> bytes:
    """Circles side by side, PNG: bars grow outward with the square root of how many items look that way.

    A bar is stacked of the classes in it; a class is written where its mean direction points.
    """
    classes = sorted({int(label) for rose in roses for label in rose.labels})
    look = {label: style.COLOURS[number % len(style.COLOURS)] for number, label in enumerate(classes)}
    hatched = {label for number, label in enumerate(classes) if number // len(style.COLOURS) % 2}
    columns = min(len(roses), 4)
    lines = -(-len(roses) // columns)
    with style.figure(3.6 * columns, 3.9 * lines) as (figure, out):
        for number, rose in enumerate(roses, start=1):
            _draw(figure.add_subplot(lines, columns, number, projection="polar"), rose, look, hatched)
    return out.getvalue()


def _draw(axes: Any, rose: Rose, look: Mapping[int, str], hatched: set[int]) -> None:
    angles = np.arctan2(rose.vectors[:, 1], rose.vectors[:, 0]) % (2 * np.pi)
    bins = np.minimum((angles / (2 * np.pi) * _BINS).astype(int), _BINS - 1)
    counts = {int(label): np.bincount(bins[rose.labels == label], minlength=_BINS) for label in look}
    totals = np.sum(list(counts.values()), axis=0)
    heights = _TALLEST * np.sqrt(totals / max(totals.max(), 1))
    share = heights / np.maximum(totals, 1)
    centres, width = (np.arange(_BINS) + 0.5) * 2 * np.pi / _BINS, 2 * np.pi / _BINS
    bottom = np.ones(_BINS)
    for label, count in counts.items():
        axes.bar(
            centres,
            count * share,
            width=width,
            bottom=bottom,
            color=look[label],
            linewidth=0,
            hatch="////" if label in hatched else None,
            edgecolor="white",
        )
        bottom = bottom + count * share
    axes.plot(np.linspace(0, 2 * np.pi, 200), np.ones(200), color=style.INK, linewidth=0.8)
    _write_names(axes, rose, angles, look)
    axes.set_ylim(0, 1 + _TALLEST + 0.25)
    axes.set_axis_off()
    axes.set_title(rose.title, loc="center")


def _write_names(axes: Any, rose: Rose, angles: NDArray[np.floating], look: Mapping[int, str]) -> None:
    """Inside the circle, on a spoke that is as long as the class is of one mind."""
    present = np.unique(rose.labels)
    if len(present) > _MOST_NAMED:
        return
    for label in present:
        mean = np.exp(1j * angles[rose.labels == label]).mean()
        direction, length = np.angle(mean), abs(mean)
        axes.plot([direction] * 2, [0, 0.8 * length], color=look[int(label)], linewidth=1.4)
        axes.text(
            direction,
            0.8 * length + 0.1,
            style.short(rose.names[int(label)], 10),
            color=look[int(label)],
            ha="center",
            va="center",
            fontsize=9,
            fontweight="bold",
        )
