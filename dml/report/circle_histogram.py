"""Circular histograms of two-dimensional embeddings, whose unit vectors are points on a circle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dml.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_BINS = 120  # of three degrees each
_TALLEST = 0.75  # of the circle's radius
_TITLE_ROOM = 0.55  # of two lines above a circle, in its radius; a title of matplotlib's is cut off
_MOST_NAMED = 16  # names around one circle


@dataclass(frozen=True)
class CircleHistogram:
    """The data and title of one circle."""

    title: str
    vectors: NDArray[np.float32]
    """(N, 2), unit length."""
    labels: NDArray[np.int64]
    """(N,) class ids."""
    names: Mapping[int, str]
    """Of every class."""


def draw_circle_histograms(histograms: Sequence[CircleHistogram]) -> bytes:
    """Circles side by side, PNG: the length of a bar is the square root of its number of items.

    A bar is stacked of the classes in it; a class is written where its mean direction points.
    """
    classes = sorted({int(label) for histogram in histograms for label in histogram.labels})
    columns = min(len(histograms), 4)
    lines = -(-len(histograms) // columns)
    with style.figure(3.5 * columns, 4.1 * lines) as (figure, out):
        for number, histogram in enumerate(histograms, start=1):
            draw_circle(figure.add_subplot(lines, columns, number), histogram, classes)
    return out.getvalue()


def draw_circle(axes: "Axes", histogram: CircleHistogram, classes: Sequence[int]) -> None:
    """One circle of a figure, with its title; `classes` are all that have a colour there."""
    _draw_bars(axes, histogram, classes)
    _draw_names(axes, histogram, classes)
    reach = 1 + _TALLEST + 0.02
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach + _TITLE_ROOM), aspect="equal")
    axes.text(0, reach + 0.05, histogram.title, ha="center", va="bottom", fontsize=11)
    axes.set_axis_off()


def class_color(label: int, classes: Sequence[int]) -> str:
    return style.RING_COLORS[classes.index(label) % len(style.RING_COLORS)]


def _draw_bars(axes: "Axes", histogram: CircleHistogram, classes: Sequence[int]) -> None:
    from matplotlib.collections import PolyCollection

    angles = np.angle(histogram.vectors[:, 0] + 1j * histogram.vectors[:, 1]) % (2 * np.pi)
    bins = np.minimum((angles / (2 * np.pi) * _BINS).astype(int), _BINS - 1)
    totals = np.bincount(bins, minlength=_BINS)
    share = _TALLEST * np.sqrt(totals / max(totals.max(), 1)) / np.maximum(totals, 1)
    bottom = np.ones(_BINS)
    for label in classes:
        top = bottom + share * np.bincount(bins[histogram.labels == label], minlength=_BINS)
        shapes = [
            _wedge(bin_number, bottom[bin_number], top[bin_number])
            for bin_number in np.flatnonzero(top > bottom).tolist()
        ]
        bars = PolyCollection(shapes, facecolor=class_color(label, classes), edgecolor="face", linewidth=0.3)
        if classes.index(label) // len(style.RING_COLORS) % 2:  # the colour's second class
            bars.set(hatch="////", edgecolor="white", linewidth=0)
        axes.add_collection(bars, autolim=False)
        bottom = top
    around = np.exp(1j * np.linspace(0, 2 * np.pi, 200))
    axes.plot(around.real, around.imag, color=style.INK, linewidth=0.8)


def _wedge(bin_number: int, low: float, high: float) -> NDArray[np.float64]:
    """(4, 2) corners of a bar; at three degrees a chord looks like its arc."""
    ends = np.exp(2j * np.pi * np.array([bin_number, bin_number + 1]) / _BINS)
    corners = np.concatenate([low * ends, high * ends[::-1]])
    return np.stack([corners.real, corners.imag], axis=1)


def _draw_names(axes: "Axes", histogram: CircleHistogram, classes: Sequence[int]) -> None:
    """Names inside the circle on a line in the mean direction; its length shows the concentration."""
    present = np.unique(histogram.labels)
    if len(present) > _MOST_NAMED:
        return
    for label in present.tolist():
        mean = histogram.vectors[histogram.labels == label].mean(0)
        end = 0.8 * mean
        x, y = end + 0.1 * mean / max(float(np.linalg.norm(mean)), 1e-12)
        color = class_color(label, classes)
        axes.plot([0, end[0]], [0, end[1]], color=color, linewidth=1.4)
        name = style.short(histogram.names[label], 10)
        axes.text(x, y, name, color=color, ha="center", va="center", fontsize=9, fontweight="bold")
