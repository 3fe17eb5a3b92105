"""The charts of a dataset's report: how many images a class has, and how large they are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from dml.report import style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_BINS = 40
_LOGARITHMIC_FROM = 50  # times the smallest


def draw_class_sizes(sizes: Mapping[str, NDArray[np.int64]]) -> bytes:
    """How many classes have how many images, by split; PNG.

    Args:
        sizes: split to (C,) images of each of its classes, at least one.
    """
    with style.figure(7.6, 3.4) as (figure, out):
        axes = figure.add_subplot()
        _plot(axes, {name: each.astype(np.float64) for name, each in sizes.items()}, whole=True)
        axes.set_xlabel("images of a class")
        axes.set_ylabel("classes")
        axes.legend()
    return out.getvalue()


def draw_image_sizes(width: NDArray[np.int64], height: NDArray[np.int64]) -> bytes:
    """How many images have which shorter side, and which proportions where these differ; PNG.

    Args:
        width: (N,) pixels.
        height: (N,) pixels.
    """
    proportions = width / height
    differ = bool(np.ptp(proportions))
    with style.figure(8.6, 3.2) as (figure, out):
        sides, *others = figure.subplots(1, 1 + differ, squeeze=False)[0]
        _plot(sides, {"": np.minimum(width, height).astype(np.float64)}, whole=True)
        sides.set_xlabel("shorter side, pixels")
        sides.set_ylabel("images")
        for ratios in others:
            _plot(ratios, {"": proportions}, whole=False)
            ratios.set_xlabel("width / height")
    return out.getvalue()


def histogram_edges(values: NDArray[np.float64], *, whole: bool) -> NDArray[np.float64]:
    """Edges of about 40 bins at most; logarithmic where the largest value is 50 times the smallest or more.

    Args:
        values: (N,), positive, at least one.
        whole: whether they are whole numbers: then every bin holds the same number of them, but for
            logarithmic ones.
    """
    low, high = float(values.min()), float(values.max())
    if high >= _LOGARITHMIC_FROM * low:
        edges = np.geomspace(low, high, _MOST_BINS + 1)
        return np.append(np.unique(np.floor(edges[:-1])), high + 1) - 0.5 if whole else edges
    if whole:
        step = np.ceil((high - low + 1) / _MOST_BINS)
        return np.arange(low - 0.5, high + step, step)
    if low == high:
        return np.array([low - 0.5, high + 0.5])
    return np.linspace(low, high, _MOST_BINS + 1)


def _plot(axes: "Axes", groups: Mapping[str, NDArray[np.float64]], *, whole: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    edges = histogram_edges(np.concatenate(list(groups.values())), whole=whole)
    for number, (name, values) in enumerate(groups.items()):
        counts, _ = np.histogram(values, edges)
        color = style.COLORS[number]
        axes.stairs(counts, edges, fill=True, alpha=0.35, color=color, label=name)
        axes.stairs(counts, edges, color=color, linewidth=1.2)
    if not np.allclose(np.diff(edges), edges[1] - edges[0]):
        axes.set_xscale("log")
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=whole))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_ylim(bottom=0)
