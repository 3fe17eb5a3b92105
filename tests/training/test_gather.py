"""The global batch on every worker: its order, its gradients, and what it costs."""

import pytest
import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from dml.losses import SupCon
from dml.training.gather import gather
from dml.training.spawn import run_ranks

NUM_ROWS = 5
DIM = 3


def gathered() -> dict[str, object]:
    """What this rank sees of rows that say whose they are, and what its rows get back."""
    rank = dist.get_rank()
    embeddings = torch.arange(NUM_ROWS * DIM, dtype=torch.float64).reshape(NUM_ROWS, DIM) + 100 * rank
    embeddings.requires_grad_()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        references = gather(embeddings, torch.arange(NUM_ROWS) + 10 * rank)
        weights = torch.arange(len(references.labels), dtype=torch.float64) + 1
        ((rank + 1) * weights[:, None] * references.embeddings).sum().backward()
    return {
        "embeddings": references.embeddings.detach(),
        "labels": references.labels,
        "own": torch.equal(references.embeddings[references.first_row :][:NUM_ROWS], embeddings),
        "gradient": embeddings.grad,
        "collectives": [event.name for event in profiler.events() if event.name.startswith("gloo:")],
    }


def test_rows_are_in_rank_order_and_gradients_of_all_ranks_return_to_their_rank():
    ranks = run_ranks(3, gathered)
    rows = torch.arange(NUM_ROWS * DIM, dtype=torch.float64).reshape(NUM_ROWS, DIM)
    for rank, actual in enumerate(ranks):
        torch.testing.assert_close(actual["embeddings"], torch.cat([rows, rows + 100, rows + 200]))
        assert actual["labels"].tolist() == [10 * r + row for r in range(3) for row in range(NUM_ROWS)]
        assert actual["own"], "first_row is where this rank's rows begin"
        places = torch.arange(NUM_ROWS, dtype=torch.float64) + rank * NUM_ROWS + 1
        torch.testing.assert_close(actual["gradient"], ((1 + 2 + 3) * places)[:, None].expand(-1, DIM))
        # Row counts; embeddings and labels together; the gradients. gloo scatters a sum by reducing it whole.
        assert actual["collectives"] == ["gloo:all_gather", "gloo:all_gather", "gloo:all_reduce"]


def similarities_in_memory() -> int:
    """The largest tensor a loss makes on this rank, in numbers."""
    rows = torch.nn.functional.normalize(torch.randn(64, 4)).requires_grad_()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        labels = torch.arange(64) // 2
        SupCon()(rows, labels, gather(rows, labels)).backward()
    shapes = [shape for event in profiler.events() for shape in event.input_shapes or []]
    return max(int(torch.tensor(shape).prod()) for shape in shapes if shape)


def test_a_rank_compares_its_own_anchors_alone_with_all():
    own_with_all = 64 * (3 * 64)
    for largest in run_ranks(3, similarities_in_memory):
        assert own_with_all <= largest < 2 * own_with_all, "all with all would be thrice"


def gather_unequal() -> str:
    rows = 2 + dist.get_rank()
    with pytest.raises(ValueError, match=r"got \[2, 3\]") as refused:
        gather(torch.zeros(rows, 4), torch.zeros(rows, dtype=torch.int64))
    return str(refused.value)


def test_unequal_batches_are_refused_on_every_rank():
    assert len(run_ranks(2, gather_unequal)) == 2


def test_in_one_process_the_references_are_the_batch_itself():
    embeddings, labels = torch.randn(4, 3), torch.arange(4)
    references = gather(embeddings, labels)
    assert references.embeddings is embeddings
    assert references.labels is labels
