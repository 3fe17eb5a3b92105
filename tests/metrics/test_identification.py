"""Open-set identification is NIST's FPIR and FNIR, counted one probe at a time in float64."""

import math

import pytest
import torch

from dml.metrics.identification import identification_scores, join
from dml.metrics.intervals import clustered_wilson_interval, wilson_interval
from dml.metrics.ranking import Items
from tests.metrics.cases import duplicates, people, ties, uneven


def split(embeddings, labels, *, enrolled=0.5, per_identity=2):
    """Probes and a gallery: the first images of some identities are enrolled, the rest are probes."""
    names = labels.unique()
    chosen = set(names[: max(int(len(names) * enrolled), 1)].tolist())
    seen: dict[int, int] = {}
    in_gallery = []
    for label in labels.tolist():
        seen[label] = seen.get(label, 0) + 1
        in_gallery.append(label in chosen and seen[label] <= per_identity)
    rows = torch.tensor(in_gallery)
    return Items(embeddings[~rows], labels[~rows]), Items(embeddings[rows], labels[rows])


def plain_rates(probes, gallery, threshold, max_rank):
    """FPIR and FNIR by loops."""
    enrolled = sorted(set(gallery.labels.tolist()))
    raised, missed = [], []
    for probe, label in zip(probes.embeddings.double(), probes.labels.tolist(), strict=True):
        best = dict.fromkeys(enrolled, -math.inf)
        for row, name in zip(gallery.embeddings.double(), gallery.labels.tolist(), strict=True):
            best[name] = max(best[name], float(probe @ row))
        if label in best:
            before = [name for name in enrolled if name != label and best[name] >= best[label]]
            missed.append(not (best[label] >= threshold and len(before) + 1 <= max_rank))
        else:
            raised.append(max(best.values()) >= threshold)
    return sum(raised) / len(raised), sum(missed) / len(missed)


@pytest.mark.parametrize("max_rank", [1, 3])
@pytest.mark.parametrize("threshold", [-1.0, 0.25, 0.4, 2.0])
@pytest.mark.parametrize("case", [uneven, ties, duplicates], ids=lambda case: case.__name__)
def test_both_rates_are_those_of_the_plain_loop(case, threshold, max_rank):
    probes, gallery = split(*case(0))
    point = identification_scores(probes, gallery).at_threshold(threshold, max_rank=max_rank)
    assert (point.fpir, point.fnir) == pytest.approx(plain_rates(probes, gallery, threshold, max_rank))


def test_without_a_threshold_the_rank_1_rate_is_that_of_the_plain_loop():
    probes, gallery = split(*people(40, 6, seed=3))
    scores = identification_scores(probes, gallery)
    assert scores.rank_1() == pytest.approx(1 - plain_rates(probes, gallery, -math.inf, 1)[1])
    assert scores.hit_rate(5, threshold=0.5) == pytest.approx(1 - plain_rates(probes, gallery, 0.5, 5)[1])


def test_each_point_of_the_det_curve_is_that_threshold():
    probes, gallery = split(*people(30, 5, seed=1))
    scores = identification_scores(probes, gallery)
    curve = scores.det_curve()
    for threshold, fpir, fnir in zip(curve.thresholds.tolist(), curve.fpir, curve.fnir, strict=True):
        point = scores.at_threshold(threshold)
        assert (float(fpir), float(fnir)) == pytest.approx((point.fpir, point.fnir))
    assert curve.fpir.diff().min() >= 0 >= curve.fnir.diff().max()


@pytest.mark.parametrize("fpir", [0.003, 0.1, 0.5])
def test_at_an_fpir_the_threshold_is_the_lowest_that_keeps_it(fpir):
    probes, gallery = split(*people(60, 6, seed=2))
    scores = identification_scores(probes, gallery)
    point = scores.at_fpir(fpir, resamples=50)
    assert point.fpir <= fpir
    lower = scores.det_curve().thresholds
    lower = lower[lower < point.threshold]
    assert scores.at_threshold(float(lower[0])).fpir > fpir
    assert point.fnir_interval.low <= point.fnir <= point.fnir_interval.high


def test_a_mate_above_the_threshold_behind_an_impostor_is_missed():
    gallery = Items(torch.eye(2), torch.tensor([0, 1]))
    probes = Items(torch.tensor([[0.8, 0.6], [0.6, 0.8]]), torch.tensor([1, 7]))
    scores = identification_scores(probes, gallery)
    assert scores.at_threshold(0.5).fnir == 1.0
    assert scores.at_threshold(0.5, max_rank=2).fnir == 0.0


def test_many_candidates_of_a_non_mated_probe_are_one_false_positive():
    gallery = Items(torch.eye(3), torch.tensor([0, 1, 2]))
    third = torch.full((1, 3), 3**-0.5)
    probes = Items(torch.cat([torch.eye(3)[:1], third, -third]), torch.tensor([0, 7, 8]))
    assert identification_scores(probes, gallery).at_threshold(0.5).fpir == 0.5


def test_galleries_are_searched_apart_and_counted_together():
    embeddings, labels = people(40, 4, seed=5)
    first = torch.arange(len(labels)) % 4 == 0
    probes = Items(embeddings[~first], labels[~first])
    parts = [
        identification_scores(probes, Items(embeddings[rows], labels[rows]))
        for rows in (first & (labels < 20), first & (labels >= 20))
    ]
    joined = join(parts)
    assert len(joined.mates) == len(joined.maxima) == len(probes.labels)
    assert joined.at_threshold(0.5).fpir == pytest.approx(sum(p.at_threshold(0.5).fpir for p in parts) / 2)


def test_an_enrolled_probe_is_refused():
    x, y = people(6, 4, seed=0)
    ids = torch.arange(len(y))
    with pytest.raises(
        ValueError, match="A probe must not be enrolled itself; 1 of 3 are, the first with id 0"
    ):
        identification_scores(Items(x[:3], y[:3] + 9, ids[:3]), Items(x[[0, 5]], y[[0, 5]], ids[[0, 5]]))


@pytest.mark.parametrize("enrolled", [0, 99])
def test_probes_that_are_all_mated_or_all_not_are_refused(enrolled):
    x, y = people(6, 4, seed=0)
    with pytest.raises(ValueError, match="needs mated and non-mated probes; got"):
        identification_scores(Items(x[:4], y[:4]), Items(x[4:], torch.full((20,), enrolled)))


def test_probes_of_another_model_are_refused():
    x, y = people(6, 4, seed=0)
    with pytest.raises(ValueError, match="Embed both with one model"):
        identification_scores(Items(x, y), Items(torch.eye(3), torch.arange(3)))


def test_an_interval_counts_identities_where_their_probes_err_together():
    identities = torch.arange(1000) // 20
    together = identities % 10 == 0
    alike = clustered_wilson_interval(together, identities)
    assert (alike.low, alike.high) == pytest.approx(
        (wilson_interval(5, 50).low, wilson_interval(5, 50).high), rel=0.02
    )


def test_an_interval_of_independent_probes_is_that_of_wilson():
    events = torch.rand(4000, generator=torch.Generator().manual_seed(0)) < 0.1
    found = clustered_wilson_interval(events, torch.arange(4000))
    expected = wilson_interval(int(events.sum()), 4000)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-3)


def test_the_interval_of_a_rate_of_0_is_as_wide_as_there_are_few_identities():
    none = torch.zeros(1000, dtype=torch.bool)
    assert clustered_wilson_interval(none, torch.arange(1000) // 100) == wilson_interval(0, 10)
