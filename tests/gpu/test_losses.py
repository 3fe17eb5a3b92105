"""On a GPU every loss and miner is what it is on the CPU in float64, and the host hardly waits for it."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn

from dml.losses import CrossBatchMemory, MultiSimilarity
from dml.similarity import at_least_float32
from tests.gpu.waits import host_waits
from tests.losses.cases import CASES, DIM, NUM_CLASSES, value_and_gradients

pytestmark = pytest.mark.gpu
every_loss = pytest.mark.parametrize("name", CASES)
ROWS = 96
# Where a call waits for the device, and how often at most for each block of anchors or classes. All but
# `_or_all`, which needs to know whether any anchor is left without weights, wait for the labels alone.
KNOWN_WAITS = {
    "dml/losses/blocks.py:__init__": 2,  # with and without gradient: how large the largest class is
    "dml/losses/references.py:check_class_ids": 1,  # whether labels lie in [0, C)
    "dml/losses/class_blocks.py:_pairs_of_one_class": 2,  # which anchors have their class in a block
    "dml/losses/soft.py:_pairs_in_turn": 1,  # how many pairs there are
    "dml/losses/soft.py:n_pair_loss": 1,
    "dml/losses/proxy_anchor.py:forward": 3,  # which classes the batch has
    "dml/losses/proxy_anchor.py:_log_sum_exp_by_class": 1,
    "dml/losses/pair.py:terms": 1,  # which pairs are kept
    "dml/losses/pair.py:_within": 1,
    "dml/losses/mining.py:_or_all": 1,
}


def balanced() -> Tensor:
    return torch.arange(ROWS) // 4 % NUM_CLASSES


def uneven() -> Tensor:
    return torch.arange(ROWS).float().sqrt().long() % NUM_CLASSES


def embeddings(seed: int = 0) -> Tensor:
    rows = torch.randn(ROWS, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return nn.functional.normalize(rows + 0.7 * rows[:1])


def on_the_cpu(name: str, x: Tensor, labels: Tensor) -> list[Tensor]:
    module = CASES[name].make().double()
    return value_and_gradients(lambda x: module(x, labels), x.double(), *module.parameters())


@every_loss
@pytest.mark.parametrize("labels", [balanced, uneven], ids=lambda f: f.__name__)
def test_value_and_gradient_are_those_of_float64_on_the_cpu(name, labels, device):
    x = embeddings().float()
    module = CASES[name].make().to(device)
    y = labels().to(device)
    found = value_and_gradients(lambda x: module(x, y), x.to(device), *module.parameters())
    _compare(found, on_the_cpu(name, x, labels()))


@every_loss
def test_under_bfloat16_autocast_similarities_are_float32(name, device):
    """Only the embeddings are rounded: from there on the loss is as exact as without autocast."""
    x = embeddings().bfloat16()
    module = CASES[name].make().to(device)
    with torch.autocast(device.type, dtype=torch.bfloat16):
        value = module(x.to(device), balanced().to(device))
    assert value.dtype == torch.float32
    expected = on_the_cpu(name, at_least_float32(x), balanced())[0]
    torch.testing.assert_close(value.detach().cpu().double(), expected, rtol=2e-3, atol=1e-4)


@every_loss
def test_the_host_waits_nowhere_else_than_known(name, device):
    module = CASES[name].make().to(device)
    x, y = embeddings().float().to(device).requires_grad_(), balanced().to(device)
    module(x, y).backward()  # what is made once is not counted
    with host_waits(device) as waits:
        module(x, y).backward()
    for place, times in Counter(waits).items():
        assert times <= KNOWN_WAITS.get(place, 0), f"{place} waits {times} times"


def test_a_memory_on_the_device_remembers_what_one_on_the_cpu_does(device):
    def run(on: torch.device, dtype: torch.dtype) -> list[Tensor]:
        loss = CrossBatchMemory(MultiSimilarity(), dim=DIM, size=ROWS, start_after=1).to(on)
        return [
            loss(embeddings(seed).to(on, dtype), balanced().to(on)).detach().cpu().double()
            for seed in range(4)
        ]

    expected = run(torch.device("cpu"), torch.float64)
    torch.testing.assert_close(run(device, torch.float32), expected, rtol=1e-3, atol=1e-5)


def _compare(found: list[Tensor], expected: list[Tensor]) -> None:
    for each, right in zip(found, expected, strict=True):
        error = (each.cpu().double() - right).norm()
        assert error <= 1e-3 * right.norm() + 1e-5, f"off by {float(error):.2e} of {float(right.norm()):.2e}"
