"""The planner, without Faiss: it refuses nothing it could do and promises nothing that was not measured."""

import doctest
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dml.retrieval import plan as plan_module
from dml.retrieval import query_costs
from dml.retrieval.plan import Plan, choose_plan
from dml.retrieval.query_costs import Costs
from dml.retrieval.recall_table import EXACT, Recall, RecallCell, RecallStep, RecallTable, depths_of
from tests.retrieval.calibrations import costs, table

examples = settings(max_examples=200, deadline=None, derandomize=True, database=None)
microseconds = st.floats(0, 1e4)
shares = st.floats(0, 1)
BUILT = Recall(value=0.95, basis="built")


@st.composite
def any_costs(draw):
    names = ["scan_us", "scan_row_us", "range_row_us", "index_us", "list_us", "id_us", "match_us"]
    return Costs(processor="any", **{name: draw(microseconds) for name in names})


@st.composite
def any_table(draw):
    num_lists = draw(st.integers(1, 5000))
    selectivities = sorted(draw(st.sets(st.floats(1e-6, 1), min_size=1, max_size=6)), reverse=True)
    probes = sorted(draw(st.integers(1, num_lists)) for _ in selectivities)
    cells = []
    for selectivity in selectivities:
        for correlation in ("random", "inside", "outside"):
            low, recall, high = sorted(draw(shares) for _ in range(3))
            cells.append(
                RecallCell(
                    selectivity=selectivity,
                    correlation=correlation,
                    by_index=draw(shares),
                    recall=recall,
                    low=low,
                    high=high,
                    num_queries=draw(st.integers(1, 256)),
                )
            )
    return RecallTable(
        target=0.99,
        k=draw(st.integers(1, 20)),
        num_lists=num_lists,
        candidates=draw(st.sampled_from([1, 4])),
        rare=draw(st.floats(1, 5)),
        steps=tuple(
            RecallStep(
                selectivity=share,
                margin=draw(st.floats(0, 2)),
                rare_margin=draw(st.none() | st.floats(0, 2)),
                probes=number,
                lists=draw(st.floats(0, number)),
                ids_share=draw(shares),
                matches_share=draw(shares),
            )
            for share, number in zip(selectivities, probes, strict=True)
        ),
        cells=tuple(cells),
    )


@st.composite
def counts(draw):
    rows = draw(st.integers(1, 10**9))
    return draw(st.integers(0, rows)), rows, draw(st.integers(1, 2000))


@examples
@given(
    counts(), st.none() | any_costs(), st.none() | any_table(), st.booleans(), st.sampled_from([None, BUILT])
)
def test_whatever_the_table_there_is_a_plan_and_it_promises_only_what_was_measured(
    numbers, fitted, recall_table, filtered, built
):
    count, rows, k = numbers
    if not filtered:
        count = rows
    plan = choose_plan(count, rows, k, fitted, recall_table, filtered=filtered, built=built)
    assert (plan.kind == "nothing") == (count == 0)
    assert plan.recall == EXACT or plan.kind in ("index", "index_filtered")
    if plan.kind == "index":
        assert count == rows
        assert plan.recall == (built or EXACT)
    if plan.kind == "index_filtered":
        assert filtered
        assert k < count < rows
        assert plan.index_us < plan.scan_us
        assert 1 <= plan.probes <= recall_table.num_lists
        assert 1 <= plan.looked_at <= recall_table.num_lists
        assert recall_table.k * rows / count <= recall_table.k / recall_table.steps[-1].selectivity * 1.000001
        same = [
            cell
            for cell in recall_table.cells
            if (cell.recall, cell.low) == (plan.recall.value, plan.recall.low)
        ]
        assert same
        assert plan.recall.num_queries == same[0].num_queries


@examples
@given(counts(), any_costs(), any_table())
def test_a_plan_is_the_cheapest_of_those_there_are(numbers, fitted, recall_table):
    count, rows, k = numbers
    plan = choose_plan(count, rows, k, fitted, recall_table, built=BUILT)
    if plan.index_us is not None and k < count < rows:
        chosen = plan.scan_us if plan.kind == "exact" else plan.index_us
        assert chosen == min(plan.scan_us, plan.index_us)


@examples
@given(any_table(), st.integers(1, 10**7), st.integers(1, 500), st.data())
def test_fewer_matches_or_more_answers_never_look_at_fewer_lists(recall_table, rows, k, data):
    many, few = sorted((data.draw(st.integers(1, rows)), data.draw(st.integers(1, rows))), reverse=True)
    first, second = recall_table.probes_for(many, rows, k), recall_table.probes_for(few, rows, k)
    assert second is None or (first is not None and first.looked_at <= second.looked_at)
    more = recall_table.probes_for(many, rows, k + 10)
    assert more is None or (first is not None and first.looked_at <= more.looked_at)


@examples
@given(any_table(), st.integers(1, 6), st.integers(1, 40), st.integers(0, 10**6))
def test_a_margin_is_promised_only_as_deep_as_was_measured(recall_table, queries, looked_at, seed):
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 300, (queries, looked_at))
    matches = rng.integers(0, ids + 1)
    k = int(rng.integers(1, 15))
    rows, wanted = 10**6, max(k, recall_table.k)
    expected = wanted * rows / int(rng.integers(wanted, rows))
    depths = depths_of(ids, matches, matches.cumsum(axis=1), wanted)
    margin, rare_margin = recall_table.margins_at(expected)
    margins = recall_table.margins_for(depths, expected, (margin, rare_margin))
    deepest = recall_table.k / recall_table.steps[-1].selectivity
    for query in range(queries):  # the plain loop
        before = found = 0
        for size, matching in zip(ids[query], matches[query], strict=True):
            if found + matching >= wanted:
                depth = before + size * (wanted - found) / matching
                assert depths[query] == pytest.approx(depth)
                is_rare = depths[query] > recall_table.rare * expected
                promised = rare_margin if is_rare else margin
                is_too_deep = depths[query] > deepest * (1 + 1e-9)
                np.testing.assert_equal(margins[query], math.nan if is_too_deep else promised)
                break
            before, found = before + size, found + matching
        else:
            assert math.isnan(margins[query])


def test_between_two_selectivities_all_is_interpolated_in_the_logarithms():
    steps = table(1000, {1.0: 10, 0.01: 1000}, probes={1.0: 5, 0.01: 500}, margins={1.0: 0.1, 0.01: 0.3})
    assert steps.probes_for(100, 1000, 10).looked_at == 100, "twice as many as were enough"
    assert steps.probes_for(100, 1000, 10).lists == pytest.approx(505)
    assert steps.probes_for(1000, 1000, 10).looked_at == 10
    assert steps.probes_for(10, 1000, 10).looked_at == 1000
    assert steps.probes_for(9, 1000, 10) is None, "deeper than what was measured"
    assert steps.probes_for(100, 1000, 100).looked_at == 1000, "ten times the answers lie ten times as deep"
    assert steps.margins_at(100)[0] == pytest.approx(0.2)
    assert math.isnan(steps.margins_at(100)[1]), "nothing was measured where matches are rare"


@pytest.mark.parametrize(
    ("count", "k", "arguments", "kind", "reason"),
    [
        (0, 5, {}, "nothing", "no item matches"),
        (500, 5, {}, "exact", "Flat compares with every match anyway"),
        (500, 500, {"built": BUILT}, "exact", "every match is wanted"),
        (500, 5, {"built": BUILT}, "exact", "Flat is not calibrated for filters"),
        (
            500,
            5,
            {"built": BUILT, "costs": costs(), "recall_table": table(9, {0.9: 1})},
            "exact",
            "too few match",
        ),
        (
            500,
            5,
            {"built": BUILT, "costs": costs(list_us=1e6), "recall_table": table(9, {0.1: 1})},
            "exact",
            "costs less than the index",
        ),
        (
            500,
            5,
            {"built": BUILT, "costs": costs(), "recall_table": table(9, {0.1: 1})},
            "index_filtered",
            "costs less than exact",
        ),
        (1000, 5, {"built": BUILT}, "index", "every item matches"),
        (1000, 5, {"built": BUILT, "filtered": False}, "index", "there is no filter"),
    ],
)
def test_each_plan_has_its_reason(count, k, arguments, kind, reason):
    plan = choose_plan(count, 1000, k, **arguments)
    assert plan.kind == kind
    assert reason in plan.reason


def test_a_plan_is_one_line_for_people_and_json_for_reports():
    plan = choose_plan(500, 1000, 5, costs(), table(9, {0.1: 3}), factory="IVF9,Flat", built=BUILT)
    assert (
        str(plan.noting("one thing", ""))
        == "500 of 1000 items match, IVF9,Flat among them, 3 lists; one thing"
    )
    assert Plan.model_validate_json(plan.model_dump_json()) == plan
    assert json.loads(plan.model_dump_json())["recall"]["basis"] == "calibrated"
    said = dict(plan.explained())
    assert said["recall"] == "0.950, calibrated on 256 queries like the items, interval 0.920 to 0.970"
    assert said["exact"] == "501 us"
    assert said["index"] == "1 us, 3 lists"


def test_counts_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="count must be 0 to rows"):
        choose_plan(5, 4, 1)


@pytest.mark.parametrize("module", [plan_module, query_costs])
def test_the_examples_in_the_documentation_run(module):
    done = doctest.testmod(module)
    assert done.attempted
    assert done.failed == 0


def test_costs_are_those_of_the_formula():
    fitted = costs(scan_row_us=0.5, range_row_us=0.25, list_us=2.0)
    assert math.isclose(fitted.scan(10), 6.0)
    assert math.isclose(fitted.scan(10, is_range=True), 3.5)
    assert fitted.index(lists=1, ids=9, matches=3) == 3
    assert fitted.lists(ids=np.array([9, 9]), matches=np.array([3, 0])).tolist() == [2, 2]


def test_a_long_range_of_rows_is_compared_with_where_its_rows_apart_are_searched_by_the_index():
    fitted = costs(scan_row_us=0.5, range_row_us=0.25, list_us=50.0)
    lists = table(9, {1.0: 3, 0.1: 3})
    apart, in_a_range = (
        choose_plan(500, 1000, 5, fitted, lists, built=BUILT, is_range=is_range) for is_range in (False, True)
    )
    assert (apart.kind, apart.scan_us) == ("index_filtered", 251)
    assert (in_a_range.kind, in_a_range.scan_us) == ("exact", 126)
