"""Where the host waits for the device: CUDA tells by itself, and on a CPU the same calls are watched for."""

import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_ROOT = Path(__file__).resolve().parents[2]
# What a host must wait for on a GPU: a value as a Python number, or a shape that depends on values.
_OPERATORS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
}
_METHODS = {Tensor.tolist, Tensor.numpy, Tensor.cpu}


class _Functions(TorchFunctionMode):
    """Methods that read a tensor's memory without an operator of their own."""

    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func in _METHODS:
            self.waits.append(_where())
        return func(*args, **(kwargs or {}))


class _Operators(TorchDispatchMode):
    def __init__(self, waits: list[str]) -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.name().removeprefix("aten::").partition(".")[0]
        by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        if name in _OPERATORS or by_mask:
            self.waits.append(_where())
        return func(*args, **(kwargs or {}))


@contextmanager
def host_waits(device: torch.device) -> Iterator[list[str]]:
    """Collects where the body waits: `file:line` of ours, once for each time.

    On CUDA by `torch.cuda.set_sync_debug_mode`, which knows every call that waits; on a CPU by the calls that
    would, so that the same test says the same there.
    """
    waits: list[str] = []
    if device.type != "cuda":
        with _Functions(waits), _Operators(waits):
            yield waits
        return
    show = warnings.showwarning

    def note(message: Any, *arguments: Any, **options: Any) -> None:
        if "called a synchronizing" in str(message):  # not the warning that the mode is a prototype
            waits.append(_where())
        else:
            show(message, *arguments, **options)

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = note
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield waits
        finally:
            torch.cuda.set_sync_debug_mode("default")


def _where() -> str:
    ours = [
        frame
        for frame in traceback.extract_stack()
        if Path(frame.filename).is_relative_to(_ROOT / "dml") and "site-packages" not in frame.filename
    ]
    return f"{Path(ours[-1].filename).relative_to(_ROOT)}:{ours[-1].name}" if ours else "elsewhere"
