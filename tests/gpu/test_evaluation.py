"""On a GPU the metrics are those of the CPU: exactly so where the similarities are exact."""

import pytest
import torch
from torch import Tensor, nn

from dml.metrics.clustering import normalized_mutual_information
from dml.metrics.retrieval import retrieval_metrics
from dml.metrics.verification import roc_of_all_pairs, roc_of_pairs

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")


def exact() -> tuple[Tensor, Tensor]:
    """Entries +-1/4: every similarity, and so every tie, is exact whatever computes it."""
    signs = torch.randint(0, 2, (600, 16), generator=torch.Generator().manual_seed(0))
    return (signs * 2 - 1).float() / 4, torch.arange(600) % 40


def scattered() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(900) // 3
    centers = torch.randn(300, 32, generator=generator)
    rows = centers[labels] + torch.randn(900, 32, generator=generator)
    return nn.functional.normalize(rows), labels


def test_retrieval_metrics_with_ties(device):
    rows, labels = exact()
    expected = retrieval_metrics(rows, labels, recall_at=(1, 2, 4, 8, 100))
    assert retrieval_metrics(rows.to(device), labels.to(device), recall_at=(1, 2, 4, 8, 100)) == expected


def test_retrieval_metrics_of_scattered_embeddings(device):
    rows, labels = scattered()
    metrics = retrieval_metrics(rows.to(device), labels.to(device), recall_at=(1, 10)).as_dict()
    # Rounding may put two neighbours the other way round, and so change one query of the 900.
    assert metrics == pytest.approx(retrieval_metrics(rows, labels, recall_at=(1, 10)).as_dict(), abs=2 / 900)


def test_verification_on_all_pairs_with_ties(device):
    rows, labels = exact()
    roc, expected = roc_of_all_pairs(rows.to(device), labels.to(device)), roc_of_all_pairs(rows, labels)
    for name in ("thresholds", "genuine", "impostor"):
        assert torch.equal(getattr(roc, name).cpu(), getattr(expected, name)), name
    assert roc.equal_error_rate() == expected.equal_error_rate()


def test_verification_on_given_pairs(device):
    rows, labels = scattered()
    similarities, same = (rows[:-1] * rows[1:]).sum(1), labels[:-1] == labels[1:]
    roc = roc_of_pairs(similarities.to(device), same.to(device))
    assert roc.area() == pytest.approx(roc_of_pairs(similarities, same).area(), abs=1e-9)


def test_all_pairs_in_blocks(device):
    all_pairs = pytest.importorskip("dml.evaluation.all_pairs", exc_type=ImportError)
    from dml.config import EvaluationConfig
    from dml.evaluation.query_gallery import Rows

    rows, labels = exact()
    of_rows = Rows(labels.numpy(), {})
    actual, expected = (
        all_pairs.query_values(rows.to(on), of_rows, EvaluationConfig()) for on in (device, CPU)
    )
    assert actual.means() == expected.means()


def test_clusterings_are_compared_alike(device):
    _, labels = exact()
    clusters = torch.arange(600) // 7 % 40
    actual = normalized_mutual_information(labels.to(device), clusters.to(device))
    assert float(actual) == pytest.approx(float(normalized_mutual_information(labels, clusters)), abs=1e-12)


def test_k_means_of_embeddings_finds_their_clusters(device):
    kmeans = pytest.importorskip("dml.evaluation.kmeans", reason="k-means is Faiss'", exc_type=ImportError)
    rows, labels = scattered()
    clusters = torch.from_numpy(kmeans.k_means(rows.numpy(), 300))
    assert normalized_mutual_information(labels, clusters) > 0.8
