"""The index for a number of vectors, before it is built: type, memory, disk, time and machines, and why.

Among the indexes that the cost model finds within the bounds, those on the fewest machines; of them exact
search, where its latency is within the bound; else, where searches are filtered, lists of the vectors
themselves; else the least time for a query. Where that is by codes whose candidates are compared in full, a
graph that is about as fast is taken instead.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from dml.errors import InvalidSetting
from dml.reports import IndexOption, SizingReport, StageTime
from dml.retrieval.amounts import show_bytes
from dml.retrieval.cost_model import Candidate
from dml.retrieval.index_type import IndexType
from dml.retrieval.rates import REFERENCE, Rates
from dml.retrieval.target import Target

_LISTS = (16, 1 << 20)
_LISTS_PER_ROOT = (4, 16)
_MORE_LISTS_FROM = 10**6  # before, the time of training them is not worth it
_COARSE_GRAPH_FROM = 1 << 15  # beyond, comparing with all centroids takes as long as the lists
_COARSE_LINKS = 32
_LINKS = 32
_MACHINES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096)
_RECALLS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.92, 0.94, 0.95, 0.96, 0.97, 0.98, 0.99, 0.995, 0.999)
# Codes mostly took 1.1 to 1.9 times as long beside a graph as predicted (docs/scale.md): a query reads all
# centroids and many lists, which whatever else runs evicts from the caches.
_ABOUT_AS_FAST = 1.5
_UNHURRIED_MS = 1e12
_IMAGES_PER_S = {"ingest": 300.0, "embed": 1500.0, "train": 500.0}
_EPOCHS = 10


def _kinds(rows: int, dim: int) -> Iterator[tuple[str, IndexType, bool]]:
    """Every index type that is tried for a shard: its name in the list, itself, and whether it is a GPU's."""
    yield "Flat", IndexType.parse("Flat"), False
    for per_root in _LISTS_PER_ROOT if rows >= _MORE_LISTS_FROM else _LISTS_PER_ROOT[:1]:
        lists = min(max(2 ** round(math.log2(per_root * math.sqrt(rows))), _LISTS[0]), _LISTS[1])
        inverted = f"IVF{lists}" + (f"_HNSW{_COARSE_LINKS}" if lists >= _COARSE_GRAPH_FROM else "")
        for code in ("Flat", "SQfp16", "SQ8", "RaBitQ"):
            yield f"IVF-{code}", IndexType.parse(f"{inverted},{code}"), False
        for divisor in (2, 4, 8):
            if dim % divisor == 0:
                parts = dim // divisor
                yield f"IVF-PQ{parts}x4fs", IndexType.parse(f"{inverted},PQ{parts}x4fs"), False
    yield "HNSW", IndexType.parse(f"HNSW{_LINKS}"), False
    yield "CAGRA", IndexType.parse("Flat"), True


def _candidates(target: Target, rates: Rates) -> dict[str, list[Candidate]]:
    """By kind, each on every number of machines that is allowed."""
    found: dict[str, list[Candidate]] = {}
    most = target.machines or _MACHINES[-1]
    for machines in sorted({*(number for number in _MACHINES if number <= most), most}):
        if machines > 1 and machines > target.rows:
            break
        for kind, index_type, is_gpu in _kinds(-(-target.rows // machines), target.dim):
            found.setdefault(kind, []).append(Candidate(target, index_type, machines, rates, is_gpu))
    return found


def _feasible(target: Target, rates: Rates) -> list[Candidate]:
    return [
        candidate
        for candidates in _candidates(target, rates).values()
        for candidate in candidates
        if candidate.is_feasible
    ]


@dataclass(frozen=True)
class _Choice:
    """The index that is chosen, and the codes that it is taken instead of; None: it is the fastest itself."""

    index: Candidate
    codes: Candidate | None = None


def _choose(target: Target, rates: Rates) -> _Choice | None:
    """None: no index is within the bounds."""
    feasible = _feasible(target, rates)
    first = min(feasible, key=lambda candidate: candidate.order, default=None)
    if first is None or not first.k_factor:
        return None if first is None else _Choice(first)
    graphs = [
        candidate
        for candidate in feasible
        if candidate.index_type.links
        and candidate.order[:-1] == first.order[:-1]
        and candidate.query_s <= _ABOUT_AS_FAST * first.query_s
    ]
    graph = min(graphs, key=lambda candidate: candidate.query_s, default=None)
    return _Choice(first) if graph is None else _Choice(graph, codes=first)


def plan(target: Target, rates: Rates = REFERENCE) -> SizingReport:
    """The index for a target, with what it takes, and why it and none of the others.

    Args:
        target: rows, dimensions and bounds.
        rates: of the machine, measured by `probe`, or for reference.

    Returns:
        What is chosen; nothing where no index is within the bounds, and then what would be.

    Example:
        >>> plan(Target(rows=50_000, dim=128)).chosen.factory
        'Flat'
    """
    choice = _choose(target, rates)
    chosen = None if choice is None else _option(choice.index, choice)
    options = [
        _option(_representative(candidates), choice) for candidates in _candidates(target, rates).values()
    ]
    nearest = [] if chosen is not None else list(_nearest(target, rates))
    what = rates.processor if rates.measured else f"{rates.processor}, for reference"
    return SizingReport(
        rows=target.rows,
        dim=target.dim,
        recall=target.recall if chosen is not None else _best_recall(target, rates),
        feasible=chosen is not None,
        chosen=chosen,
        others=[option for option in options if chosen is None or option.kind != chosen.kind],
        nearest=nearest,
        stages=_stages(target.rows),
        times_of=f"{what}, {rates.threads} threads",
    )


def estimate(target: Target, factory: str, rates: Rates = REFERENCE, *, parameters: str = "") -> IndexOption:
    """What an index of a factory string takes, on one machine, within the bounds or not.

    Args:
        target: rows, dimensions, recall and memory.
        factory: of an index type that can be planned with.
        rates: of the machine.
        parameters: of a search, as Faiss' ParameterSpace takes them; others are what the recall takes.

    Raises:
        InvalidSetting: a factory string that there is no cost model for.
    """
    settings = (setting.partition("=") for setting in parameters.split(",") if setting)
    given = tuple((name, round(float(value))) for name, _, value in settings)
    return _option(Candidate(target, IndexType.parse(factory), 1, rates, given=given), None)


def index_for(
    rows: int, dim: int, *, recall: float, latency_ms: float, memory: int, filters: int
) -> IndexOption:
    """The index on one machine, by the figures for reference, so that it is the same on every machine with as
    much memory; and why. Where no index is as fast as asked, the fastest.

    Raises:
        InvalidSetting: no index has this recall in this memory, with the nearest that has.

    Example:
        >>> index_for(200_000, 128, recall=0.95, latency_ms=5, memory=10**9, filters=0).factory
        'HNSW32'
    """
    target = Target(max(rows, 1), dim, recall, latency_ms, memory, filters, machines=1)
    choice = _choose(target, REFERENCE)
    if choice is not None:
        return _option(choice.index, choice)
    unhurried = _feasible(replace(target, latency_ms=_UNHURRIED_MS), REFERENCE)
    fastest = min(unhurried, key=lambda candidate: candidate.query_s, default=None)
    if fastest is None:
        raise infeasible(plan(target))
    why = f"the least time for a query; none is predicted within {latency_ms:g} ms"
    return _option(fastest, None).model_copy(update={"why": why})


def infeasible(report: SizingReport) -> InvalidSetting:
    """What is said where no index is within the bounds."""
    return InvalidSetting(
        f"An index of {report.rows:,} x {report.dim} must be within the bounds; none is. "
        f"The nearest that is: {'; or '.join(report.nearest) or 'none with one other bound'}."
    )


def _representative(candidates: Sequence[Candidate]) -> Candidate:
    """A feasible one on the fewest machines; else the one that is refused least."""
    feasible = [candidate for candidate in candidates if candidate.is_feasible]
    if feasible:
        return min(feasible, key=lambda candidate: candidate.order)
    fits = [candidate for candidate in candidates if candidate.fits]
    return fits[0] if fits else candidates[-1]


def _option(candidate: Candidate, choice: _Choice | None) -> IndexOption:
    return IndexOption(
        kind=candidate.kind,
        factory=candidate.name,
        parameters=candidate.parameters,
        machines=candidate.machines,
        memory_bytes=candidate.memory_bytes,
        disk_bytes=candidate.disk_bytes,
        latency_ms=candidate.query_s * 1e3,
        build_hours=candidate.build_s / 3600,
        why=_why(candidate, choice),
    )


def _why(candidate: Candidate, choice: _Choice | None) -> str:
    if candidate.refusal or choice is None:
        return candidate.refusal
    chosen, codes = choice.index, choice.codes
    if candidate == chosen:
        return _why_chosen(chosen, codes)
    if candidate.machines > chosen.machines:
        return f"{candidate.machines} machines, not {chosen.machines}"
    if chosen.is_exact:
        return "not exact"
    if chosen.order[2] != candidate.order[2]:
        return "codes need more candidates under a filter"
    times = f"{candidate.query_s / chosen.query_s:.2g} times the time for a query"
    return f"{times}, no more than the prediction may be wrong by" if candidate == codes else times


def _why_chosen(chosen: Candidate, codes: Candidate | None) -> str:
    if chosen.is_exact:
        return "exact, and within the bounds"
    if codes is not None:
        return (
            f"a graph of the vectors, predicted to be about as fast as the codes of {codes.name}: "
            f"{chosen.query_s * 1e3:.3g} ms and {show_bytes(chosen.memory_bytes)}, "
            f"{codes.query_s * 1e3:.3g} ms and {show_bytes(codes.memory_bytes)}"
        )
    compared = ", candidates compared in full" if chosen.k_factor else ""
    return f"the least time for a query within the bounds{compared}"


def _best_recall(target: Target, rates: Rates) -> float:
    """The highest recall within the other bounds; 0: none."""
    lower = [recall for recall in _RECALLS if recall < target.recall]
    reached = (recall for recall in reversed(lower) if _choose(replace(target, recall=recall), rates))
    return next(reached, 0.0)


def _nearest(target: Target, rates: Rates) -> Iterator[str]:
    """Each bound as it would have to be, with the others as they are."""
    if recall := _best_recall(target, rates):
        yield f"--recall {recall:g}"
    unhurried = _feasible(replace(target, latency_ms=_UNHURRIED_MS), rates)
    if unhurried:
        least = _round_up(min(candidate.query_s for candidate in unhurried) * 1e3)
        if _choose(replace(target, latency_ms=least), rates):
            yield f"--latency-ms {least:g}"
    bytes_ = target.memory_bytes
    while bytes_ < 10**15:
        bytes_ = math.ceil(bytes_ * 1.1)
        wider = _whole(bytes_)
        if _choose(replace(target, memory_bytes=wider), rates):
            yield f"--memory {show_bytes(wider).replace(' ', '').replace('B', '')}"
            break
    for machines in _MACHINES if target.machines else ():
        if machines > (target.machines or 0) and _choose(replace(target, machines=machines), rates):
            yield f"--machines {machines}"
            break


def _round_up(value: float) -> float:
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return math.ceil(value / step * (1 - 1e-12)) * step


def _whole(size: int) -> int:
    """Up to two digits, as it is printed."""
    step: int = 10 ** max(len(str(size)) - 2, 0)
    return -(-size // step) * step


def _stages(rows: int) -> list[StageTime]:
    def stage(name: str, images: float, on: str, basis: str) -> StageTime:
        rate = _IMAGES_PER_S[name]
        return StageTime(stage=name, hours=images / rate / 3600, images_per_s=rate, on=on, basis=basis)

    return [
        stage("ingest", rows, "one core", "JPEG files of some 50 KB, decoded, checked and hashed"),
        stage("embed", rows, "one GPU, an RTX 3080", "clip-retrieval's figure for ViT-B/32"),
        stage(
            "train",
            _EPOCHS * min(rows, 10**7),
            "one GPU, an RTX 3080",
            f"{_EPOCHS} passes over at most 10,000,000 images; a third of the rate of embedding",
        ),
    ]
