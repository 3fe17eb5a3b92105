"""No step waits for the device, but where a count decides shapes; and a GPU gets few operators.

Run on torch's meta device, which has shapes and no values: whatever must look at a value raises there.
"""

from collections import Counter

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dml import losses
from tests.losses.cases import CASES, DIM, balanced, scattered

_LARGEST_CLASS = 4

ALLOWED = {
    "NPair": {"nonzero": 2},  # how many pairs there are, and how many of them are this rank's
    "LiftedStructure": {"_local_scalar_dense": 2},  # the largest class, once for each pass
    "sampled": {"nonzero": 1},  # Partial-FC: how many classes were drawn
}
PROXIES = {loss.__name__ for loss in losses.LOSSES.values() if issubclass(loss, losses.ProxyLoss)}


def allowed(name: str) -> dict[str, int]:
    """Waits of a step: of a loss of pairs, one for the size of the largest class, the shape of positives."""
    loss = name.partition(",")[0]
    return ALLOWED.get(loss, {} if loss in PROXIES else {"_local_scalar_dense": 1})


class Device(TorchDispatchMode):
    """Counts operators, and the waits among them, which it answers as the labels would."""

    def __init__(self) -> None:
        super().__init__()
        self.num_operators = 0
        self.waits: Counter[str] = Counter()

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        self.num_operators += 1
        name = function._schema.name.removeprefix("aten::")
        if name == "_local_scalar_dense":
            self.waits[name] += 1
            return _LARGEST_CLASS
        if name == "nonzero":
            self.waits[name] += 1
            return arguments[0].new_empty((len(arguments[0]), 1), dtype=torch.int64)
        return function(*arguments, **(options or {}))


def step(loss: torch.nn.Module, size: int, dim: int = DIM) -> Device:
    x = torch.empty(size, dim, device="meta", requires_grad=True)
    labels = torch.empty(size, dtype=torch.int64, device="meta")
    with Device() as device:
        loss.to("meta")(x, labels).backward()
    return device


@pytest.mark.parametrize("name", CASES)
def test_a_step_waits_for_nothing_but_the_counts_that_decide_shapes(name):
    assert step(CASES[name].make(), 48).waits == allowed(name)


def test_a_sampled_step_waits_for_the_number_of_classes():
    assert step(losses.CosFace(100, DIM, sample_rate=0.3), 48).waits == ALLOWED["sampled"]


def test_a_memory_in_full_use_waits_for_nothing_itself():
    memory = losses.CrossBatchMemory(losses.Contrastive(), dim=DIM, size=20, start_after=1)
    for seed in range(4):
        memory(scattered(seed).float(), balanced())
    assert step(memory, 48).waits == {"_local_scalar_dense": 2}, "two losses wait, the memory does not"


def _mask(values: Tensor, mask: Tensor) -> Tensor:
    return values[mask]


@pytest.mark.parametrize(
    "waits",
    [lambda v: v.tolist(), lambda v: torch.unique(v), lambda v: _mask(v, v > 0), lambda v: v.sum().cpu()],
    ids=["tolist", "unique", "mask", "cpu"],
)
def test_whatever_else_waits_is_seen_here(waits):
    with pytest.raises((NotImplementedError, RuntimeError)), Device():
        waits(torch.empty(5, device="meta"))


MANY_CLASSES = {
    "ArcFace": lambda: losses.ArcFace(100_000, 128),
    "ProxyAnchor": lambda: losses.ProxyAnchor(100_000, 128),
}


@pytest.mark.parametrize("name", ["MultiSimilarity", "TripletMargin", "SupCon", "Contrastive", "Margin"])
def test_a_batch_of_16384_on_a_gpu_takes_fewer_than_a_thousand_operators(name):
    assert step(CASES[name].make(), 16_384, 128).num_operators < 1000


@pytest.mark.parametrize("name", MANY_CLASSES)
def test_a_batch_against_100_000_classes_on_a_gpu_takes_fewer_than_a_thousand_operators(name):
    assert step(MANY_CLASSES[name](), 4096, 128).num_operators < 1000
