"""Proxies cut over workers: the loss, the gradients and the training of one process that holds them all."""

import copy
from functools import cache, partial

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dml import losses
from dml.losses.core.blocks import max_block_values
from dml.losses.core.proxies import initial_rows
from dml.losses.core.shards import Shard, reshard
from dml.training.gather import gather
from dml.training.spawn import run_ranks
from tests.losses.cases import DIM, LABELS, scattered, uneven

NUM_CLASSES = 13  # W = 3 cuts them into 5, 5 and 3

MAKERS = {loss.__name__: loss for loss in losses.LOSSES.values() if issubclass(loss, losses.ProxyLoss)} | {
    "SoftTriple": partial(losses.SoftTriple, centers_per_class=3),
    "CosFace, sampled": partial(losses.CosFace, sample_rate=0.4),
    "Softmax, sampled": partial(losses.Softmax, sample_rate=0.4),
    "SoftTriple, sampled": partial(losses.SoftTriple, centers_per_class=2, sample_rate=0.4),
}
OPTIMIZERS = {
    "sgd": partial(torch.optim.SGD, lr=0.05, momentum=0.9),
    "adamw": partial(torch.optim.AdamW, lr=0.01),
}


class Learner(nn.Module):
    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Linear(DIM, DIM, bias=False)
        self.loss = loss
        self.double()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        embeddings = nn.functional.normalize(self.encoder(images))
        return self.loss(embeddings, labels, gather(embeddings, labels))


def place() -> tuple[int, int]:
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def wrapped(learner: nn.Module) -> nn.Module:
    if place()[1] == 1:
        return learner
    losses.keep_shards_local(learner)
    return DistributedDataParallel(learner)


def whole(rows: Tensor, shard: Shard) -> Tensor:
    """All rows on every rank, by a way of its own: padded and gathered."""
    if shard.world_size == 1:
        return rows.clone()
    padded = rows.new_zeros(-(-shard.num_rows // shard.world_size), *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(shard.world_size)]
    dist.all_gather(parts, padded)
    return torch.cat(parts)[: shard.num_rows]


def results(sharded: bool, num_classes: int = NUM_CLASSES) -> dict[str, list[Tensor]]:
    """Of every loss and optimiser: values and all gradients of three batches, and the weights after ten."""
    return {
        f"{name}, {kind}": _results(make, OPTIMIZERS[kind], sharded, num_classes)
        for name, make in MAKERS.items()
        for kind in OPTIMIZERS
    }


def _results(make, make_optimizer, sharded: bool, num_classes: int) -> list[Tensor]:
    rank, world_size = place()
    module = Learner(make(num_classes, DIM, seed=5, sharded=sharded))
    learner = wrapped(module)
    optimizer = make_optimizer(module.parameters())
    shards = losses.named_shards(module)

    def gathered(name: str, values: Tensor) -> Tensor:
        return whole(values, shards[name]) if name in shards else values.clone()

    results = []
    for step in range(10):
        labels = LABELS[step % len(LABELS)]() % num_classes
        images = scattered(seed=step)
        optimizer.zero_grad()
        value = learner(images.chunk(world_size)[rank], labels.chunk(world_size)[rank])
        value.backward()
        if step < 3:
            mean = value.detach().clone()
            if world_size > 1:
                dist.all_reduce(mean)
            gradients = [gathered(name, p.grad) for name, p in module.named_parameters()]
            results += [mean / world_size, *gradients]
        optimizer.step()
    return [*results, *(gathered(name, p.detach()) for name, p in module.named_parameters())]


@cache
def alone(num_classes: int) -> dict[str, list[Tensor]]:
    return results(sharded=False, num_classes=num_classes)


# Of 4 classes the third of three ranks holds none.
@pytest.mark.parametrize(
    ("world_size", "num_classes"),
    [
        (1, 13),
        (2, 13),
        pytest.param(3, 13, marks=pytest.mark.slow),
        pytest.param(3, 4, marks=pytest.mark.slow),
    ],
)
def test_shards_equal_one_process_in_value_gradients_and_trained_weights(world_size, num_classes):
    for of_rank in run_ranks(world_size, results, True, num_classes):
        torch.testing.assert_close(of_rank, alone(num_classes), rtol=1e-8, atol=1e-11)


def test_whole_proxies_on_two_workers_sample_as_one_process_does():
    for of_rank in run_ranks(2, results, False):
        torch.testing.assert_close(of_rank, alone(NUM_CLASSES), rtol=1e-8, atol=1e-11)


def test_initial_proxies_are_those_of_their_classes_however_they_are_cut():
    table = initial_rows(0, 3000, (4,), seed=7)
    for first, last in [(0, 1), (1023, 1025), (700, 2900), (2999, 3000), (5, 5)]:
        torch.testing.assert_close(initial_rows(first, last, (4,), seed=7), table[first:last], rtol=0, atol=0)
    assert len(table.unique(dim=0)) == 3000
    assert abs(float(table.mean())) < 0.03
    assert abs(float(table.std()) - 1) < 0.03
    assert not torch.equal(initial_rows(0, 10, (4,), seed=8), table[:10])


@pytest.mark.parametrize("num_rows", [1, 4, 13, 1000])
@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_every_row_is_in_one_shard(num_rows, world_size):
    shards = [Shard(num_rows, rank, world_size) for rank in range(world_size)]
    assert [row for shard in shards for row in range(shard.first, shard.last)] == list(range(num_rows))
    assert max(map(len, shards)) == -(-num_rows // world_size)


def _without_references() -> None:
    loss = losses.CosFace(NUM_CLASSES, DIM, sharded=True)
    with pytest.raises(ValueError, match="need the batches of all 2 ranks"):
        loss(scattered().float(), uneven())


def test_shards_without_the_global_batch_are_refused():
    run_ranks(2, _without_references)


@pytest.mark.parametrize("name", MAKERS)
@pytest.mark.parametrize("block", [1, 4 * (12 + DIM), 10 * (12 + DIM)])
def test_blocks_of_classes_change_neither_value_nor_gradient(name, block):
    module = MAKERS[name](NUM_CLASSES, DIM, seed=5).double()

    def value_and_gradients() -> list[Tensor]:
        once = copy.deepcopy(module)
        embeddings = scattered().requires_grad_()
        value = once(embeddings, uneven())
        value.backward()
        return [value.detach(), embeddings.grad, *(p.grad for p in once.parameters())]

    one_piece = value_and_gradients()
    with max_block_values(block):
        torch.testing.assert_close(value_and_gradients(), one_piece, rtol=1e-12, atol=1e-13)


def test_a_second_backward_computes_again_what_the_first_used_up():
    loss, embeddings = losses.CosFace(NUM_CLASSES, DIM).double(), scattered().requires_grad_()
    value = loss(embeddings, uneven())
    first = torch.autograd.grad(value, [embeddings, loss.proxies], retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(value, [embeddings, loss.proxies]), first)


def test_frozen_proxies_or_embeddings_leave_the_other_gradient_as_it_is():
    loss, embeddings = losses.CosFace(NUM_CLASSES, DIM).double(), scattered().requires_grad_()
    loss(embeddings, uneven()).backward()
    of_embeddings, of_proxies = embeddings.grad, loss.proxies.grad
    loss.proxies.grad = None
    loss(scattered(), uneven()).backward()
    torch.testing.assert_close(loss.proxies.grad, of_proxies)
    loss.requires_grad_(False)
    embeddings.grad = None
    loss(embeddings, uneven()).backward()
    torch.testing.assert_close(embeddings.grad, of_embeddings)


def _reshard(old: int, new: int) -> Tensor:
    table = torch.arange(40.0).view(20, 2)
    was, now = Shard.of_this_rank(old), Shard.of_this_rank(new)
    actual = reshard(table[was.first : was.last], was, now)
    expected = torch.zeros(len(now), 2)
    kept = max(min(now.last, old) - now.first, 0)
    expected[:kept] = table[now.first : now.first + kept]
    torch.testing.assert_close(actual, expected, rtol=0, atol=0)
    return actual


@pytest.mark.parametrize(("old", "new"), [(13, 20), (2, 20)])
def test_rows_find_their_rank_in_another_sharding(old, new):
    assert sum(map(len, run_ranks(3, _reshard, old, new))) == new
