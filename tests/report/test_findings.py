"""What is worth looking at, against plain loops, and on vectors whose wrong labels we planted."""

import math

import pytest
import torch

from dml.metrics.ranking import Items
from dml.metrics.retrieval import query_metrics
from dml.report.findings import (
    class_gains,
    confident_mistakes,
    label_suspects,
    nearest,
    only_right,
    win_loss_tie,
    worst_queries,
)
from dml.reports import WinLossTie


def items(vectors, labels, groups=None):
    labels = torch.as_tensor(labels)
    return Items(torch.as_tensor(vectors), labels, torch.arange(len(labels)), groups)


def random_items(seed, num_items=40, num_classes=6, dim=4):
    chance = torch.Generator().manual_seed(seed)
    vectors = torch.nn.functional.normalize(torch.randn(num_items, dim, generator=chance).double(), dim=1)
    vectors[5] = vectors[9]  # duplicates, which tie everywhere
    return items(vectors, torch.randint(num_classes, (num_items,), generator=chance))


def clusters(sizes, spread=0.02, seed=0):
    """Tight clusters around the axes, and their labels."""
    chance = torch.Generator().manual_seed(seed)
    labels = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    centers = torch.eye(len(sizes), dtype=torch.float64)[labels]
    noise = spread * torch.randn(len(labels), len(sizes), generator=chance, dtype=torch.float64)
    return torch.nn.functional.normalize(centers + noise, dim=1), labels


def neighbors_in_loops(all_items, query):
    """Every other row, the nearest first, ties by place."""
    vectors = all_items.embeddings
    others = [row for row in range(len(vectors)) if row != query]
    return sorted(others, key=lambda row: (-float(vectors[query] @ vectors[row]), row))


def suspects_in_loops(all_items, agreeing):
    labels = all_items.labels.tolist()
    suspects = {}
    for query, label in enumerate(labels):
        order = neighbors_in_loops(all_items, query)
        other = labels[order[0]]
        needed = max(min(agreeing, labels.count(other)), 2)
        near = order[:needed]
        if other != label and labels.count(label) > 1 and all(labels[row] == other for row in near):
            suspects[query] = other
    return suspects


@pytest.mark.parametrize("seed", range(5))
def test_neighbours_are_those_of_plain_loops(seed):
    case = random_items(seed)
    neighbors = nearest(case, depth=7)
    for query in range(len(case.labels)):
        assert neighbors.answers[query].tolist() == neighbors_in_loops(case, query)[:7]
        label = case.labels[query]
        assert neighbors.right[query].tolist() == [
            bool(case.labels[r] == label) for r in neighbors.answers[query]
        ]


def test_answers_of_the_querys_own_camera_are_not_shown():
    vectors, labels = clusters([3, 3])
    neighbors = nearest(items(vectors, labels, groups=torch.tensor([0, 0, 1, 0, 0, 1])), depth=6)
    assert neighbors.answers[0, 0] == 2
    assert neighbors.similarities[0].tolist().count(-math.inf) == 2, "itself, and its neighbour of one camera"


def test_where_queries_and_gallery_are_apart_answers_are_rows_of_the_gallery():
    vectors, labels = clusters([4, 4])
    asking, answering = torch.tensor([1, 6]), torch.tensor([0, 2, 3, 4, 5, 7])
    given = labels.clone()
    given[6] = 0
    sides = [Items(vectors[rows], given[rows], rows) for rows in (asking, answering)]
    neighbors = nearest(*sides, depth=3)
    assert neighbors.rows.tolist() == [1, 6]
    assert set(neighbors.answers[0].tolist()) == {0, 2, 3}
    assert set(neighbors.answers[1].tolist()) == {4, 5, 7}
    (suspect,) = label_suspects(neighbors, agreeing=3)
    assert (suspect.query, suspect.label, suspect.agreed) == (1, 0, 1)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("agreeing", [2, 3, 5])
def test_suspects_are_those_of_plain_loops(seed, agreeing):
    case = random_items(seed, num_items=60, num_classes=3, dim=2)
    suspects = label_suspects(nearest(case, depth=agreeing), agreeing=agreeing)
    assert {suspect.query: suspect.agreed for suspect in suspects} == suspects_in_loops(case, agreeing)
    similarities = [suspect.similarity for suspect in suspects]
    assert similarities == sorted(similarities, reverse=True)
    if agreeing == 2:
        assert suspects, "the case must have some"


def test_planted_wrong_labels_are_suspected_and_nothing_else():
    vectors, truth = clusters([8, 8, 8, 8])
    given = truth.clone()
    given[[3, 12, 30]] = torch.tensor([1, 3, 0])
    suspects = label_suspects(nearest(items(vectors, given), depth=5))
    planted = {3: (1, 0), 12: (3, 1), 30: (0, 3)}
    assert {suspect.query: (suspect.label, suspect.agreed) for suspect in suspects} == planted
    assert all(suspect.num_agreeing == 5 for suspect in suspects)


def test_where_a_class_is_small_all_of_it_must_agree():
    vectors, truth = clusters([4, 8])
    given = truth.clone()
    given[0] = 1  # three are left of class 0, and all three are nearest
    (suspect,) = label_suspects(nearest(items(vectors, given), depth=5))
    assert (suspect.query, suspect.agreed, suspect.num_agreeing) == (0, 0, 3)


def test_lone_items_and_single_neighbours_prove_nothing():
    vectors, truth = clusters([1, 6, 2])
    assert label_suspects(nearest(items(vectors, truth), depth=5)) == [], "item 0 has no positive"
    given = truth.clone()
    given[7] = 1  # one item is left of class 2, and it is nearest: a mistake, not evidence
    assert all(suspect.query != 7 for suspect in label_suspects(nearest(items(vectors, given), depth=5)))


def test_one_agreeing_neighbour_is_refused():
    with pytest.raises(ValueError, match="2 or more"):
        label_suspects(nearest(random_items(0), depth=5), agreeing=1)


def test_the_worst_queries_come_first_and_of_equals_the_surest():
    case = random_items(3)
    metrics, near = query_metrics(case), nearest(case, depth=5)
    values = dict(zip(metrics.rows.tolist(), metrics.values["map_at_r"].tolist(), strict=True))
    expected = sorted(values, key=lambda query: (values[query], -float(near.similarities[query, 0]), query))
    assert worst_queries(metrics, near, len(values)) == expected
    assert worst_queries(metrics, near, 3) == expected[:3]


def test_confident_mistakes_are_wrong_first_answers_by_similarity():
    case = random_items(4)
    near = nearest(case, depth=5)
    actual = confident_mistakes(near, 100)
    wrong = [query for query in range(len(case.labels)) if not near.right[query, 0] and near.relevant[query]]
    assert actual == sorted(wrong, key=lambda query: (-float(near.similarities[query, 0]), query))
    perfect = items(*clusters([4, 4]))
    assert confident_mistakes(nearest(perfect, depth=3), 10) == []


def test_gains_by_class_are_those_of_plain_loops_the_largest_first():
    case, other = random_items(5), random_items(6)
    other = items(other.embeddings, case.labels)
    first, second = query_metrics(case), query_metrics(other)
    labels, values = first.labels.tolist(), [actual.values["map_at_r"].tolist() for actual in (first, second)]
    expected = []
    for label in set(labels):
        queries = [query for query, each in enumerate(labels) if each == label]
        means = [sum(column[query] for query in queries) / len(queries) for column in values]
        expected.append((label, len(queries), pytest.approx(means[0]), pytest.approx(means[1])))
    actual = class_gains(first, second)
    assert sorted(actual, key=lambda each: -each.gain) == actual
    actual = sorted(actual, key=lambda each: each.label)
    assert [(each.label, each.num_queries, each.first, each.second) for each in actual] == sorted(
        expected, key=lambda each: each[0]
    )


def test_equal_gains_are_in_the_order_of_class_ids():
    metrics = query_metrics(random_items(5))
    gains = class_gains(metrics, metrics)
    assert [each.label for each in gains] == sorted(each.label for each in gains)
    assert {each.gain for each in gains} == {0.0}


def test_rounding_wins_nothing():
    assert win_loss_tie([0.1 + 0.2 - 0.3, -1e-15, 0.0]) == WinLossTie(won=0, lost=0, tied=3)
    assert win_loss_tie([0.01, -0.01, 0.5, 0.0]) == WinLossTie(won=2, lost=1, tied=1)
    assert win_loss_tie([]) == WinLossTie(won=0, lost=0, tied=0)


def test_only_right_are_first_answers_that_one_embedding_alone_gets_right():
    case = random_items(7, num_classes=3)
    other = items(random_items(8).embeddings, case.labels)
    near, near_other = nearest(case, depth=1), nearest(other, depth=1)
    gains = {query: math.sin(query // 2) for query in range(len(case.labels))}  # with ties
    expected = [
        query
        for query, label in enumerate(case.labels)
        if case.labels[neighbors_in_loops(case, query)[0]] == label
        and case.labels[neighbors_in_loops(other, query)[0]] != label
    ]
    expected.sort(key=lambda query: (-gains[query], query))
    assert len(expected) > 3
    assert only_right(near, near_other, gains, 100) == expected
    assert only_right(near, near_other, gains, 2) == expected[:2]
    assert only_right(near, near, gains, 100) == []
