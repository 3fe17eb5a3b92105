"""Every spelling of a retrieval metric, per query, is its plain loop: galleries, ids, cameras, slices."""

import math

import pytest
import torch

from dml.metrics.ranking import Items
from dml.metrics.retrieval import query_metrics
from tests.metrics.cases import CASES, balanced, on_a_grid, unit

EVERY_METRIC = {
    "recall_at": (1, 3, 50),
    "precision_at": (1, 4, 200),
    "map_at": (1, 3, 100),
    "map_denominators": ("relevant", "attainable", "retrieved"),
    "full_map": True,
}


def plain(queries, gallery, wanted):
    """The definitions in loops; one dict per query, None for one without positives."""
    similarities = (queries.embeddings.double() @ gallery.embeddings.double().T).tolist()
    rows = []
    for q, label in enumerate(queries.labels.tolist()):
        answers = []
        for g in range(len(gallery.labels)):
            same_item = queries.ids is not None and int(queries.ids[q]) == int(gallery.ids[g])
            same_view = (
                queries.groups is not None
                and int(queries.groups[q]) == int(gallery.groups[g])
                and label == int(gallery.labels[g])
            )
            if not same_item and not same_view:
                answers.append(g)
        answers.sort(key=lambda g, q=q: (-similarities[q][g], g))
        hits = [int(gallery.labels[g]) == label for g in answers]
        rows.append(numbers(hits, wanted) if any(hits) else None)
    return rows


def numbers(hits, wanted):
    relevant = sum(hits)

    def gain(k):
        return math.fsum(sum(hits[: i + 1]) / (i + 1) for i in range(min(k, len(hits))) if hits[i])

    values = {f"recall_at_{k}": float(any(hits[:k])) for k in wanted["recall_at"]}
    values |= {f"precision_at_{k}": sum(hits[:k]) / k for k in wanted["precision_at"]}
    values["r_precision"] = sum(hits[:relevant]) / relevant
    values["map_at_r"] = gain(relevant) / relevant
    for k in wanted["map_at"]:
        over = {"relevant": relevant, "attainable": min(k, relevant), "retrieved": max(sum(hits[:k]), 1)}
        values |= {f"map_at_{k}_by_{name}": gain(k) / over[name] for name in wanted["map_denominators"]}
    if wanted["full_map"]:
        values["map"] = gain(len(hits)) / relevant
    return values


def assert_same(actual, rows):
    kept = [row for row, values in enumerate(rows) if values is not None]
    assert actual.rows.tolist() == kept
    assert actual.num_without_positives == len(rows) - len(kept)
    for name, values in actual.values.items():
        assert values.dtype == torch.float64
        assert values.tolist() == pytest.approx([rows[row][name] for row in kept], abs=1e-12), name


def drawn(case, seed):
    embeddings, labels = case(seed)
    generator = torch.Generator().manual_seed(seed + 100)
    ids = torch.randint(0, max(len(labels) * 2 // 3, 1), (len(labels),), generator=generator) * 5 - 7
    groups = torch.randint(0, 3, (len(labels),), generator=generator)
    return embeddings, labels, ids, groups


@pytest.mark.parametrize("full", [True, False], ids=["whole ranking", "nearest only"])
@pytest.mark.parametrize("block_elements", [1, 999, 1 << 25], ids=["by row", "by block", "at once"])
@pytest.mark.parametrize("kept", ["neither", "ids", "groups", "both"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_every_number_of_every_query_is_that_of_the_plain_loop(case, kept, block_elements, full):
    embeddings, labels, ids, groups = drawn(case, 1)
    row_ids = torch.arange(len(labels))
    items = Items(
        embeddings,
        labels,
        ids if kept in ("ids", "both") else None,
        groups if kept in ("groups", "both") else None,
    )
    wanted = {**EVERY_METRIC, "full_map": full}
    with_ids = Items(embeddings, labels, row_ids if items.ids is None else items.ids, items.groups)
    metrics = query_metrics(items, **wanted, block_elements=block_elements)
    assert_same(metrics, plain(with_ids, with_ids, wanted))


@pytest.mark.parametrize("ranked", [1, 3])
@pytest.mark.parametrize("kept", ["neither", "both"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_first_hits_beyond_what_is_ranked_are_counted_exactly(case, kept, ranked):
    embeddings, labels, ids, groups = drawn(case, 2)
    row_ids = torch.arange(len(labels))
    items = Items(embeddings, labels, ids if kept == "both" else row_ids, groups if kept == "both" else None)
    wanted = {"recall_at": (1, 5, 20, 500), "precision_at": (), "map_at": (), "full_map": False}
    metrics = query_metrics(items, recall_at=wanted["recall_at"], recall_depth=ranked)
    assert_same(metrics, plain(items, items, wanted))


@pytest.mark.parametrize("kept", ["neither", "ids", "groups", "both"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_a_gallery_apart_answers_as_the_plain_loop(case, seed, kept):
    embeddings, labels, ids, groups = drawn(case, seed)
    sets = [
        Items(
            embeddings[chosen],
            labels[chosen],
            ids[chosen] if kept in ("ids", "both") else None,
            groups[chosen] if kept in ("groups", "both") else None,
        )
        for chosen in (torch.arange(len(labels)) % 3 == 0, torch.arange(len(labels)) % 3 > 0)
    ]
    assert_same(query_metrics(*sets, **EVERY_METRIC), plain(*sets, EVERY_METRIC))


def test_market_1501_a_view_by_the_querys_own_camera_is_neither_right_nor_wrong():
    embeddings = torch.eye(4, dtype=torch.float64)[[0, 0, 1, 2]]
    gallery = Items(embeddings, torch.tensor([7, 7, 8, 7]), groups=torch.tensor([1, 2, 1, 1]))
    query = Items(embeddings[:1], torch.tensor([7]), groups=torch.tensor([1]))
    metrics = query_metrics(query, gallery, recall_at=(1,), full_map=True)
    assert metrics.means() == {"recall_at_1": 1.0, "r_precision": 1.0, "map_at_r": 1.0, "map": 1.0}
    other = Items(embeddings[:1], torch.tensor([7]), groups=torch.tensor([2]))
    # Its own camera's copy (place 1) is left out; place 0 is right, place 2 another person, place 3 right.
    assert query_metrics(other, gallery, full_map=True).means()["map"] == pytest.approx((1 + 2 / 3) / 2)


def test_macro_means_weigh_classes_and_micro_means_weigh_queries():
    embeddings = torch.eye(4, dtype=torch.float64)[[0, 0, 0, 0, 1, 2]]
    metrics = query_metrics(Items(embeddings, torch.tensor([5, 5, 5, 5, 9, 9])), recall_at=(1,))
    assert metrics.means()["recall_at_1"] == pytest.approx(4 / 6)
    assert metrics.class_means()["recall_at_1"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_macro_means_are_means_of_the_classes_means(case):
    embeddings, labels = case(3)
    metrics = query_metrics(Items(embeddings, labels))
    for name, values in metrics.values.items():
        by_class = [float(values[metrics.labels == label].mean()) for label in metrics.labels.unique()]
        assert metrics.class_means()[name] == pytest.approx(math.fsum(by_class) / len(by_class))


def test_slices_part_the_queries_and_not_the_gallery():
    embeddings, labels = balanced(2)
    chosen = torch.arange(60) % 3 == 1
    whole = query_metrics(Items(embeddings, labels))
    part = whole.select(chosen)
    assert part.rows.tolist() == [row for row in range(60) if row % 3 == 1]
    alone = query_metrics(
        Items(embeddings[chosen], labels[chosen], torch.arange(60)[chosen]),
        Items(embeddings, labels, torch.arange(60)),
    )
    assert part.means() == alone.means()


def test_queries_without_a_positive_are_counted_in_their_slice():
    metrics = query_metrics(Items(unit(5, 4, 0), torch.tensor([1, 1, 2, 3, 4])))
    assert metrics.select(torch.tensor([True, False, True, True, False])).num_without_positives == 2


def test_an_item_embedded_twice_is_not_its_own_answer():
    """Two views of one item share its id; dropping the first column would keep one of them."""
    embeddings = on_a_grid(6, 8, 0).repeat_interleave(2, 0)
    labels = torch.arange(12) // 4
    twice = query_metrics(Items(embeddings, labels, torch.arange(12) // 2)).means()
    once = query_metrics(Items(embeddings[::2], labels[::2])).means()
    assert twice["recall_at_1"] == once["recall_at_1"] < 1


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_embeddings_that_are_not_finite_are_refused(broken):
    embeddings, labels = balanced(0)
    embeddings[17, 3] = broken
    with pytest.raises(ValueError, match="finite"):
        query_metrics(Items(embeddings, labels))


def test_ids_on_one_side_only_are_refused():
    embeddings, labels = balanced(0)
    with pytest.raises(ValueError, match="ids"):
        query_metrics(Items(embeddings, labels, torch.arange(60)), Items(embeddings, labels))


def test_columns_of_another_length_are_refused():
    embeddings, labels = balanced(0)
    with pytest.raises(ValueError, match="groups"):
        Items(embeddings, labels, groups=torch.arange(59))


def test_an_unknown_denominator_is_refused():
    with pytest.raises(ValueError, match="attainable"):
        query_metrics(Items(*balanced(0)), map_at=(5,), map_denominators=("all",))


def test_a_gallery_without_the_querys_class_holds_no_positive():
    embeddings, labels = balanced(0)
    metrics = query_metrics(Items(embeddings, labels), Items(embeddings, labels + 100))
    assert (metrics.num_without_positives, len(metrics.rows)) == (60, 0)
    assert set(metrics.means().values()) == {0.0} == set(metrics.class_means().values())
