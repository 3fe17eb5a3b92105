"""The cost model of an index before it is built: memory, disk, and time of a query and of the build, by type.

Bytes are formulas (`index_type`), times are counts of operations times the rates of a machine (`probe`).
How many lists or links a recall takes depends on the embedding; the figures here are of a trained one and say
where to begin: `dml index` tunes them on the index's own vectors, and measures the recall.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

from dml.retrieval.amounts import show_bytes
from dml.retrieval.index_type import IndexType
from dml.retrieval.rates import PROBE_DIM, PROBE_GRAPH_ROWS, Rates
from dml.retrieval.target import Target

K_FACTORS = (1, 2, 4, 8, 16, 32, 64, 128)
"""Candidates per answer that tuning tries."""
_K = 10
_FILTER_BYTES = 4
"""Of each row and column: a posting."""
_ITEM_BYTES = 120  # a digest as id, a label and short attributes, in items.arrow
_ROWS_PER_LIST = 39  # fewer to train on, and Faiss warns
_TRAIN_ROWS_PER_LIST, _TRAIN_SHARE, _LEAST_TRAIN_ROWS = 100, 0.2, 1 << 16
_ITERATIONS = 10
_VERIFIED_QUERIES = 2000

# What recall@10 takes on 200,000 vectors drawn around a trained embedding (`benchmarks/_embeddings.py`), for
# queries that are not in the index: of 2,048 lists, of `efSearch`, and, for the neighbours that are in the
# lists, of `k_factor`. Rows of the index would take fewer lists.
_PROBES = {0.43: 1, 0.58: 2, 0.72: 4, 0.83: 8, 0.91: 16, 0.96: 32, 0.987: 64, 0.997: 128, 0.9993: 256}
_PROBES_GROW = 0.35
_VISITED = {0.945: 10, 0.96: 14, 0.978: 21, 0.989: 32, 0.993: 40, 0.9947: 48, 0.997: 64, 0.999: 128}
_K_FACTORS: dict[str, dict[float, float]] = {
    "SQ8": {0.5: 1, 0.99: 1, 0.9999: 2},
    "RaBitQ": {0.68: 1, 0.86: 2, 0.96: 4, 0.989: 8, 0.998: 16, 0.9999: 32},
    "PQ/2": {0.665: 1, 0.848: 2, 0.945: 4, 0.986: 8, 0.997: 16, 0.9996: 32},
    "PQ/4": {0.468: 1, 0.624: 2, 0.765: 4, 0.879: 8, 0.953: 16, 0.983: 32, 0.994: 64},
    "PQ/8": {0.257: 1, 0.364: 2, 0.489: 4, 0.625: 8, 0.753: 16, 0.862: 32, 0.93: 64, 0.98: 128},
}
_IMBALANCE = 1.05  # rows in a probed list over those of the mean list: full lists lie where queries are
# Of a visit in a graph of 128 dimensions: four times as many dimensions take 1.7 to 2.4 times as long.
_VISIT_FIXED = 0.6
_GRAPH_GROWS = 0.25  # a visit and an insertion cost this power of the rows more: steps, and memory far away

_CALL_S = 8e-6  # of a call from Python
_CANDIDATE_S = 3.5e-7  # of keeping a candidate among the best

_GPU_LINKS = 64
_GPU_INSERT_US, _GPU_QUERY_MS = 40.0, 1.0  # CAGRA on one H100: published, not measured by us


@dataclass(frozen=True)
class Candidate:
    """One index type for one shard of a target, with the parameters that the target's recall takes."""

    target: Target
    index_type: IndexType
    machines: int
    rates: Rates = field(repr=False)
    is_gpu: bool = False
    given: tuple[tuple[str, int], ...] = ()
    """Search parameters that are set by hand; the others are what the recall takes."""

    @cached_property
    def rows(self) -> int:
        return -(-self.target.rows // self.machines)

    @property
    def _scale(self) -> float:
        return self.target.dim / PROBE_DIM

    @property
    def _visit_s(self) -> float:
        return self.rates.visit_us * 1e-6 * (_VISIT_FIXED + (1 - _VISIT_FIXED) * self._scale)

    @property
    def _k_factor_kind(self) -> str:
        if self.index_type.code != "PQ":
            return self.index_type.code
        return f"PQ/{self.target.dim // self.index_type.parts}"

    @property
    def best_recall(self) -> float:
        """The highest that it can be tuned to."""
        if self.is_gpu:
            return 0.99
        if self.index_type.links:
            return max(_VISITED)
        if self.index_type.lists:
            refined = _K_FACTORS.get(self._k_factor_kind)
            return 0.999 if refined is None else 2 * min(max(refined), max(_PROBES)) - 1
        return 1.0 if self.index_type.code == "Flat" else 0.999

    @property
    def _recall_of_each(self) -> float:
        """What lists reach, and what codes keep, so that both together are the target."""
        missed = 1 - self.target.recall
        return 1 - missed / 2 if self._k_factor_kind in _K_FACTORS else self.target.recall

    @cached_property
    def probes(self) -> int:
        if not self.index_type.lists:
            return 0
        if "nprobe" in dict(self.given):
            return dict(self.given)["nprobe"]
        growth = math.pow(self.index_type.lists / 2048, _PROBES_GROW)
        wanted = _between(_PROBES, self._recall_of_each) * growth
        return min(max(round(wanted), 1), self.index_type.lists)

    @cached_property
    def visited(self) -> int:
        wanted = dict(self.given).get("efSearch") or round(_between(_VISITED, self.target.recall))
        return wanted if self.index_type.links else 0

    @cached_property
    def k_factor(self) -> int:
        """Candidates per answer that are compared in full; 0: none are."""
        if "k_factor_rf" in dict(self.given):
            return dict(self.given)["k_factor_rf"]
        table = _K_FACTORS.get(self._k_factor_kind) if self.index_type.lists else None
        if not table:
            return 0
        wanted = _between(table, self._recall_of_each)
        return next((tried for tried in K_FACTORS if tried >= wanted * (1 - 1e-9)), K_FACTORS[-1])

    @property
    def parameters(self) -> str:
        """As Faiss' ParameterSpace takes them."""
        named = {"nprobe": self.probes, "efSearch": self.visited, "k_factor_rf": self.k_factor}
        return ",".join(f"{name}={value}" for name, value in named.items() if value and not self.is_gpu)

    @cached_property
    def index_bytes(self) -> int:
        """Of one shard's `index.faiss`."""
        if self.is_gpu:
            return self.rows * (self.target.dim * 4 + _GPU_LINKS * 4)
        return self.index_type.file_bytes(self.rows, self.target.dim)

    @cached_property
    def memory_bytes(self) -> int:
        """Of one machine, with the postings of filters."""
        return self.index_bytes + self.rows * _FILTER_BYTES * self.target.filters

    @cached_property
    def disk_bytes(self) -> int:
        """Of all machines: the index, the vectors in full, items and attributes."""
        flat = (
            0
            if self.index_type.factory == "Flat"
            else IndexType.parse("Flat").file_bytes(self.rows, self.target.dim)
        )
        each = self.rows * (_ITEM_BYTES + _FILTER_BYTES * self.target.filters)
        return self.machines * (self.index_bytes + flat + each)

    @cached_property
    def query_s(self) -> float:
        """Of one query on one thread, in one shard; the shards are searched at the same time."""
        rates, scale = self.rates, self._scale
        if self.is_gpu:
            return _GPU_QUERY_MS * 1e-3
        if self.index_type.links:
            grown = math.pow(max(self.rows, PROBE_GRAPH_ROWS) / PROBE_GRAPH_ROWS, _GRAPH_GROWS)
            return _CALL_S + self.visited * self._visit_s * grown
        if not self.index_type.lists:
            return _CALL_S + self.rows * rates.scan_row_ns * 1e-9 * scale
        coarse = self.index_type.lists * rates.centroid_ns * 1e-9 * scale
        if self.index_type.coarse_links:
            coarse = max(self.probes, 16) * self._visit_s
        scanned = min(self.probes / self.index_type.lists * _IMBALANCE, 1.0) * self.rows
        lists_s = self.probes * rates.list_us[self.index_type.code] * 1e-6
        return _CALL_S + coarse + lists_s + scanned * self._list_row_s + self._refine_s

    @property
    def _list_row_s(self) -> float:
        code_128 = IndexType.parse("IVF16,PQ32x4fs") if self.index_type.code == "PQ" else self.index_type
        wider = self.index_type.code_bytes(self.target.dim) / code_128.code_bytes(PROBE_DIM)
        return self.rates.list_row_ns[self.index_type.code] * 1e-9 * wider

    @property
    def _refine_s(self) -> float:
        """Comparing candidates with their vectors in full: from memory, where it is left, or from disk."""
        full = self.rows * self.target.dim * 4
        cold = 1 - min(max(self.target.memory_bytes - self.memory_bytes, 0) / full, 1.0)
        each = self.rates.compare_ns * 1e-9 * self._scale + cold * self.rates.random_read_us * 1e-6
        return _K * self.k_factor * (each + _CANDIDATE_S)

    @cached_property
    def build_s(self) -> float:
        """Of one shard on all threads of one machine; the shards are built at the same time."""
        rates, dim = self.rates, self.target.dim
        reading = 2 * self.rows * dim * 4 / rates.read_bytes_per_s
        if not self.index_type.links and not self.index_type.lists and not self.is_gpu:
            return reading
        verified = 0 if self.is_gpu else min(_VERIFIED_QUERIES, self.rows)
        return reading + verified * self.rows * dim * rates.multiply_ps * 1e-12 + self.filling_s

    @cached_property
    def filling_s(self) -> float:
        """Of `build_s`: training and adding the rows; 0 of exact search, whose file is written as it is."""
        rates, dim, scale = self.rates, self.target.dim, self._scale
        if self.is_gpu:
            return self.rows * _GPU_INSERT_US * 1e-6 * scale
        if self.index_type.links:
            grown = math.pow(max(self.rows, PROBE_GRAPH_ROWS) / PROBE_GRAPH_ROWS, _GRAPH_GROWS)
            return self.rows * rates.insert_us * 1e-6 * grown * scale
        lists = self.index_type.lists
        if not lists:
            return 0.0
        sampled = min(lists * _TRAIN_ROWS_PER_LIST, int(_TRAIN_SHARE * self.rows))
        trained = min(max(sampled, lists * _ROWS_PER_LIST, _LEAST_TRAIN_ROWS), self.rows)
        assign_s = lists * dim * rates.multiply_ps * 1e-12
        add_s = assign_s
        if self.index_type.coarse_links:
            add_s = 16 * self._visit_s / rates.threads
        return _ITERATIONS * trained * assign_s + self.rows * add_s

    @property
    def is_feasible(self) -> bool:
        return not self.refusal

    @cached_property
    def refusal(self) -> str:
        """Why it does not meet the target; empty: it does."""
        target = self.target
        if target.filters and (self.index_type.links or self.is_gpu):
            return "a graph loses recall under a filter (0.35 at 1 % of the rows)"
        if target.recall > self.best_recall:
            return f"reaches a recall of {self.best_recall:g}, not {target.recall:g}"
        if self.is_gpu and not target.gpu_bytes:
            return "needs a GPU; --gpu-memory names one"
        if self.index_type.lists * _ROWS_PER_LIST > self.rows:
            return f"{self.rows:,} rows are too few for lists"
        if not self.fits:
            return f"{show_bytes(self.memory_bytes)} on each machine, more than {show_bytes(self._allowed)}"
        if self.query_s * 1e3 > target.latency_ms:
            return f"{self.query_s * 1e3:.3g} ms for a query, more than {target.latency_ms:g}"
        return ""

    @property
    def _allowed(self) -> int:
        return self.target.gpu_bytes if self.is_gpu else self.target.memory_bytes

    @property
    def fits(self) -> bool:
        return self.memory_bytes <= self._allowed

    @property
    def is_exact(self) -> bool:
        return self.index_type.factory == "Flat"

    @property
    def order(self) -> tuple[int, bool, bool, float]:
        """The first is chosen. Under a filter codes need more candidates than the vectors themselves."""
        is_coded = bool(self.target.filters) and self.index_type.code != "Flat"
        return (self.machines, not self.is_exact, is_coded, self.query_s)

    @property
    def name(self) -> str:
        return "CAGRA" if self.is_gpu else self.index_type.factory

    @property
    def kind(self) -> str:
        """Its name without numbers of lists and links."""
        if self.is_gpu:
            return "CAGRA"
        if self.index_type.lists:
            return f"IVF-{self.index_type.factory.split(',')[1]}"
        return "HNSW" if self.index_type.links else "Flat"


def _between(table: dict[float, float] | dict[float, int], recall: float) -> float:
    """A value at a recall, its logarithm linear in the logarithm of what is missed."""
    recalls = sorted(table)
    if recall <= recalls[0]:
        return float(table[recalls[0]])
    above = next((value for value in recalls if value >= recall), recalls[-1])
    below = max(value for value in recalls if value < above)
    missed = [math.log(max(1 - value, 1e-4)) for value in (below, min(recall, above), above)]
    share = (missed[0] - missed[1]) / (missed[0] - missed[2])
    return math.exp((1 - share) * math.log(table[below]) + share * math.log(table[above]))
