"""Agreement of clusters and classes: as scikit-learn and as the plain count of pairs."""

import itertools
import math

import pytest
import torch
from sklearn.metrics import adjusted_mutual_info_score, normalized_mutual_info_score

from dml.metrics.clustering import (
    adjusted_mutual_information,
    expected_information,
    normalized_mutual_information,
    pairwise_f1,
)


def drawn(seed, num_classes, num_clusters, rows=200):
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.rand(rows, generator=generator) ** 2 * num_classes).long() * 3 - 5
    clusters = torch.randint(0, num_clusters, (rows,), generator=generator)
    return labels, torch.where(torch.rand(rows, generator=generator) < 0.6, labels + 100, clusters)


CASES = [drawn(seed, *sizes) for seed, sizes in enumerate([(5, 5), (50, 3), (2, 40), (1, 7), (7, 1), (1, 1)])]


@pytest.mark.parametrize("average", ["arithmetic", "geometric"])
@pytest.mark.parametrize("case", CASES)
def test_nmi_is_scikit_learns(case, average):
    expected = normalized_mutual_info_score(*(part.numpy() for part in case), average_method=average)
    assert normalized_mutual_information(*case, average=average) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("terms_at_a_time", [1, 1 << 20])
@pytest.mark.parametrize("case", CASES)
def test_ami_is_scikit_learns(case, terms_at_a_time):
    expected = adjusted_mutual_info_score(*(part.numpy() for part in case))
    actual = adjusted_mutual_information(*case, terms_at_a_time=terms_at_a_time)
    assert actual == pytest.approx(expected, abs=1e-9)


def test_the_expected_information_is_the_mean_over_every_dealing():
    labels, clusters = [0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 1, 1]
    informations = [
        sum(
            n / 6 * math.log(6 * n / (labels.count(c) * clusters.count(g)))
            for c in range(3)
            for g in range(2)
            if (n := sum(pair == (c, g) for pair in zip(labels, dealing, strict=True)))
        )
        for dealing in itertools.permutations(clusters)
    ]
    sizes = torch.tensor([3, 2, 1]), torch.tensor([2, 4])
    expected = math.fsum(informations) / len(informations)
    assert expected_information(*sizes) == pytest.approx(expected, abs=1e-12)


def test_ami_of_the_size_of_sop_takes_seconds_and_clusters_at_random_get_nothing():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60_502) // 5
    clusters = torch.randint(0, 11_316, (60_502,), generator=generator)
    assert abs(adjusted_mutual_information(labels, clusters)) < 0.01
    assert normalized_mutual_information(labels, clusters) > 0.75  # what chance alone gives NMI


def test_ami_beyond_what_can_be_summed_is_refused_with_what_to_use():
    with pytest.raises(ValueError, match="normalised mutual information"):
        adjusted_mutual_information(torch.arange(40) // 8, torch.arange(40) // 10, most_terms=7)


@pytest.mark.parametrize("case", CASES)
def test_f1_is_that_of_all_pairs_counted_one_by_one(case):
    labels, clusters = (part[:60].tolist() for part in case)
    pairs = list(itertools.combinations(range(len(labels)), 2))
    same_class = {(i, j) for i, j in pairs if labels[i] == labels[j]}
    same_cluster = {(i, j) for i, j in pairs if clusters[i] == clusters[j]}
    both = len(same_class & same_cluster)
    precision, recall = both / len(same_cluster), both / len(same_class)
    expected = 2 * precision * recall / (precision + recall)
    assert pairwise_f1(torch.tensor(labels), torch.tensor(clusters)) == pytest.approx(expected)


@pytest.mark.parametrize("same", [torch.zeros(9, dtype=torch.long), torch.arange(9), torch.arange(9) // 3])
def test_two_names_for_the_same_partition_agree_entirely(same):
    assert normalized_mutual_information(same, 7 - same) == pytest.approx(1.0, abs=1e-12)
    assert pairwise_f1(same, 7 - same) == 1.0
    assert adjusted_mutual_information(same, 7 - same) == 1.0


def test_one_cluster_of_everything_has_no_information():
    assert normalized_mutual_information(torch.arange(6) // 2, torch.zeros(6, dtype=torch.long)) == 0.0


@pytest.mark.parametrize("metric", [normalized_mutual_information, adjusted_mutual_information, pairwise_f1])
def test_labelings_of_other_things_are_refused(metric):
    with pytest.raises(ValueError, match="same length"):
        metric(torch.arange(3), torch.arange(4))


def test_an_unknown_average_is_refused():
    with pytest.raises(ValueError, match="geometric"):
        normalized_mutual_information(torch.arange(3), torch.arange(3), average="max")
