"""In what precision an encoder computes: exact float32, or as a GPU is fastest. Losses are float32 always.

A matrix product in TF32 keeps three of float32's seven digits, one in bfloat16 two or three; sums stay in
float32 in both. Batch norm, softmax and the embedding's length are float32 under bfloat16 too (autocast).
"""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

from dml.config.training import Precision

logger = logging.getLogger(__name__)

_TF32_SINCE = (8, 0)  # compute capability: Ampere


def choose_precision(wanted: Precision, device: torch.device) -> Precision:
    """What a setting comes to on a device, never "auto"; said in the log, with the reason.

    Args:
        wanted: "auto" takes bfloat16 where the GPU has units for it, else float32; the others are taken at
            their word, but that TF32 is float32 where there is no such unit.
        device: where it is computed.
    """
    if device.type != "cuda":
        chosen: Precision = "float32" if wanted in ("auto", "tf32") else wanted
        why = "on a CPU it is exact, and nothing else is faster"
    else:
        capability = torch.cuda.get_device_capability(device)
        has_units = capability >= _TF32_SINCE
        chosen = wanted if wanted != "auto" else "bfloat16" if has_units else "float32"
        if chosen == "tf32" and not has_units:
            chosen = "float32"
        name, version = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        why = f"{name} of compute capability {version} has {'' if has_units else 'no '}units for less"
    if wanted == "auto":
        logger.info("precision auto: %s, for %s", chosen, why)
    elif wanted != chosen:
        logger.info("precision %s: %s, for %s", wanted, chosen, why)
    return chosen


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The forward pass of an encoder belongs inside; its loss does not."""
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
