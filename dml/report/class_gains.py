"""Charts of the difference between two embeddings for each class."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from dml.report import style
from dml.report.findings import ClassGain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_MOST_NAMED = 40  # classes whose names fit below their bars


def draw_class_gains(
    gains: Sequence[ClassGain], names: Mapping[int, str], candidates: tuple[str, str]
) -> bytes:
    """A bar per class, sorted by its gain, and a dot per class by both its means; PNG.

    Args:
        gains: as `class_gains` sorts them; at least one.
        names: of every class.
        candidates: what the first and the second are called.
    """
    with style.figure(12.4, 4.9) as (figure, out):
        bars, dots = figure.subplots(1, 2, width_ratios=(1.75, 1))
        plot_bars(bars, gains, names, candidates)
        plot_dots(dots, gains, candidates)
    return out.getvalue()


def plot_bars(
    axes: "Axes", gains: Sequence[ClassGain], names: Mapping[int, str], candidates: tuple[str, str]
) -> None:
    """Bars of gains: above the line the first embedding is better; dashed: the mean over all queries."""
    values = np.array([by_class.gain for by_class in gains])
    named = len(gains) <= _MOST_NAMED
    axes.bar(np.arange(len(gains)), values, width=0.8 if named else 1.0, color=_colors(gains))
    axes.axhline(0, color=style.INK, linewidth=0.8)
    mean = float(np.average(values, weights=[by_class.num_queries for by_class in gains]))
    axes.axhline(mean, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)))
    axes.annotate(
        f"all queries {mean:+.3f}",
        (1, mean),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
        fontsize=9,
    )
    if named:
        words = [style.short(names[gain.label], 18) for gain in gains]
        axes.set_xticks(np.arange(len(gains)), words, rotation=60, ha="right", rotation_mode="anchor")
        axes.tick_params(axis="x", labelsize=8, length=0)
    else:
        axes.set_xlabel(f"{len(gains):,} classes, the largest gain first")
    axes.set_xlim(-0.7, len(gains) - 0.3)
    axes.margins(y=0.1)
    axes.set_ylabel("MAP@R of a class, first minus second")
    first, second = (style.short(name, 30) for name in candidates)
    axes.set_title(f"above 0 {first} is better, below {second}")


def plot_dots(axes: "Axes", gains: Sequence[ClassGain], candidates: tuple[str, str]) -> None:
    """Scatter plot: both are equal on the diagonal; the size of a dot is the number of queries."""
    sizes = np.array([gain.num_queries for gain in gains])
    most = 1.05 * max(max(gain.first, gain.second, 0.01) for gain in gains)
    axes.plot([0, most], [0, most], color=style.FAINT, linewidth=1, zorder=0)
    axes.scatter(
        [gain.second for gain in gains],
        [gain.first for gain in gains],
        s=10 + 30 * sizes / sizes.max(),
        color=_colors(gains),
        alpha=0.65,
        linewidths=0,
    )
    axes.set(xlim=(-0.03 * most, most), ylim=(-0.03 * most, most), aspect="equal")
    axes.set_xlabel(f"MAP@R of {style.short(candidates[1], 30)}")
    axes.set_ylabel(f"MAP@R of {style.short(candidates[0], 30)}")
    axes.set_title("a dot is a class")


def _colors(gains: Sequence[ClassGain]) -> list[str]:
    return [style.FIRST if gain.gain > 0 else style.SECOND for gain in gains]
