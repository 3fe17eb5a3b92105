"""A step in chunks is the plain step: value, gradients, dropout, batch norm, and one synchronisation."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from dml import losses
from dml.config import Conv4Config, EncoderConfig
from dml.errors import InvalidSetting
from dml.losses import named_shards
from dml.losses.core.shards import Shard, reshard
from dml.models.encoder import Encoder
from dml.training.cached_step import cached_train_step
from dml.training.ghost_batch_norm import refuse_training_batch_norm
from dml.training.spawn import run_ranks
from dml.training.step import Learner, train_step

NUM_CLASSES = 6
DIM = 8
LOSSES = {
    "pairs": losses.MultiSimilarity,
    "memory": lambda: losses.CrossBatchMemory(losses.MultiSimilarity(), dim=DIM, size=20, start_after=1),
    "tuples": lambda: losses.TripletMargin(mining="all"),
    "proxies": lambda: losses.ProxyAnchor(NUM_CLASSES, DIM, seed=2),
    "shards": lambda: losses.ArcFace(NUM_CLASSES, DIM, seed=2, sharded=True),
}
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-5}
every_loss = pytest.mark.parametrize("loss", LOSSES)
every_dtype = pytest.mark.parametrize("dtype", TOLERANCES, ids=str)


class Precise(nn.Module):
    """An encoder whose embeddings keep float64's digits, which `Encoder` itself rounds to float32."""

    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.normalize(self.encoder.head(self.encoder.features(images)))


def conv4_learner(loss: str, *, frozen: bool, dtype: torch.dtype = torch.float64) -> Learner:
    config = EncoderConfig(backbone=Conv4Config(width=4), dim=DIM, freeze_batch_norm=frozen)
    return _learner(Precise(Encoder(config, channels=1)), loss, dtype)


def dropout_learner(loss: str, dtype: torch.dtype) -> Learner:
    torch.manual_seed(0)
    layers = nn.Sequential(
        nn.Flatten(), nn.Linear(256, 12), nn.Dropout(0.3), nn.Tanh(), nn.Linear(12, DIM), nn.Dropout(0.2)
    )
    return _learner(layers, loss, dtype)


def _learner(encoder: nn.Module, loss: str, dtype: torch.dtype) -> Learner:
    return Learner(encoder, LOSSES[loss](), "float32").to(dtype).train()


def batch_norms(learner: Learner) -> list[nn.BatchNorm2d]:
    return [layer for layer in learner.modules() if isinstance(layer, nn.BatchNorm2d)]


def batch(dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    images = torch.randn(24, 1, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.tensor([0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 3, 3, 3, 4, 4, 5, 0, 1])
    return images.to(dtype), labels


def sgd(learner: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(learner.parameters(), lr=0.05, momentum=0.9)


def outcome(learner: nn.Module, value: Tensor) -> dict[str, Tensor]:
    """The step's value, all gradients and the state after it, whole where a rank has a part."""
    tensors = {"value": value}
    shards = named_shards(learner)
    for name, parameter in learner.named_parameters():
        if parameter.grad is not None:
            tensors[f"gradient of {name}"] = whole(parameter.grad, shards.get(name))
    return tensors | {name: whole(tensor, shards.get(name)) for name, tensor in learner.state_dict().items()}


def whole(tensor: Tensor, shard: Shard | None) -> Tensor:
    return tensor.clone() if shard is None else reshard(tensor, shard, Shard(shard.num_rows))


def one_graph_step(learner: Learner, images: Tensor, labels: Tensor, chunk_rows: int) -> Tensor:
    """The twin: the chunks' embeddings in one graph, so that chance and batch norm see the same chunks."""
    optimizer = sgd(learner)
    embeddings = torch.cat([learner.embed(chunk) for chunk in images.split(chunk_rows)])
    loss = learner.compute_loss(embeddings, labels)
    loss.backward()
    optimizer.step()
    return loss.detach()


@every_loss
@every_dtype
@pytest.mark.parametrize("chunk_rows", [1, 7, 24, 100])
def test_value_gradients_and_weights_are_the_plain_steps(loss, dtype, chunk_rows):
    plain = conv4_learner(loss, frozen=True, dtype=dtype)
    cached = copy.deepcopy(plain)
    optimizers = sgd(plain), sgd(cached)
    for seed in range(2):
        images, labels = batch(dtype, seed)
        expected = outcome(plain, train_step(plain, optimizers[0], images, labels, clip_norm=0.5))
        value = cached_train_step(cached, optimizers[1], images, labels, chunk_rows=chunk_rows, clip_norm=0.5)
        tolerance = TOLERANCES[dtype]
        torch.testing.assert_close(outcome(cached, value), expected, rtol=tolerance, atol=tolerance)


def draw_three(*_: object) -> None:
    """A loss that takes from the common generator, as a random miner of a user's might."""
    torch.rand(3)


@every_loss
@every_dtype
def test_the_second_pass_drops_what_the_first_dropped(loss, dtype):
    twin = dropout_learner(loss, dtype)
    twin.loss.register_forward_hook(draw_three)
    cached = copy.deepcopy(twin)
    torch.manual_seed(3)
    expected = outcome(twin, one_graph_step(twin, *batch(dtype), chunk_rows=7))
    next_draw = torch.rand(1)
    torch.manual_seed(3)
    value = cached_train_step(cached, sgd(cached), *batch(dtype), chunk_rows=7, clip_norm=None)
    tolerance = TOLERANCES[dtype]
    torch.testing.assert_close(outcome(cached, value), expected, rtol=tolerance, atol=tolerance)
    assert torch.rand(1) == next_draw, "chance goes on as after one pass"


@pytest.mark.parametrize("momentum", [0.1, None])
def test_ghost_batch_norm_sees_each_chunk_once_and_moves_once(momentum):
    twin = conv4_learner("pairs", frozen=False)
    for norm in batch_norms(twin):
        norm.momentum = momentum
    cached = copy.deepcopy(twin)
    features = cached.encoder.encoder.backbone[0](batch()[0]).detach().split(6)
    mean = torch.stack([chunk.mean((0, 2, 3)) for chunk in features]).mean(0)
    variance = torch.stack([chunk.var((0, 2, 3)) for chunk in features]).mean(0)
    weight = 1.0 if momentum is None else momentum
    expected = outcome(twin, one_graph_step(twin, *batch(), chunk_rows=6))
    value = cached_train_step(cached, sgd(cached), *batch(), chunk_rows=6, clip_norm=None)
    actual = outcome(cached, value)
    learnt = [name for name in expected if not name.rpartition(".")[2].startswith(("running", "num_batches"))]
    torch.testing.assert_close(
        {name: actual[name] for name in learnt},
        {name: expected[name] for name in learnt},
        rtol=1e-9,
        atol=1e-9,
    )
    norm = batch_norms(cached)[0]
    torch.testing.assert_close(norm.running_mean, weight * mean)
    torch.testing.assert_close(norm.running_var, (1 - weight) + weight * variance)
    assert norm.num_batches_tracked == 1
    assert norm.momentum == momentum


def test_a_step_that_fails_leaves_the_running_statistics_and_their_momentum():
    learner = conv4_learner("pairs", frozen=False)
    before = copy.deepcopy(learner.state_dict())
    images, labels = batch()
    with pytest.raises(ValueError, match="one label for each row"):
        cached_train_step(learner, sgd(learner), images, labels[:-1], chunk_rows=6, clip_norm=None)
    torch.testing.assert_close(learner.state_dict(), before)
    assert batch_norms(learner)[0].momentum == 0.1


def test_a_training_batch_norm_is_refused_by_name_and_a_frozen_one_is_not():
    refuse_training_batch_norm(conv4_learner("pairs", frozen=True).encoder)
    with pytest.raises(InvalidSetting, match=r"backbone\.1'.*ghost_batch_norm"):
        refuse_training_batch_norm(conv4_learner("pairs", frozen=False).encoder)


def test_the_loss_is_called_once_a_step():
    learner = conv4_learner("pairs", frozen=True)
    calls = []
    learner.loss.register_forward_hook(lambda *call: calls.append(len(call[1][0])))
    cached_train_step(learner, sgd(learner), *batch(), chunk_rows=5, clip_norm=None)
    assert calls == [24]


def train_ghosts(num_steps: int) -> dict[str, list[dict[str, Tensor]]]:
    """Every loss trained in chunks of 3 with ghost batch norm on this rank's share."""
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    outcomes = {}
    for loss in LOSSES:
        learner = conv4_learner(loss, frozen=False)
        optimizer = sgd(learner)
        outcomes[loss] = []
        for step in range(num_steps):
            images, labels = (part.chunk(world_size)[rank] for part in batch(seed=step))
            value = cached_train_step(learner, optimizer, images, labels, chunk_rows=3, clip_norm=1.0)
            outcomes[loss].append(copy.deepcopy(outcome(learner, value)))
    return outcomes


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_that_cut_the_same_chunks_are_one_worker(world_size):
    alone = train_ghosts(4)
    for of_rank in run_ranks(world_size, train_ghosts, 4):
        torch.testing.assert_close(of_rank, alone, rtol=1e-9, atol=1e-9)


def collectives(chunk_rows: int) -> list[tuple[str, int]]:
    """Of a step on this rank's 12 rows: every collective, and how many numbers it took."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    learner = conv4_learner("pairs", frozen=False)
    images, labels = (part.chunk(world_size)[rank] for part in batch())
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as profiler:
        cached_train_step(learner, sgd(learner), images, labels, chunk_rows=chunk_rows, clip_norm=None)
    return [
        (event.name, math.prod(event.input_shapes[0]))
        for event in profiler.events()
        if event.name.startswith("gloo:")
    ]


def collectives_of_six_chunks_and_of_one() -> list[list[tuple[str, int]]]:
    return [collectives(chunk_rows=2), collectives(chunk_rows=12)]


def test_gradients_are_synchronised_once_however_many_chunks():
    learner = conv4_learner("pairs", frozen=False)
    size = sum(p.numel() for p in learner.parameters())
    size += sum(norm.running_mean.numel() + norm.running_var.numel() for norm in batch_norms(learner))
    for of_six, of_one in run_ranks(2, collectives_of_six_chunks_and_of_one):
        assert of_six == of_one
        reduced = [numbers for name, numbers in of_six if name == "gloo:all_reduce"]
        assert [numbers for numbers in reduced if numbers >= 24 * DIM] == [24 * DIM, size + 1], (
            "the embeddings' gradient, back to their ranks; all gradients, running statistics and the loss"
        )
