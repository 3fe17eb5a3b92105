"""One rule for every metric of embeddings: rows of length 1, within half precision's rounding, or none."""

import pytest
import torch

from dml.metrics.fewshot import few_shot
from dml.metrics.identification import identification_scores
from dml.metrics.intervals import bootstrap_intervals, compare_paired
from dml.metrics.parity import confusezius, open_metric_learning, pytorch_metric_learning
from dml.metrics.ranking import Items
from dml.metrics.retrieval import query_metrics, retrieval_metrics
from dml.metrics.verification import roc_of_all_pairs
from tests.metrics.cases import people

METRICS = {
    "retrieval_metrics": retrieval_metrics,
    "query_metrics": lambda x, y: query_metrics(Items(x, y)),
    "query_metrics, gallery": lambda x, y: query_metrics(Items(x, y), Items(x, y)),
    "roc_of_all_pairs": roc_of_all_pairs,
    "identification_scores": lambda x, y: identification_scores(Items(x, y), Items(x[:15], y[:15])),
    "few_shot": lambda x, y: few_shot(x, y, ways=3, episodes=2),
    "pytorch_metric_learning": lambda x, y: pytorch_metric_learning(Items(x, y)),
    "open_metric_learning": lambda x, y: open_metric_learning(Items(x, y)),
    "confusezius": confusezius,
}
every_metric = pytest.mark.parametrize("name", METRICS)
X, Y = people(6, 5, seed=0)


def changed(row: int, factor: float) -> torch.Tensor:
    x = X.clone()
    x[row] *= factor
    return x


@every_metric
@pytest.mark.parametrize("factor", [0.0, 0.98, 1.02, 7.3])
def test_a_row_of_another_length_is_refused_with_what_to_do(name, factor):
    message = rf"rows of length 1; got length {factor:.4g} in row 3 and 1 such rows of 30\. Pass torch\.nn"
    with pytest.raises(ValueError, match=message):
        METRICS[name](changed(3, factor), Y)


@every_metric
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_row_that_is_not_finite_is_refused_as_such(name, bad):
    with pytest.raises(ValueError, match="must be finite"):
        METRICS[name](changed(3, bad), Y)


@every_metric
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_unit_rows_rounded_to_any_precision_are_taken(name, dtype):
    METRICS[name](X.to(dtype), Y)


@every_metric
def test_what_are_no_rows_of_a_tensor_is_refused(name):
    for x, y, message in (
        (X.numpy(), Y, r"embeddings must be a torch tensor; got numpy\.ndarray\. Pass torch\.as_tensor"),
        (X, Y.tolist(), r"labels must be a torch tensor; got list\. Pass torch\.as_tensor"),
        (X, Y[:-1], "same length"),
        (X[:, 0], Y, r"\(N, D\)"),
        (X[:, None], Y, r"\(N, D\)"),
    ):
        with pytest.raises(ValueError, match=message):
            METRICS[name](x, y)


UNIT = torch.eye(4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: query_metrics(Items(X, Y), Items(UNIT, Y[:4])), r"got D = \d+ and 4\. Embed both with one"),
        (
            lambda: query_metrics(Items(X.float(), Y), Items(X.double(), Y)),
            "must have the same type; got torch.float32",
        ),
        (lambda: Items(UNIT, Y[:4, None]), r"labels must be \(N,\) int64; got \(4, 1\)"),
        (lambda: Items(UNIT, torch.full((4,), torch.nan)), "labels must be finite"),
        (
            lambda: Items(UNIT, torch.zeros(4)),
            r"labels must be \(N,\) int64; got torch.float32. Pass labels.long",
        ),
        (lambda: query_metrics(UNIT), r"queries must be Items; got Tensor. Pass Items\(embeddings, labels\)"),
        (lambda: Items(UNIT, Y[:4], ids=torch.full((4,), torch.nan)), "ids must be finite"),
        (
            lambda: bootstrap_intervals({"recall": torch.tensor([1.0, torch.nan])}, None),
            "recall must be finite",
        ),
        (lambda: bootstrap_intervals({}, None), "must contain at least one metric"),
        (
            lambda: compare_paired(torch.ones(2), torch.tensor([1.0, torch.nan]), None),
            "second must be finite",
        ),
        (
            lambda: roc_of_all_pairs(X[:0], Y[:0]),
            "pairs of the same class and of different classes; got no item",
        ),
    ],
)
def test_what_has_no_answer_is_refused_and_not_answered_with_nan(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_no_query_at_all_gives_zeros_as_no_query_with_a_positive_does():
    metrics = retrieval_metrics(X[:0], Y[:0])
    assert (metrics.recall_at[1], metrics.num_queries, metrics.num_without_positives) == (0.0, 0, 0)
