"""A complete training state in a folder: safetensors and JSON, independent of the number of workers.

Learning rates, batches and augmentation are pure functions of the step: of them, only the step is kept.
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dml.errors import IncompatibleArtifact

_STATE = "state.json"


def write_checkpoint(
    folder: Path, *, step: int, run: str, modules: dict[str, nn.Module], optimizer: Optimizer
) -> None:
    """Write everything that resuming at `step` needs into an empty folder.

    Args:
        folder: somewhere private; making it visible whole is the caller's.
        step: steps already done.
        run: identity of the run (`training.run_identity`); a checkpoint resumes no other.
        modules: name to module, each one file of weights.
        optimizer: its per-parameter tensors; rates follow from the step.
    """
    for name, module in modules.items():
        save_file({k: v.contiguous() for k, v in module.state_dict().items()}, folder / f"{name}.safetensors")
    moments = {
        f"{index}.{name}": torch.as_tensor(value).contiguous()
        for index, state in optimizer.state_dict()["state"].items()
        for name, value in state.items()
        if value is not None
    }
    save_file(moments, folder / "optimizer.safetensors")
    (folder / _STATE).write_text(json.dumps({"step": step, "run": run}))


def read_checkpoint(folder: Path, *, run: str, modules: dict[str, nn.Module], optimizer: Optimizer) -> int:
    """Put a checkpoint's state into modules and optimiser, and return the steps already done.

    Raises:
        IncompatibleArtifact: the checkpoint is of another run (another configuration or dataset).
    """
    state = json.loads((folder / _STATE).read_text())
    if state["run"] != run:
        raise IncompatibleArtifact(
            f"A checkpoint must be of the run it resumes, {run}; {folder} is of {state['run']}. "
            "Another configuration, dataset or version starts a run of its own."
        )
    for name, module in modules.items():
        module.load_state_dict(load_file(folder / f"{name}.safetensors"))
    moments: dict[int, dict[str, Tensor]] = {}
    for key, value in load_file(folder / "optimizer.safetensors").items():
        index, name = key.split(".", 1)
        moments.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return int(state["step"])
