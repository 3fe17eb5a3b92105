"""Batch norm over two workers is batch norm over their images together, with whatever timm does after it."""

import copy

import pytest
import torch
import torch.distributed as dist
from timm.layers import BatchNormAct2d
from torch import nn

from dml.config import EncoderConfig, TimmConfig
from dml.errors import InvalidSetting
from dml.models.encoder import Encoder
from dml.training.batch_norm import GlobalBatchNorm2d, GlobalBatchNormOnGpus, synchronize_batch_norm
from dml.training.spawn import run_ranks

CPU, GPU = torch.device("cpu"), torch.device("cuda")
on_either = pytest.mark.parametrize(
    ("device", "kind"), [(CPU, GlobalBatchNorm2d), (GPU, GlobalBatchNormOnGpus)], ids=["CPU", "GPU"]
)


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1), BatchNormAct2d(4)
    ).double()


def images() -> torch.Tensor:
    return torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def outcome(module: nn.Module, part: torch.Tensor, world_size: int) -> dict[str, torch.Tensor]:
    """Outputs, gradients summed over ranks, and buffers after one step."""
    output = module(part)
    (output.square() * torch.linspace(1, 2, output.shape[1])[:, None, None]).sum().backward()
    tensors = {"output": output.detach()}
    for name, parameter in module.named_parameters():
        if world_size > 1:
            dist.all_reduce(parameter.grad)
        tensors[f"gradient of {name}"] = parameter.grad
    return tensors | {name: buffer.clone() for name, buffer in module.named_buffers()}


def on_a_rank() -> dict[str, torch.Tensor]:
    rank, world_size = dist.get_rank(), dist.get_world_size()
    module = network()
    synchronize_batch_norm(module, CPU)
    return outcome(module, images().chunk(world_size)[rank], world_size)


def test_two_workers_equal_one():
    expected = outcome(network(), images(), 1)
    first, second = run_ranks(2, on_a_rank)
    outputs = torch.cat([first.pop("output"), second.pop("output")])
    torch.testing.assert_close(outputs, expected.pop("output"))
    for actual in (first, second):
        for name, value in expected.items():
            torch.testing.assert_close(actual[name], value, msg=name)


@on_either
def test_a_timm_backbone_keeps_its_activations_and_its_weights_names(device, kind):
    config = EncoderConfig(backbone=TimmConfig(name="mobilenetv3_small_050"), dim=8)
    encoder = Encoder(config, channels=3).eval()
    shared = copy.deepcopy(encoder)
    synchronize_batch_norm(shared, device)
    pixels = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(shared.eval()(pixels), encoder(pixels))
    assert shared.state_dict().keys() == encoder.state_dict().keys()
    assert not any(type(module) is nn.BatchNorm2d for module in shared.modules())
    assert any(isinstance(module, kind) for module in shared.modules())


@on_either
def test_in_one_process_it_is_the_batch_norm_that_it_replaces(device, kind):
    expected, shared = outcome(network(), images(), 1), network()
    synchronize_batch_norm(shared, device)
    assert {type(shared[1]), type(shared[3])} == {kind}
    torch.testing.assert_close(outcome(shared, images(), 1), expected, rtol=0, atol=0)


def test_a_batch_norm_that_cannot_be_synchronized_is_refused():
    with pytest.raises(InvalidSetting, match="BatchNorm1d"):
        synchronize_batch_norm(nn.Sequential(nn.BatchNorm1d(3)), CPU)
