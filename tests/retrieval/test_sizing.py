"""The plan before the build keeps every bound, and says what is nearest where none can be kept."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.errors import InvalidSetting
from dml.retrieval.amounts import machine_memory, parse_bytes, parse_count
from dml.retrieval.cost_model import K_FACTORS
from dml.retrieval.index_type import IndexType
from dml.retrieval.rates import REFERENCE
from dml.retrieval.sizing import estimate, index_for, plan
from dml.retrieval.target import Target

targets = st.builds(
    Target,
    rows=st.sampled_from([1, 1000, 40_000, 10**6, 10**8, 10**9]),
    dim=st.sampled_from([2, 64, 128, 384, 1000]),
    recall=st.sampled_from([0.5, 0.9, 0.95, 0.99, 0.999, 1.0]),
    latency_ms=st.sampled_from([0.05, 1.0, 20.0, 500.0]),
    memory_bytes=st.sampled_from([2 * 10**6, 10**9, 64 * 10**9, 2 * 10**12]),
    filters=st.sampled_from([0, 3]),
    machines=st.sampled_from([None, 1, 5]),
)


@settings(deadline=None, max_examples=60)
@given(targets)
def test_what_is_chosen_is_within_every_bound(target):
    report = plan(target)
    if report.chosen is None:
        assert not report.feasible
        return
    chosen = report.chosen
    assert report.recall == target.recall
    assert chosen.memory_bytes <= target.memory_bytes
    assert chosen.latency_ms <= target.latency_ms
    assert target.machines is None or chosen.machines <= target.machines
    assert not (target.filters and chosen.kind in ("HNSW", "CAGRA"))
    assert chosen.kind not in [option.kind for option in report.others]


@settings(deadline=None, max_examples=40)
@given(targets, st.sampled_from([1.5, 10, 1000]))
def test_more_memory_never_gives_a_worse_recall_nor_more_machines(target, factor):
    less = plan(target)
    more = plan(Target(**{**vars(target), "memory_bytes": int(target.memory_bytes * factor)}))
    assert more.recall >= less.recall
    if less.chosen is not None:
        assert more.chosen is not None
        assert more.chosen.machines <= less.chosen.machines


OPTIONS = {
    "--recall": ("recall", float),
    "--latency-ms": ("latency_ms", float),
    "--memory": ("memory_bytes", lambda text: parse_bytes("memory", text)),
    "--machines": ("machines", int),
}


@settings(deadline=None, max_examples=30)
@given(targets)
def test_each_nearest_target_is_feasible(target):
    for words in plan(target).nearest:
        option, text = words.split()
        name, read = OPTIONS[option]
        assert plan(Target(**{**vars(target), name: read(text)})).feasible, words


def test_the_nearest_targets_name_the_bounds_that_are_in_the_way():
    report = plan(Target(10**7, 128, 0.99, 10, 10**9, filters=3, machines=1))
    assert (report.feasible, report.chosen) == (False, None)
    assert [words.split()[0] for words in report.nearest] == [
        "--recall",
        "--latency-ms",
        "--memory",
        "--machines",
    ]
    assert report.recall < 0.99


def test_few_rows_are_searched_exactly():
    report = plan(Target(20_000, 128))
    assert report.chosen is not None
    assert (report.chosen.factory, report.chosen.why) == ("Flat", "exact, and within the bounds")


def test_a_recall_of_1_is_exact_search_on_as_many_machines_as_it_takes():
    report = plan(Target(10**8, 128, recall=1.0))
    assert report.chosen is not None
    assert report.chosen.factory == "Flat"
    assert report.chosen.machines > 1


def test_no_graph_is_chosen_where_searches_are_filtered():
    report = plan(Target(10**6, 128, latency_ms=5, filters=2))
    (graph,) = [option for option in report.others if option.kind == "HNSW"]
    assert "filter" in graph.why
    assert report.chosen is not None
    assert report.chosen.kind.startswith("IVF")


def test_a_gpu_is_planned_with_where_its_memory_is_named():
    without, with_gpu = (plan(Target(10**7, 128, gpu_bytes=size)) for size in (0, 80 * 10**9))
    kinds = [{option.kind: option.why for option in report.others} for report in (without, with_gpu)]
    assert "GPU" in kinds[0]["CAGRA"]
    assert "GPU" not in kinds[1].get("CAGRA", "")


def test_memory_is_that_of_the_formula_and_the_postings():
    report = plan(Target(10**6, 128, latency_ms=5, filters=2))
    assert report.chosen is not None
    assert (
        report.chosen.memory_bytes
        == IndexType.parse(report.chosen.factory).file_bytes(10**6, 128) + 8 * 10**6
    )


def test_slower_machines_are_not_promised_what_faster_ones_are():
    slow = REFERENCE.model_copy(update={"scan_row_ns": REFERENCE.scan_row_ns * 1000})
    assert plan(Target(50_000, 128)).chosen.kind == "Flat"
    assert plan(Target(50_000, 128), slow).chosen.kind != "Flat"


def test_a_graph_is_chosen_where_exact_search_is_too_slow_and_memory_allows_it():
    planned = index_for(120_000, 128, recall=0.95, latency_ms=5, memory=10**9, filters=0)
    assert planned.factory == "HNSW32"


@pytest.mark.parametrize("dim", [128, 512])
def test_a_graph_is_chosen_at_a_recall_where_it_was_measured_to_be_faster_than_codes(dim):
    assert index_for(200_000, dim, recall=0.99, latency_ms=5, memory=10**10, filters=0).factory == "HNSW32"


ABOUT_AS_FAST = Target(10**6, 64, recall=0.998)


def test_a_graph_is_taken_where_codes_are_predicted_to_be_about_as_fast():
    report = plan(ABOUT_AS_FAST)
    (codes,) = [option for option in report.others if option.kind == "IVF-PQ32x4fs"]
    assert report.chosen is not None
    assert report.chosen.kind == "HNSW"
    assert codes.latency_ms < report.chosen.latency_ms < 1.5 * codes.latency_ms
    for amount in (f"{report.chosen.latency_ms:.3g} ms and 528 MB", f"{codes.latency_ms:.3g} ms and 26.1 MB"):
        assert amount in report.chosen.why
    assert "no more than the prediction may be wrong by" in codes.why


def test_memory_that_a_graph_exceeds_decides_for_another_index():
    memory = estimate(ABOUT_AS_FAST, "HNSW32").memory_bytes - 1
    planned = index_for(10**6, 64, recall=0.998, latency_ms=5, memory=memory, filters=0)
    assert planned.factory == "IVF4096,PQ32x4fs"
    assert "the least time for a query within the bounds" in planned.why


def test_the_fastest_is_planned_where_none_is_as_fast_as_asked_and_that_is_said():
    planned = index_for(200_000, 128, recall=0.95, latency_ms=1e-3, memory=10**9, filters=0)
    assert planned.factory == "HNSW32"
    assert planned.why == "the least time for a query; none is predicted within 0.001 ms"


def test_codes_in_lists_are_not_promised_beyond_what_lists_reach():
    for recall in (0.999, 0.9998):
        report = plan(Target(10**7, 128, recall=recall, latency_ms=1e3, memory_bytes=4 * 10**9))
        codes = [option for option in report.others if option.kind == "IVF-SQ8"]
        assert all("reaches a recall of 0.9986" in option.why for option in codes)
        assert report.chosen is None or "k_factor_rf" not in report.chosen.parameters


@settings(deadline=None, max_examples=60)
@given(targets)
def test_codes_are_chosen_only_where_a_graph_is_refused_or_clearly_slower(target):
    report = plan(target)
    if report.chosen is None or "k_factor_rf" not in report.chosen.parameters or target.filters:
        return
    (graph,) = [option for option in report.others if option.kind == "HNSW"]
    is_slower = graph.latency_ms > 1.5 * report.chosen.latency_ms
    assert is_slower or graph.machines > report.chosen.machines or not graph.why.endswith("for a query")


@settings(deadline=None, max_examples=60)
@given(targets)
def test_the_candidates_that_are_planned_are_those_that_tuning_tries(target):
    report = plan(target)
    for option in [*report.others, *filter(None, [report.chosen])]:
        _, named, factor = option.parameters.partition("k_factor_rf=")
        assert not named or int(factor) in K_FACTORS


def test_a_factory_for_a_machine_is_refused_where_nothing_fits():
    planned = index_for(1000, 64, recall=0.95, latency_ms=5, memory=10**9, filters=0)
    assert planned.factory == "Flat"
    with pytest.raises(InvalidSetting, match="nearest that is: --"):
        index_for(10**9, 512, recall=0.95, latency_ms=5, memory=10**9, filters=0)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"rows": 0}, "rows must be 1 to 1e"),
        ({"rows": -5}, "got -5"),
        ({"dim": 0}, "dim must be 1"),
        ({"recall": 1.5}, "recall must be 0.5 to 1"),
        ({"recall": float("nan")}, "recall"),
        ({"latency_ms": 0}, "latency-ms"),
        ({"latency_ms": float("nan")}, "latency-ms"),
        ({"memory_bytes": 0}, "memory"),
        ({"filters": -1}, "filters"),
        ({"machines": 0}, "machines"),
    ],
)
def test_nonsense_is_refused_by_name(changed, said):
    with pytest.raises(InvalidSetting, match=said):
        Target(**{"rows": 10, "dim": 8, **changed})


@pytest.mark.parametrize(
    ("text", "size"),
    [("64G", 64 * 10**9), ("64 GB", 64 * 10**9), ("64GiB", 64 << 30), ("64gi", 64 << 30),
     ("1.5T", 1.5 * 10**12), ("512m", 512 * 10**6), ("1000000", 10**6), ("8e9", 8 * 10**9),
     ("1_000k", 10**6), ("7B", 7)],
)  # fmt: skip
def test_units_of_memory(text, size):
    assert parse_bytes("memory", text) == size


@pytest.mark.parametrize("text", ["64 bananas", "", "G", "-", "1e", "nan", "inf", "64 G G", "64GBiB", "0x10"])
def test_an_amount_that_is_none_is_refused(text):
    with pytest.raises(InvalidSetting, match="memory must be an amount of memory, as 64G"):
        parse_bytes("memory", text)


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e9", 10**9), ("250000", 250_000), ("250_000", 250_000), ("100M", 10**8), ("2b", 2 * 10**9)],
)
def test_units_of_rows(text, number):
    assert parse_count("rows", text) == number


@pytest.mark.parametrize("text", ["1.5", "many", "10 rows", "1e-3", "nan"])
def test_rows_that_are_no_whole_number_are_refused(text):
    with pytest.raises(InvalidSetting, match="rows must be a whole number"):
        parse_count("rows", text)


def test_the_memory_of_this_machine_is_known():
    assert 10**8 < machine_memory() < 10**15


def test_a_gpu_memory_without_its_unit_is_refused():
    with pytest.raises(InvalidSetting, match=r"gpu-memory must be 1e\+06 to 1e\+18, bytes, as 80G; got 80"):
        Target(rows=10, dim=8, gpu_bytes=80)
