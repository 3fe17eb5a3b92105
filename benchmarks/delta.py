"""What a search costs by how much was enrolled since the index was built: `python -m benchmarks.delta`.

CPU time of one query on one thread, ten answers, against the enrolled items alone: compared exactly, and by
their inverted lists for a recall@10 of 0.95, with the recall that these reach on other queries. Beside it
what they cost: the longest wait of an enrolment in which they are trained, and their memory.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from benchmarks._embeddings import drawn_with_queries
from dml.retrieval.gallery.delta import Delta

RECALL, K, NUM_QUERIES = 0.95, 10, 300
_AT_ONCE = 500
_SCHEMA = pa.schema([("id", pa.string())])


def median_us(search: Callable[[int], object]) -> float:
    """CPU microseconds of a query."""
    times = []
    for number in range(NUM_QUERIES):
        begin = time.process_time_ns()
        search(number)
        times.append((time.process_time_ns() - begin) / 1e3)
    return statistics.median(times)


def measured(rows: int, share_filtered: float) -> list[str]:
    """A line of the table: rows, without lists, with lists, ratio, recall, wait and memory."""
    vectors, queries = drawn_with_queries(rows, NUM_QUERIES)
    delta, waits = Delta(_SCHEMA, vectors.shape[1], recall=RECALL), []
    for start in range(0, rows, _AT_ONCE):
        added = vectors[start : start + _AT_ONCE]
        items = [{"id": str(start + number)} for number in range(len(added))]
        begin = time.process_time()
        delta = delta.with_items(items, added)
        waits.append(1e3 * (time.process_time() - begin))
    matching = np.flatnonzero(np.random.default_rng(2).random(rows) < share_filtered)

    def exact(number: int) -> object:
        return delta.search(queries[number : number + 1], K, matching)

    def nearest(number: int) -> object:
        return delta.nearest(queries[number : number + 1], K, matching)

    before, after = median_us(exact), median_us(nearest)
    (_, found), promised = delta.nearest(queries, K, matching)
    _, truth = delta.search(queries, K, matching)
    recall = statistics.mean(
        len(set(a) & set(b)) / K for a, b in zip(found.tolist(), truth.tolist(), strict=True)
    )
    size = delta.num_bytes_of_lists / vectors.nbytes
    return [
        f"{rows:,}",
        f"{share_filtered:.0%}",
        f"{before:,.0f}",
        f"{after:,.0f}",
        f"{before / after:.1f}",
        f"{recall:.3f}",
        str(promised),
        f"{max(waits):,.0f}",
        f"{statistics.median(waits):.1f}",
        f"{size:.1%}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 20_000, 20_001, 50_000, 100_000])
    parser.add_argument("--matching", type=float, nargs="+", default=[1.0, 0.5])
    options = parser.parse_args()
    print(
        "| enrolled | matching | exact us | lists us | ratio | recall | promised "
        "| longest wait ms | median wait ms | lists / vectors |"
    )
    print("|" + "---|" * 10)
    for rows in options.rows:
        for share in options.matching:
            print("| " + " | ".join(measured(rows, share)) + " |", flush=True)


if __name__ == "__main__":
    main()
