"""Types of Faiss indexes: bytes of a file by a factory string, before anything is built. No Faiss here.

A file holds headers, for each row its code and its row number, for each list its centroid and its size, and
for a graph its links. The formulas are exact, but for a graph, whose levels are drawn, and for fast-scan
lists, which are padded to 32 rows: there they are expectations.
"""

import re
from dataclasses import dataclass
from typing import Self

from dml.errors import InvalidSetting

_FACTORY = re.compile(
    r"(?:IVF(?P<lists>[1-9]\d*)(?:_HNSW(?P<coarse>[1-9]\d*))?,|HNSW(?P<links>[1-9]\d*)(?:,|$))?"
    r"(?P<code>Flat|SQfp16|SQ8|RaBitQ4|RaBitQ|PQ(?P<parts>[1-9]\d*)x4fs|)"
)
_ROW_NUMBER, _FLOAT, _LINK, _OFFSET = 8, 4, 4, 8
_FAST_SCAN_ROWS = 32
_FLAT_HEADER, _SQ_HEADER, _HNSW_HEADER, _IVF_HEADER = 45, 81, 101, 139
_IVF_CODE_HEADER = {"Flat": 0, "SQfp16": 45, "SQ8": 45, "RaBitQ": 30, "RaBitQ4": 38}
_FAST_SCAN_HEADER = 197
_PQ_CENTROIDS = 16
_LEAST_LEVEL_PROBABILITY = 1e-9


@dataclass(frozen=True)
class IndexType:
    """A factory string taken apart, of one of the types whose size can be predicted.

    Example:
        >>> IndexType.parse("IVF1024,PQ32x4fs").code_bytes(128)
        16
    """

    factory: str
    code: str
    """Flat, SQfp16, SQ8, RaBitQ, RaBitQ4 or PQ."""
    lists: int = 0
    """Inverted lists; 0: none."""
    coarse_links: int = 0
    """Links of the graph over the centroids; 0: they are scanned."""
    links: int = 0
    """Links of a row in a graph over the rows; 0: none."""
    parts: int = 0
    """Parts of a product quantizer of 4 bits each."""

    @classmethod
    def parse(cls, factory: str) -> Self:
        """The type that a factory string names.

        Raises:
            InvalidSetting: another type; there is no formula for it.
        """
        match = _FACTORY.fullmatch(factory)
        code = match["code"] if match else ""
        unsuited = match and not match["lists"] and (code.startswith("RaBitQ") or match["parts"])
        if match is None or unsuited or (not code and not match["links"]):
            raise InvalidSetting(
                "A size can be predicted for Flat, SQfp16, SQ8, HNSWm[,SQ8], and IVFn[_HNSWm], with one of "
                f"Flat, SQfp16, SQ8, RaBitQ, RaBitQ4, PQmx4fs; got {factory!r}. Name one of these."
            )
        number = {name: int(match[name] or 0) for name in ("lists", "coarse", "links", "parts")}
        kind = "PQ" if match["parts"] else code or "Flat"
        return cls(factory, kind, number["lists"], number["coarse"], number["links"], number["parts"])

    @property
    def has_exact_codes(self) -> bool:
        """Whether its codes are the vectors themselves, so that nothing is to be compared again in full."""
        return self.code in ("Flat", "SQfp16")

    def code_bytes(self, dim: int) -> int:
        """Bytes of a vector, without its row number and links."""
        match self.code:
            case "Flat":
                return dim * _FLOAT
            case "SQfp16":
                return dim * 2
            case "SQ8":
                return dim
            case "RaBitQ":
                return -(-dim // 8) + 8
            case "RaBitQ4":  # three more bits a dimension, and their factors
                return -(-dim // 8) + 8 + -(-3 * dim // 8) + 12
            case _:  # two parts of 4 bits to a byte
                return -(-self.parts // 2)

    def _codebook_bytes(self, dim: int) -> int:
        if self.code == "PQ":
            return _PQ_CENTROIDS * dim * _FLOAT
        return 2 * dim * _FLOAT if self.code == "SQ8" else 0

    def file_bytes(self, rows: int, dim: int, *, direct_map: bool = False) -> int:
        """Bytes of `index.faiss`.

        Args:
            rows: vectors.
            dim: D.
            direct_map: it holds where each row is, so that vectors can be read back from lists.
        """
        if not self.lists:
            storage = self._flat_header() + rows * self.code_bytes(dim) + self._codebook_bytes(dim)
            return storage + (_graph_bytes(rows, self.links) if self.links else 0)
        centroids = _FLAT_HEADER + self.lists * dim * _FLOAT
        if self.coarse_links:
            centroids += _graph_bytes(self.lists, self.coarse_links)
        # Headers of the index, without those of a Flat index of centroids; the length of each list.
        header = _IVF_HEADER - _FLAT_HEADER + self.lists * 8
        header += _FAST_SCAN_HEADER if self.code == "PQ" else _IVF_CODE_HEADER[self.code]
        stored = rows
        if self.code == "PQ":
            stored += round(self.lists * (_FAST_SCAN_ROWS - 1) / 2)
        codes = stored * self.code_bytes(dim) + rows * _ROW_NUMBER
        positions = rows * _ROW_NUMBER if direct_map else 0
        return header + centroids + codes + positions + self._codebook_bytes(dim)

    def _flat_header(self) -> int:
        return _FLAT_HEADER if self.code == "Flat" else _SQ_HEADER


def _graph_bytes(rows: int, links: int) -> int:
    """HNSW: of each row a level and an offset, twice the links, and the links of each further level."""
    levels = 1
    while links**-levels * (1 - 1 / links) >= _LEAST_LEVEL_PROBABILITY:
        levels += 1
    neighbors = round(rows * (2 * links + links / (links - 1)))
    return _HNSW_HEADER + 12 * levels + rows * (4 + _OFFSET) + _OFFSET + neighbors * _LINK
