"""Precision of an encoder: exact float32, or the fastest of a GPU. Losses are always float32.

A matrix product in TF32 keeps three of float32's seven digits, one in bfloat16 two or three; sums stay in
float32 in both. Batch norm, softmax and the embedding's length are float32 under bfloat16 too (autocast).
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch

from dml.config.training import Precision

_TF32_SINCE = (8, 0)  # compute capability: Ampere


class Choice(NamedTuple):
    """The precision that a setting gives on a device."""

    precision: Precision
    """Never "auto"."""
    why: str


def choose_precision(wanted: Precision, device: torch.device) -> Choice:
    """The precision that a setting gives on a device, with the reason.

    Args:
        wanted: "auto" takes bfloat16 where the GPU has units for it, else float32; the others are taken at
            their word, but that TF32 is float32 where there is no such unit.
        device: where it is computed.
    """
    if device.type != "cuda":
        exact = wanted in ("auto", "tf32")
        return Choice("float32", "as always on a CPU") if exact else Choice(wanted, "as configured")
    capability = torch.cuda.get_device_capability(device)
    card = f"{torch.cuda.get_device_name(device)} of compute capability {capability[0]}.{capability[1]}"
    if capability < _TF32_SINCE and wanted in ("auto", "tf32"):
        return Choice("float32", f"for {card} has units for nothing less")
    if wanted == "auto":
        return Choice("bfloat16", f"for {card} has units for it; losses stay float32")
    return Choice(wanted, "as configured")


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """Context for the forward pass of an encoder, but not for its loss."""
    if precision == "bfloat16":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return nullcontext()


@contextmanager
def convolutions_in(precision: Precision) -> Iterator[None]:
    """Whether convolutions, forward and backward, may round to TF32; all other float32 products never do.

    torch allows it by itself, so that "float32" would not be. Products of embeddings are among the others:
    in TF32 similarities would be off by 0.001.
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = precision != "float32"
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
