"""Where these tests compute: on the GPU, or on the CPU where DML_GPU_TEST_DEVICE says so."""

import os
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="session")
def device() -> torch.device:
    """The GPU; DML_GPU_TEST_DEVICE=cpu runs the same lines on a machine that has none."""
    name = os.environ.get("DML_GPU_TEST_DEVICE", "cuda")
    if name == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU; DML_GPU_TEST_DEVICE=cpu runs the same lines on the CPU")
    return torch.device(name)


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """No TF32 but where a test asks for it: its products keep three digits of seven."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]
