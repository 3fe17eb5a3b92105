"""Few-shot accuracy is that of episodes classified one query at a time, and chance where nothing is known."""

import pytest
import torch

from dml.metrics.fewshot import class_pools, draw_episodes, few_shot
from dml.metrics.intervals import class_weights
from tests.metrics.cases import duplicates, people, ties, uneven, unit


def plain_episode(embeddings, rows, shots):
    """Accuracies by class mean and by nearest example, in loops; the first drawn of equally near classes."""
    right = {"class_mean": 0, "nearest": 0}
    num_queries = 0
    for truth, members in enumerate(rows):
        for query in members[shots:]:
            x = embeddings[query]
            to_means, to_nearest = [], []
            for other in rows:
                examples = [embeddings[row] for row in other[:shots]]
                mean = sum(examples) / shots
                to_means.append(round(float(((x - mean) ** 2).sum()), 10))
                to_nearest.append(round(min(float(((x - e) ** 2).sum()) for e in examples), 10))
            right["class_mean"] += to_means.index(min(to_means)) == truth
            right["nearest"] += to_nearest.index(min(to_nearest)) == truth
            num_queries += 1
    return {name: count / num_queries for name, count in right.items()}


@pytest.mark.parametrize("shots", [1, 3])
@pytest.mark.parametrize("case", [uneven, duplicates, ties], ids=lambda case: case.__name__)
def test_every_episode_is_that_of_the_plain_loop(case, shots):
    embeddings, labels = case(1)
    arguments = {"ways": 4, "episodes": 30, "seed": 5}
    actual = few_shot(embeddings, labels, shots=shots, queries_per_class=2, **arguments)
    pools = class_pools(labels, None, 4, shots + 2)
    for number, rows in enumerate(draw_episodes(pools, size=shots + 2, **arguments)):
        expected = plain_episode(embeddings, rows.tolist(), shots)
        assert float(actual.class_mean[number]) == pytest.approx(expected["class_mean"])
        assert float(actual.nearest[number]) == pytest.approx(expected["nearest"])


def test_an_episodes_classes_differ_and_its_items_are_drawn_once():
    labels = torch.arange(60) % 6
    pools = class_pools(labels, None, 5, 4)
    for rows in draw_episodes(pools, ways=5, size=4, episodes=50, seed=0):
        assert len(rows.unique()) == 20
        assert (labels[rows] == labels[rows][:, :1]).all()
        assert len(labels[rows[:, 0]].unique()) == 5


def test_classes_of_an_episode_share_their_alphabet():
    labels = torch.arange(80) // 4
    alphabets = labels % 3 * 7
    pools = class_pools(labels, alphabets, 3, 2)
    seen = set()
    for rows in draw_episodes(pools, ways=3, size=2, episodes=60, seed=0):
        assert len(alphabets[rows].unique()) == 1
        seen.add(int(alphabets[rows[0, 0]]))
    assert seen == {0, 7, 14}


def test_one_shot_is_the_same_by_mean_and_by_neighbour():
    actual = few_shot(unit(100, 16, 0), torch.arange(100) // 5, ways=10, episodes=50)
    torch.testing.assert_close(actual.class_mean, actual.nearest)
    assert actual.means()["class_mean"] == pytest.approx(actual.means()["nearest"])


def test_a_random_embedding_gets_chance_and_a_perfect_one_gets_all():
    labels = torch.arange(100) // 5
    nothing = few_shot(torch.ones(100, 4) / 2, labels, ways=20, episodes=10)
    assert nothing.class_mean.tolist() == pytest.approx([1 / 20] * 10)
    knows = few_shot(torch.eye(20)[labels], labels, ways=20, shots=2, episodes=10)
    assert knows.means() == {"class_mean": 1.0, "nearest": 1.0}


@pytest.mark.parametrize("method", ["class_mean", "nearest"])
def test_the_interval_is_that_of_the_loop_that_weighs_each_error_by_its_two_classes(method):
    embeddings, labels = uneven(1)
    arguments = {"ways": 4, "episodes": 30, "seed": 5}
    actual = few_shot(embeddings, labels, shots=2, queries_per_class=2, **arguments)
    pools = class_pools(labels, None, 4, 4)
    errors, queries = [], []
    for rows in draw_episodes(pools, size=4, **arguments):
        for truth, members in enumerate(rows):
            for query in members[2:]:
                near = [embeddings[other[:2]] @ embeddings[query] for other in rows]
                means = [embeddings[other[:2]].mean(0) for other in rows]
                by_mean = [float(2 * m @ embeddings[query] - m @ m) for m in means]
                scores = by_mean if method == "class_mean" else [float(values.max()) for values in near]
                taken = scores.index(max(scores))
                queries.append(int(labels[members[0]]))
                if taken != truth:
                    errors.append((int(labels[members[0]]), int(labels[rows[taken][0]])))
    names = sorted({int(labels[rows[0]]) for pool in pools for rows in pool})
    accuracies = []
    for weights in torch.cat(list(class_weights(len(names), 100, seed=0))).tolist():
        times = dict(zip(names, weights, strict=True))
        wrong = sum(times[members] + times[taken] - 1 for members, taken in errors)
        accuracies.append(min(max(1 - wrong / max(sum(times[members] for members in queries), 1), 0), 1))
    expected = torch.quantile(
        torch.tensor(accuracies, dtype=torch.float64), torch.tensor([0.025, 0.975], dtype=torch.float64)
    )
    interval = actual.intervals(resamples=100)[method]
    assert [interval.low, interval.high] == pytest.approx(expected.tolist(), abs=1e-9)


@pytest.mark.slow
def test_95_percent_intervals_hold_the_accuracy_on_other_classes_at_least_90_times_of_100():
    """Intervals over episodes, of 1.96 standard errors, hold it half as often."""
    arguments = {"ways": 5, "episodes": 400}
    truth = few_shot(*people(2000, 6, seed=999), ways=5, episodes=20_000).means()["nearest"]
    covered = {"classes": 0, "episodes": 0}
    for seed in range(100):
        actual = few_shot(*people(40, 6, seed=seed), **arguments)
        interval = actual.intervals(resamples=300)["nearest"]
        error = abs(actual.means()["nearest"] - truth)
        covered["classes"] += interval.low <= truth <= interval.high
        covered["episodes"] += error <= 1.96 * float(actual.nearest.std()) / 400**0.5
    assert covered["classes"] >= 90
    assert covered["episodes"] <= 60


def test_more_episodes_do_not_make_the_interval_narrower_than_the_classes_allow():
    embeddings, labels = people(20, 10, seed=0)
    many, more = (
        few_shot(embeddings, labels, ways=5, episodes=n).intervals()["nearest"] for n in (500, 2000)
    )
    assert more.high - more.low > 0.7 * (many.high - many.low)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ways": 30}, "Lower ways"),
        ({"ways": 5, "shots": 4}, "got 0"),
        ({"ways": 1}, "ways must be a whole number, 2 or more"),
        ({"ways": 5, "episodes": 0}, "episodes"),
        ({"ways": 5, "within": torch.arange(80)}, "one value"),
        ({"ways": 5, "within": torch.arange(79)}, "same length"),
        ({"ways": 15, "within": torch.arange(80) // 4 % 2}, "with one value"),
    ],
)
def test_episodes_that_cannot_be_drawn_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        few_shot(unit(80, 4, 0), torch.arange(80) // 4, **arguments)


def test_an_embedding_that_is_no_number_is_refused():
    with pytest.raises(ValueError, match="finite"):
        few_shot(unit(80, 4, 0).fill_diagonal_(torch.nan), torch.arange(80) // 4, ways=5)
