"""Style of the charts: few lines, readable words, colours that colour-blind readers can distinguish."""

import io
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe, Ito 2008, "Color universal design", without its yellow, which white paper swallows; then a grey.
COLORS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#6A3D9A", "#595959")
MARKERS = ("o", "^", "s")
# Tol's "muted" (personal.sron.nl/~pault), ten where no markers help: as many as there are digits.
RING_COLORS = (
    *("#332288", "#DDCC77", "#117733", "#CC6677", "#88CCEE"),
    *("#882255", "#44AA99", "#999933", "#AA4499", "#8a8d91"),
)
POSITIVE, NEGATIVE = COLORS[0], COLORS[5]
FIRST, SECOND = COLORS[6], COLORS[1]  # two models side by side: neither is the positive one
INK, FAINT = "#202124", "#c4c7c5"
_DPI = 120
_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#80868b",
    "axes.labelcolor": INK,
    "text.color": INK,
    "xtick.color": "#5f6368",
    "ytick.color": "#5f6368",
    "axes.grid": False,
    "legend.frameon": False,
    "legend.fontsize": 9,
}


@contextmanager
def figure(width: float, height: float) -> Iterator[tuple["Figure", "io.BytesIO"]]:
    """An empty figure, in inches, and where its PNG file's bytes are when the block ends well."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    out = io.BytesIO()
    with mpl.rc_context(_SETTINGS):
        drawn = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasAgg(drawn)
        yield drawn, out
        with warnings.catch_warnings():
            # A script that the font lacks is boxes; the page has the words beside them.
            warnings.filterwarnings("ignore", r"Glyph \d+ .* missing from font", UserWarning)
            # Without the version of the library: equal inputs give equal bytes.
            drawn.savefig(out, format="png", dpi=_DPI, metadata={"Software": None})


def color_and_marker(number: int) -> tuple[str, str]:
    """For the classes of a chart in order: 24 different pairs, then again from the first."""
    marker = MARKERS[number // len(COLORS) % len(MARKERS)]
    return COLORS[number % len(COLORS)], marker


def short(text: str, length: int = 24) -> str:
    """A label for a chart, cut to one line; `$` and a leading `_`, special in matplotlib, are escaped.

    Control characters, those of direction too, are written as Python escapes them.
    """
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    cut = line if len(line) <= length else line[: length - 1].rstrip() + "…"
    return ("\u200b" if cut.startswith("_") else "") + cut.replace("$", r"\$")


def whole_percent_axis(axes: "Axes", which: str = "y") -> None:
    from matplotlib.ticker import PercentFormatter

    getattr(axes, f"{which}axis").set_major_formatter(PercentFormatter(1.0, decimals=0))


def rate_text(rate: float) -> str:
    """A false-accept rate as text: `1 in 1,000` if it is such a share, else the number."""
    inverse = 1 / rate
    return f"1 in {round(inverse):,}" if math.isclose(inverse, round(inverse), rel_tol=1e-6) else f"{rate:g}"
