"""Published tables as grids: which presets are their rows, on which dataset."""

from collections.abc import Mapping

from dml.bench.cell import RAW_PIXELS
from dml.bench.published import SIZES
from dml.config import BenchConfig, parse_bench
from dml.errors import InvalidSetting

_CONFUSEZIUS = ("margin-distance", "triplet-softhard", "n-pair", "proxy-nca")
REPRODUCTIONS = {
    f"confusezius-{dataset}": (
        dataset,
        tuple(
            f"{dataset}-{recipe}"
            for recipe in _CONFUSEZIUS
            if (dataset, recipe) not in (("sop", "proxy-nca"), ("in-shop", "proxy-nca"))
        ),
    )
    for dataset in SIZES
}
"""Publication to its dataset and its presets; SOP and In-Shop have too many classes for its Proxy-NCA."""


def reproduction(name: str, changes: Mapping[str, object]) -> BenchConfig:
    """The grid of a published table, by its own protocol.

    Args:
        name: one of `REPRODUCTIONS`.
        changes: other settings of the grid, such as `seeds`, or `datasets` where it lies under another name.

    Raises:
        InvalidSetting: there is no such publication, or a change of what it consists of.
    """
    if name not in REPRODUCTIONS:
        raise InvalidSetting(f"--reproduce must be one of {', '.join(REPRODUCTIONS)}; got {name!r}.")
    fixed = sorted({"presets", "losses", "minings"} & changes.keys())
    if fixed:
        raise InvalidSetting(
            f"{name} says which rows it has; got {', '.join(fixed)} beside it. Leave them out, or leave "
            "--reproduce out."
        )
    dataset, recipes = REPRODUCTIONS[name]
    defaults = {"datasets": [dataset], "presets": recipes, "reproduce": name, "baselines": [RAW_PIXELS]}
    return parse_bench({**defaults, **changes})
