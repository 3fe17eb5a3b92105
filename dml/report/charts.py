"""Charts of a report as PNG bytes: similarities, ROC, training curves, map."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from dml.metrics.verification import OperatingPoint, RocCurve
from dml.report import style
from dml.report.projection import Map

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_UNSEEN_SHARE = 5e-4  # of a kind of pairs, at either end of its histogram
_BINS_SEEN = 50
_FEWEST_BINS, _MOST_BINS = 7, 16  # powers of two, so that the curve's counts add up exactly

_MAP_WIDTH, _MAP_COLUMNS, _LEGEND_ROW = 6.2, 2, 0.22  # inches, columns of its legend, inches

Curve = Sequence[tuple[int, float]]
"""(step, value), steps ascending."""


def operating_points(curve: RocCurve, rates: Sequence[float]) -> dict[float, OperatingPoint]:
    """The operating point of each rate; without rates that even the first impostor pair exceeds."""
    points = {rate: curve.at_false_accept_rate(rate) for rate in sorted(rates)}
    return {rate: point for rate, point in points.items() if np.isfinite(point.threshold)}


def pair_histograms(
    curve: RocCurve, *, bins: int = 2**_FEWEST_BINS
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Bin edges (bins + 1,) of similarity over [-1, 1], and the fractions of positive and negative pairs.

    Exact: they are sums of the bins in which `roc_of_all_pairs` has counted.
    """
    edges = np.linspace(-1, 1, bins + 1)
    ascending = curve.thresholds.cpu().double().flip(0).numpy()
    # Pairs at or above an edge are those that the last threshold not below it has accepted.
    last = len(ascending) - np.searchsorted(ascending, edges[:-1]) - 1
    shares = []
    for accepted in (curve.genuine.cpu(), curve.impostor.cpu()):
        at_least = accepted[torch.from_numpy(last)].double().numpy() / int(accepted[-1])
        shares.append(at_least - np.append(at_least[1:], 0.0))
    return edges, shares[0], shares[1]


def _seen(edges: NDArray[np.float64], *kinds: NDArray[np.float64]) -> tuple[float, float]:
    """The range of similarities with a visible number of pairs."""
    ends = []
    for shares in kinds:
        below = shares.cumsum()
        first, last = np.searchsorted(below, [_UNSEEN_SHARE, 1 - _UNSEEN_SHARE])
        ends.append((edges[first], edges[min(last, len(shares) - 1) + 1]))
    return min(low for low, _ in ends), max(high for _, high in ends)


def _readable_histograms(
    curve: RocCurve,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """`pair_histograms` with more bins if similarities are in a narrow range."""
    for bins in (2**power for power in range(_FEWEST_BINS, _MOST_BINS + 1)):
        histograms = pair_histograms(curve, bins=bins)
        low, high = _seen(*histograms)
        if (high - low) / 2 * bins >= _BINS_SEEN:
            break
    return histograms


def draw_similarities(curve: RocCurve, points: Mapping[float, OperatingPoint]) -> bytes:
    """Histograms of positive and negative pairs, and the thresholds at these false-accept rates."""
    with style.figure(8.6, 4.0) as (figure, out):
        plot_similarities(figure.add_subplot(), curve, points)
    return out.getvalue()


def plot_similarities(axes: "Axes", curve: RocCurve, points: Mapping[float, OperatingPoint]) -> None:
    """Two histograms, and a dashed line with a text for each threshold, the highest on top."""
    edges, positives, negatives = _readable_histograms(curve)
    for name, shares, total, color in (
        ("same class", positives, curve.genuine, style.POSITIVE),
        ("other class", negatives, curve.impostor, style.NEGATIVE),
    ):
        label = f"{name}: {int(total[-1]):,} pairs"
        axes.stairs(shares, edges, fill=True, alpha=0.35, color=color, label=label)
        axes.stairs(shares, edges, color=color, linewidth=1.2)
    top, step = float(max(positives.max(), negatives.max())), 0.09
    low, high = _seen(edges, positives, negatives)
    thresholds = [point.threshold for point in points.values()]
    low, high = min([low, *thresholds]), max([high, *thresholds])
    axes.set_xlim(low - 0.03 * (high - low), high + 0.03 * (high - low))
    axes.set_ylim(0, top * (1.04 + step * len(points)))
    for number, (rate, point) in enumerate(points.items(), start=1):
        height = top * (1.07 + step * (len(points) - number))
        axes.vlines(point.threshold, 0, height, color=style.INK, linewidth=0.9, linestyle=(0, (4, 3)))
        right = point.threshold < (low + high) / 2
        axes.annotate(
            f"≥ {point.threshold:.3f}: false accepts {style.rate_text(rate)}, "
            f"true accepts {point.true_accept_rate:.0%}",
            (point.threshold, height),
            xytext=(5 if right else -5, 0),
            textcoords="offset points",
            ha="left" if right else "right",
            va="center",
            fontsize=9,
        )
    style.whole_percent_axis(axes)
    axes.set_xlabel("cosine similarity of a pair")
    axes.set_ylabel("share of its kind of pairs")
    # On the side without texts, which are placed away from the nearer edge.
    strict_is_right = all(point.threshold >= (low + high) / 2 for point in points.values())
    axes.legend(loc="upper left" if strict_is_right else "upper right")


def draw_roc(curve: RocCurve, points: Mapping[float, OperatingPoint]) -> bytes:
    """ROC curve with a logarithmic axis of false accepts."""
    with style.figure(5.2, 4.0) as (figure, out):
        axes = figure.add_subplot()
        least = _prepare_roc(axes, [curve], list(points))
        axes.plot(*_roc_line(curve, least), color=style.POSITIVE, linewidth=1.8, drawstyle="steps-post")
        for rate, point in points.items():
            position = (max(point.false_accept_rate, least), point.true_accept_rate)
            axes.plot(*position, "o", color=style.INK, markersize=5, clip_on=False, zorder=3)
            axes.annotate(
                f"{style.rate_text(rate)}: {point.true_accept_rate:.0%}",
                position,
                xytext=(7, -11),
                textcoords="offset points",
                fontsize=9,
            )
        axes.set_title(_roc_summary(curve))
    return out.getvalue()


def draw_both_rocs(curves: Mapping[str, RocCurve], rates: Sequence[float]) -> bytes:
    """ROC curves of two embeddings on the same pairs; dots at the false-accept rates."""
    with style.figure(7.2, 4.6) as (figure, out):
        axes = figure.add_subplot()
        least = _prepare_roc(axes, list(curves.values()), rates)
        looks = ((style.FIRST, 3.2), (style.SECOND, 1.6))  # where both are one, both are seen
        for (name, curve), (color, width) in zip(curves.items(), looks, strict=True):
            label = f"{style.short(name, 40)}: {_roc_summary(curve)}"
            line = _roc_line(curve, least)
            axes.plot(*line, color=color, linewidth=width, drawstyle="steps-post", label=label)
            for point in operating_points(curve, rates).values():
                position = (max(point.false_accept_rate, least), point.true_accept_rate)
                axes.plot(*position, "o", color=color, markersize=5, clip_on=False, zorder=3)
        figure.legend(loc="outside upper left")
    return out.getvalue()


def draw_both_similarities(curves: Mapping[str, RocCurve], rates: Sequence[float]) -> bytes:
    """`plot_similarities` of two embeddings, one above the other, with separate scales."""
    with style.figure(8.6, 7.6) as (figure, out):
        panels = figure.subplots(2, 1)
        for axes, (name, curve) in zip(panels, curves.items(), strict=True):
            plot_similarities(axes, curve, operating_points(curve, rates))
            axes.set_title(style.short(name, 60))
    return out.getvalue()


def _roc_summary(curve: RocCurve) -> str:
    return f"equal error rate {curve.equal_error_rate():.1%}, area {curve.area():.4f}"


def _first_impostor(curve: RocCurve) -> int:
    return int((curve.impostor > 0).int().argmax())


def _prepare_roc(axes: "Axes", curves: Sequence[RocCurve], rates: Sequence[float]) -> float:
    """Set up axes, labels and grid; returns the smallest false-accept rate on the axis."""
    smallest = [float(curve.false_accept_rates[_first_impostor(curve)]) for curve in curves]
    least = float(10 ** np.floor(np.log10(min([*smallest, *rates, 0.1]))))
    axes.set_xscale("log")
    axes.set_xlim(least, 1)
    axes.set_ylim(0, 1.02)
    style.whole_percent_axis(axes)
    axes.set_xlabel("false accepts: share of pairs of other classes taken for one")
    axes.set_ylabel("true accepts: share of the pairs of one class that are accepted")
    axes.grid(which="major", color="#eceff1", linewidth=0.8)
    axes.set_axisbelow(True)
    return least


def _roc_line(curve: RocCurve, least: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """False and true accepts; from the left up to the first impostor, which has no logarithm."""
    false, true = curve.false_accept_rates.cpu().numpy(), curve.true_accept_rates.cpu().numpy()
    first = _first_impostor(curve)
    kept = np.arange(first, len(false))
    changes = np.flatnonzero(np.diff(false[kept], prepend=-1) > 0)
    kept = np.append(kept[changes], len(false) - 1)
    return np.append(least, false[kept]), np.append(true[max(first - 1, 0)], true[kept])


def draw_curves(curves: Mapping[str, Curve]) -> bytes:
    """Training curves over the steps, one panel per metric.

    Args:
        curves: what a panel shows to its curve; at least one.
    """
    with style.figure(4.3 * len(curves), 3.2) as (figure, out):
        panels = figure.subplots(1, len(curves), squeeze=False)[0]
        for number, (axes, (name, curve)) in enumerate(zip(panels, curves.items(), strict=True)):
            steps, values = [step for step, _ in curve], [value for _, value in curve]
            color = style.COLORS[number % len(style.COLORS)]
            axes.plot(steps, values, color=color, linewidth=1.8, marker="o", markersize=3.5)
            axes.annotate(
                f"{values[-1]:.3g}",
                (steps[-1], values[-1]),
                xytext=(6, 0),
                textcoords="offset points",
                va="center",
                fontsize=9,
                annotation_clip=False,
            )
            axes.set_title(name)
            axes.set_xlabel("steps")
            axes.set_xlim(left=0)
            axes.margins(y=0.12)
    return out.getvalue()


def draw_map(
    layout: Map, labels: NDArray[np.int64], names: Mapping[int, str], shown: NDArray[np.int64]
) -> bytes:
    """Scatter plot of the items; `shown` classes in colours, all others grey.

    Args:
        layout: positions of some items.
        labels: (N,) class ids of all items.
        names: of the shown classes, for the legend.
        shown: class ids in the legend's order.
    """
    shown_labels = labels[layout.rows]
    others = ~np.isin(shown_labels, shown)
    legend_rows = -(-(len(shown) + int(others.any())) // _MAP_COLUMNS)
    # The legend below, not beside: the map is as wide as a telephone lets it be.
    with style.figure(_MAP_WIDTH, _MAP_WIDTH + _LEGEND_ROW * legend_rows) as (figure, out):
        axes = figure.add_subplot()
        if others.any():
            x, y = layout.points[others].T
            axes.scatter(x, y, s=12, color=style.FAINT, linewidths=0, label="other classes")
        for number, label in enumerate(shown):
            color, marker = style.color_and_marker(number)
            x, y = layout.points[shown_labels == label].T
            axes.scatter(
                x,
                y,
                s=34,
                color=color,
                marker=marker,
                linewidths=0.4,
                edgecolors="white",
                label=style.short(names[int(label)], 30),
            )
        axes.set_aspect("equal", adjustable="datalim")
        axes.set_axis_off()
        if legend_rows:
            figure.legend(loc="outside lower center", ncols=_MAP_COLUMNS, handletextpad=0.3)
    return out.getvalue()
