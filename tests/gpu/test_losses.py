"""On a GPU every loss and miner is what it is on the CPU in float64, and the host hardly waits for it."""

import os

import pytest
import torch
from torch import Tensor, nn

from dml.losses import CrossBatchMemory, MultiSimilarity
from dml.similarity import at_least_float32
from tests.gpu.waits import host_waits
from tests.losses.cases import CASES, DIM, NUM_CLASSES, value_and_gradients
from tests.losses.test_waits import allowed

pytestmark = pytest.mark.gpu
# Where a CPU takes the GPU's place, tests/losses has compared all: here it shows that the lines run.
ON_A_CPU = os.environ.get("DML_GPU_TEST_DEVICE") == "cpu"
every_loss = pytest.mark.parametrize("name", [name for name in CASES if not (ON_A_CPU and "," in name)])
ROWS = 96
# Where a CPU looks at values because it need not wait for them; a GPU goes another way there.
ON_A_CPU_ALONE = {
    "dml/losses/core/references.py:check_class_ids",
    "dml/losses/contrastive.py:_select",
    "dml/similarity.py:_squares_are_ordinary",
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
    actual = value_and_gradients(lambda x: module(x, y), x.to(device), *module.parameters())
    _compare(actual, on_the_cpu(name, x, labels()))


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
def test_the_host_waits_for_nothing_but_the_counts_that_decide_shapes(name, device):
    module = CASES[name].make().to(device)
    x, y = embeddings().float().to(device).requires_grad_(), balanced().to(device)
    module(x, y).backward()  # what is made once is not counted
    with host_waits(device) as places:
        module(x, y).backward()
    waits = [place for place in places if device.type == "cuda" or place not in ON_A_CPU_ALONE]
    assert len(waits) <= sum(allowed(name).values()), waits


def test_a_memory_on_the_device_remembers_what_one_on_the_cpu_does(device):
    def run(on: torch.device, dtype: torch.dtype) -> list[Tensor]:
        loss = CrossBatchMemory(MultiSimilarity(), dim=DIM, size=ROWS, start_after=1).to(on)
        return [
            loss(embeddings(seed).to(on, dtype), balanced().to(on)).detach().cpu().double()
            for seed in range(4)
        ]

    expected = run(torch.device("cpu"), torch.float64)
    torch.testing.assert_close(run(device, torch.float32), expected, rtol=1e-3, atol=1e-5)


def _compare(actual: list[Tensor], expected: list[Tensor]) -> None:
    for each, right in zip(actual, expected, strict=True):
        error = (each.cpu().double() - right).norm()
        assert error <= 1e-3 * right.norm() + 1e-5, f"off by {float(error):.2e} of {float(right.norm()):.2e}"
