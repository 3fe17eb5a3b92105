"""N workers compute the loss, the gradients and the training of one worker on the whole batch."""

import copy
from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dml.training.gather import gather
from tests.losses.cases import CASES, DIM, balanced, one_class, scattered, uneven
from tests.spawn import run_ranks

BATCHES = [uneven(), balanced(), one_class()]


class _Learner(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(DIM, DIM, bias=False)
        self.loss = CASES[name].make()
        self.double()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        embeddings = nn.functional.normalize(self.encoder(images))
        return self.loss(embeddings, labels, gather(embeddings, labels))


def results(num_steps: int) -> dict[str, list[Tensor]]:
    """Of every loss: its value and all gradients on each batch, and the weights after all steps."""
    return {name: _results(name, num_steps) for name in CASES}


def _results(name: str, num_steps: int) -> list[Tensor]:
    world_size = dist.get_world_size() if dist.is_initialized() else 1
    rank = dist.get_rank() if world_size > 1 else 0
    module = _Learner(name)
    learner = DistributedDataParallel(module, find_unused_parameters=False) if world_size > 1 else module
    optimizer = torch.optim.SGD(learner.parameters(), lr=0.05)
    found = []
    for step in range(num_steps):
        labels = BATCHES[step % len(BATCHES)].chunk(world_size)[rank]
        images = scattered(seed=step).chunk(world_size)[rank]
        optimizer.zero_grad()
        value = learner(images, labels)
        value.backward()
        if step < len(BATCHES):
            mean = value.detach().clone()
            if world_size > 1:
                dist.all_reduce(mean)
            found += [mean / world_size, *(copy.deepcopy(p.grad) for p in module.parameters())]
        optimizer.step()
    return [*found, *(p.detach() for p in module.parameters())]


@cache
def alone(num_steps: int) -> dict[str, list[Tensor]]:
    return run_ranks(1, results, num_steps)[0]


@pytest.mark.parametrize(
    ("world_size", "num_steps"), [(2, 5), (3, 5), pytest.param(4, 20, marks=pytest.mark.slow)]
)
def test_workers_equal_one_process_in_value_gradients_and_trained_weights(world_size, num_steps):
    for of_rank in run_ranks(world_size, results, num_steps):
        torch.testing.assert_close(of_rank, alone(num_steps), rtol=1e-7, atol=1e-10)


def _gather_unequal() -> str:
    rows = 2 + dist.get_rank()
    with pytest.raises(ValueError, match=r"got \[2, 3\]") as refused:
        gather(torch.zeros(rows, 4), torch.zeros(rows, dtype=torch.int64))
    return str(refused.value)


def test_unequal_batches_are_refused_on_every_rank():
    assert len(run_ranks(2, _gather_unequal)) == 2


def _fail_on_one_rank() -> None:
    if dist.get_rank() == 1:
        raise ArithmeticError("rank one says no")
    dist.barrier()


def test_a_rank_that_fails_is_reported_with_its_error():
    with pytest.raises(RuntimeError, match="rank one says no"):
        run_ranks(2, _fail_on_one_rank)


def test_alone_the_references_are_the_batch_itself():
    embeddings, labels = scattered(), uneven()
    references = gather(embeddings, labels)
    assert references.embeddings is embeddings
    assert references.labels is labels
