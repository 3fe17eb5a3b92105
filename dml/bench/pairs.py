"""Which cells of a grid are compared with which: two rows are named, dataset by dataset and seed by seed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dml.bench.cell import Cell
from dml.config import BenchConfig
from dml.errors import InvalidSetting


@dataclass(frozen=True)
class Pair:
    """Two cells of one dataset, the first tested against the second."""

    first: Cell
    second: Cell

    @property
    def names(self) -> tuple[str, str]:
        """Row and seed of each, and the preset where two rows have one name."""
        one, other = self.first.row, self.second.row
        if one.name == other.name and one.preset != other.preset:
            return (
                f"{one.preset} {one.name}@{self.first.seed}",
                f"{other.preset} {other.name}@{self.second.seed}",
            )
        return f"{one.name}@{self.first.seed}", f"{other.name}@{self.second.seed}"


def pairs_of(config: BenchConfig, cells: Sequence[Cell]) -> list[Pair]:
    """The pairs that a bench compares.

    Args:
        config: the bench; `cells_named` says what its `compare` may name.
        cells: of `plan`.
    """
    return [
        pair
        for one, other in config.compare
        for pair in _paired(cells_named(cells, one), cells_named(cells, other))
    ]


def _paired(firsts: Sequence[Cell], seconds: Sequence[Cell]) -> Iterator[Pair]:
    """On the same dataset; of equal seeds where a side has several, else its only one; none with itself."""
    for first in firsts:
        others = [cell for cell in seconds if cell.row.dataset == first.row.dataset]
        same = [cell for cell in others if cell.seed == first.seed]
        alone = len(others) == 1 or len([c for c in firsts if c.row.dataset == first.row.dataset]) == 1
        for second in same or (others if alone else []):
            if second.fingerprint != first.fingerprint:
                yield Pair(first, second)


def cells_named(cells: Sequence[Cell], wish: str) -> list[Cell]:
    """The cells of the only row that a wish names, on every dataset: all its seeds, or @SEED alone.

    Args:
        cells: of `plan`.
        wish: KIND/MINING, KIND or PRESET, whichever names one row; each may end in @SEED.

    Raises:
        InvalidSetting: it names no row, several, or one that has no embeddings.
    """
    name, at, seed = wish.partition("@")
    trained = [cell for cell in cells if cell.trains]
    matches: list[Cell] = []
    for key in ("name", "preset", "loss"):
        matches = matches or [cell for cell in trained if getattr(cell.row, key) == name]
    chosen = [cell for cell in matches if not at or str(cell.seed) == seed]
    rows = {(cell.row.dataset.fingerprint, cell.row.preset, cell.row.name) for cell in chosen}
    if not chosen or len(rows) > len({cell.row.dataset.fingerprint for cell in chosen}):
        have = ", ".join(dict.fromkeys(cell.row.name for cell in trained))
        raise InvalidSetting(
            f"--compare needs rows of this grid, each named so that it is one: {have}, with @SEED for one "
            f"seed; got {wish!r}, which names {len(rows)}."
        )
    return chosen


def check_comparisons(config: BenchConfig, cells: Sequence[Cell]) -> None:
    """Raise InvalidSetting where a bench asks for a comparison that cannot be made."""
    for one, other in config.compare:
        if not any(True for _ in _paired(cells_named(cells, one), cells_named(cells, other))):
            raise InvalidSetting(
                f"--compare needs two different cells of one dataset; {one!r} and {other!r} pair none. Name "
                "another row, or two seeds of one: ROW@0 ROW@1."
            )
    for wish in (wish for pair in config.compare for wish in pair):
        for cell in cells_named(cells, wish):
            have = cell.experiment.evaluation.query_metrics
            if config.compare_metric not in have:
                raise InvalidSetting(
                    f"A paired test needs a number of every query, one of {have}; got --compare-metric "
                    f"{config.compare_metric!r}."
                )
