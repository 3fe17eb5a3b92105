"""Which rows of a file of vectors can be imported: blocks in, usable rows and the refused ones out."""

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dml.data.forgotten import digest_of_id
from dml.data.items import repeated
from dml.data.sources.sample import Problem
from dml.embedding.vector_files import NOT_FINITE, ZERO, Block, to_unit_length
from dml.errors import InvalidSetting
from dml.labels import checked_label

MISSING_ID, REPEATED_ID, UNUSABLE_LABEL = "missing id", "repeated id", "unusable label"
_LENGTH_TOLERANCE = 1e-3
"""How far from 1 a length may be before a vector counts as one that was not of unit length."""


class UsableRows:
    """Checks the rows of a file, block by block, and counts what it finds.

    Args:
        items: (N,) `id`, and `label` and attributes if there are any, in the vectors' order.
        source: the file, for the list of refused rows.
        forgotten: digests of ids that are left out.
    """

    def __init__(self, items: pa.Table, source: str, forgotten: frozenset[str]) -> None:
        self._items, self._source, self._forgotten = items, source, forgotten
        self._repeated = repeated(items["id"])
        self._unusable_labels = _unusable_labels(items)
        self._next_row = 0
        self.problems: list[Problem] = []
        """The rows that were refused, with the reason."""
        self.num_normalized = 0
        """Vectors that were not of unit length."""
        self.num_forgotten = 0
        """Rows that were left out, since their item is forgotten."""

    def of_block(self, block: Block) -> tuple[pa.Table, NDArray[np.float32]]:
        """The items and the vectors, (n,) and (n, D) of unit length, of the next block's usable rows."""
        unit, lengths = to_unit_length(block.vectors)
        items = self._items.slice(self._next_row, len(unit))
        problems = self._problems_of(block, items, lengths)
        usable = np.ones(len(unit), dtype=np.bool_)
        usable[list(problems)] = False
        if self._forgotten:
            is_forgotten = [digest_of_id(id_ or "") in self._forgotten for id_ in items["id"].to_pylist()]
            self.num_forgotten += sum(is_forgotten)
            usable &= ~np.array(is_forgotten)
        self._next_row += len(unit)
        self.num_normalized += int((np.abs(lengths[usable] - 1) > _LENGTH_TOLERANCE).sum())
        return items.filter(pa.array(usable)), unit[usable]

    def _problems_of(
        self, block: Block, items: pa.Table, lengths: NDArray[np.float64]
    ) -> dict[int, tuple[str, str]]:
        """Reason and detail by row of the block; they are added to `problems`, too."""
        ids = items["id"]
        is_missing = np.array([not (id_ or "").strip() for id_ in ids.to_pylist()], dtype=np.bool_)
        is_repeated = self._repeated[self._next_row : self._next_row + len(items)]
        problems = dict(block.problems)
        if self._unusable_labels:
            for row, label in enumerate(items["label"].to_pylist()):
                if label in self._unusable_labels:
                    problems.setdefault(row, (UNUSABLE_LABEL, self._unusable_labels[label]))
        for rows, reason, detail in (
            (~np.isfinite(lengths), NOT_FINITE, "NaN or infinite"),
            (lengths == 0, ZERO, "has no direction"),
            (is_missing, MISSING_ID, "blank"),
            (is_repeated & ~is_missing, REPEATED_ID, "same as in an earlier row"),
        ):
            for row in np.flatnonzero(rows).tolist():
                problems.setdefault(row, (reason, detail))
        for row, (reason, detail) in sorted(problems.items()):
            id_ = ids[row].as_py() or ""
            self.problems.append(Problem(id_, "", f"{self._source}#{self._next_row + row}", reason, detail))
        return problems


def _unusable_labels(items: pa.Table) -> dict[str, str]:
    """Labels that no item may have, each with what is wrong with it."""
    wrong: dict[str, str] = {}
    if "label" in items.column_names:
        for label in items["label"].unique().drop_null().to_pylist():
            try:
                checked_label("A label", label)
            except InvalidSetting as error:
                wrong[label] = str(error)
    return wrong
