"""The operating curve of an index as a PNG: what its searches find, by what a query costs."""

from dml.report import style
from dml.reports import OperatingCurve

_WIDTH, _HEIGHT = 6.4, 4.2


def draw_operating_curve(title: str, curve: OperatingCurve) -> bytes:
    """Recall and, with labels, mate@1 over milliseconds of a query; the chosen parameters are marked.

    Args:
        title: above the chart.
        curve: of an index.
    """
    points = sorted(curve.points, key=lambda point: point.latency_ms)
    times = [point.latency_ms for point in points]
    with style.figure(_WIDTH, _HEIGHT) as (figure, out):
        axes = figure.add_subplot()
        axes.plot(times, [point.recall for point in points], "o-", color=style.FIRST, label="recall@10")
        mates = [(point.latency_ms, point.mate_at_1) for point in points if point.mate_at_1 is not None]
        if mates:
            axes.plot(*zip(*mates, strict=True), "^-", color=style.SECOND, label="mate@1")
        axes.axhline(curve.target, color=style.FAINT, linewidth=1, zorder=0)
        chosen = curve.chosen
        axes.plot(chosen.latency_ms, chosen.recall, "o", color=style.INK, markersize=9, fillstyle="none")
        axes.annotate(
            chosen.parameters or "exact",
            (chosen.latency_ms, chosen.recall),
            xytext=(8, -14),
            textcoords="offset points",
            fontsize=9,
        )
        if len(times) > 1:
            axes.set_xscale("log")
        style.whole_percent_axis(axes)
        axes.set_xlabel("milliseconds of a query, one thread")
        axes.set_ylabel(f"share of {curve.num_queries} queries")
        axes.set_title(style.short(title, 60))
        axes.legend(loc="lower right")
    return out.getvalue()
