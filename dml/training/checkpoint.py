"""A complete training state in a folder: safetensors and JSON, independent of the number of workers.

What all ranks hold alike, rank 0 writes; of parameters that are sharded over ranks by rows, and of the
optimiser's moments for them, every rank writes its rows, with the number of the first. The ranks' files
together are the checkpoint, and a rank of any other sharding, or of none, reads the rows it holds.

Beside its files every rank writes their sizes and SHA-256: from two flipped bits another model would come, so
nothing is read that is not what was written.

Learning rates, batches and augmentation are pure functions of the step: of them, only the step is kept.
"""

import json
import os
import re
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from dml import storage
from dml.errors import CorruptArtifact, IncompatibleArtifact
from dml.losses import named_shards, sharded_parameters
from dml.losses.core.shards import Shard

_STATE = "state.json"
_OPTIMIZER = "optimizer"
_FILES = "files.rank-{:05d}.json"


def has_part(rank: int, modules: dict[str, nn.Module]) -> bool:
    """Whether a rank holds something that no rank before it does, and has files to write."""
    return rank == 0 or any(named_shards(module) for module in modules.values())


def write_checkpoint(
    folder: Path, *, step: int, run: str, modules: dict[str, nn.Module], optimizer: Optimizer, rank: int = 0
) -> None:
    """Write this rank's part of everything that resuming at `step` needs into an empty folder.

    Args:
        folder: somewhere private; making the ranks' files visible, together and whole, is the caller's.
        step: steps already done.
        run: identity of the run (`training.run_identity`); a checkpoint resumes no other.
        modules: name to module, each a file of weights.
        optimizer: its per-parameter tensors; rates follow from the step.
        rank: whose part this is; the ranks that `has_part` names must all write theirs.

    Raises:
        OSError: it cannot be written, as on a full disk.
    """
    written: list[Path] = []
    for name, module in modules.items():
        written += _write(folder, name, module.state_dict(), named_shards(module), rank)
    parameter_shards = _shard_of_each(optimizer, modules)
    moments: dict[str, Tensor] = {}
    cut: dict[str, Shard] = {}
    for index, state in optimizer.state_dict()["state"].items():
        shard = parameter_shards[index]
        for name, value in state.items():
            if value is not None:
                moments[f"{index}.{name}"] = value = torch.as_tensor(value)
                if shard is not None and value.ndim:
                    cut[f"{index}.{name}"] = shard
    written += _write(folder, _OPTIMIZER, moments, cut, rank)
    if rank == 0:
        num_parts = max(
            [1, *(shard.world_size for m in modules.values() for shard in named_shards(m).values())]
        )
        written.append(folder / _STATE)
        written[-1].write_text(json.dumps({"step": step, "run": run, "num_parts": num_parts}))
    (folder / _FILES.format(rank)).write_text(json.dumps({path.name: _describe(path) for path in written}))


def _describe(path: Path) -> dict[str, Any]:
    return {"size_bytes": path.stat().st_size, "sha256": storage.file_digest(str(path))}


def verify_checkpoint(folder: Path) -> None:
    """Compare every file of every rank with what its writer left beside it.

    Raises:
        CorruptArtifact: a file is not as it was written, cannot be read or is not there; it is named.
    """
    num_parts = _read_json(folder / _STATE).get("num_parts")
    for rank in range(num_parts if isinstance(num_parts, int) else 1):
        for name, expected in _read_json(folder / _FILES.format(rank)).items():
            try:
                actual = _describe(folder / name)
            except OSError as error:
                raise _damaged(folder / name, error) from error
            if actual != expected:
                raise _damaged(folder / name, f"it has {actual}, and was written with {expected}")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not isinstance(content, dict):
        raise _damaged(path, "it holds no JSON object")
    return content


def _damaged(path: Path, why: object) -> CorruptArtifact:
    return CorruptArtifact(
        f"Every file of a checkpoint must be as it was written; {path} is not: {why}. Resume from another."
    )


def read_checkpoint(folder: Path, *, run: str, modules: dict[str, nn.Module], optimizer: Optimizer) -> int:
    """Put a checkpoint's state into this rank's modules and optimiser, and return the steps already done.

    Its files are taken as `verify_checkpoint` found them.

    Raises:
        IncompatibleArtifact: the checkpoint is of another run (another configuration or dataset), or some of
            its ranks' files are not there.
        CorruptArtifact: a file cannot be read.
    """
    state = _read_json(folder / _STATE)
    if state.get("run") != run:
        raise IncompatibleArtifact(
            f"A checkpoint must be of the run it resumes, {run}; {folder} is of {state.get('run')}. "
            "Another configuration, dataset or version starts a run of its own."
        )
    for name, module in modules.items():
        shards = named_shards(module)
        with _Stored(folder, name) as stored:
            module.load_state_dict({key: stored.read(key, shards.get(key)) for key in stored.keys})
    moments: dict[int, dict[str, Tensor]] = {}
    parameter_shards = _shard_of_each(optimizer, modules)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with _Stored(folder, _OPTIMIZER) as stored:
        for key in stored.keys:
            index, name = key.split(".", 1)
            value = stored.read(key, parameter_shards[int(index)])
            moments.setdefault(int(index), {})[name] = _like(parameters[int(index)], value)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})
    return int(state["step"])


def _shard_of_each(optimizer: Optimizer, modules: dict[str, nn.Module]) -> list[Shard | None]:
    """Of each parameter in the optimiser's order, which of its rows this rank holds; None: all, as others."""
    shards: dict[nn.Parameter, Shard] = {}
    for module in modules.values():
        shards |= sharded_parameters(module)
    return [shards.get(parameter) for group in optimizer.param_groups for parameter in group["params"]]


def _like(parameter: Tensor, moment: Tensor) -> Tensor:
    """A moment laid out in memory as its parameter is, where files know only rows.

    Of a channels-last weight it would else stay contiguous for the rest of the run, and every step be slower.
    """
    if moment.shape != parameter.shape:
        return moment
    return torch.empty_like(parameter, dtype=moment.dtype, device=moment.device).copy_(moment)


def _write(
    folder: Path, name: str, values: dict[str, Tensor], cut: dict[str, Shard], rank: int
) -> list[Path]:
    """Rank 0's file of what all hold alike, and a file of this rank's rows of what is cut; which they are."""
    values = {key: value.contiguous() for key, value in values.items()}
    written = []
    if rank == 0:
        written.append(folder / f"{name}.safetensors")
        _save({key: value for key, value in values.items() if key not in cut}, written[-1], {})
    if cut:
        rows = {key: [shard.first, shard.num_rows] for key, shard in cut.items()}
        written.append(folder / f"{name}.rank-{rank:05d}.safetensors")
        _save({key: values[key] for key in cut}, written[-1], {"rows": json.dumps(rows)})
    return written


def _save(values: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    try:
        save_file(values, path, metadata=metadata or None)
    except SafetensorError as error:  # says only in words what the system said
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


class _Stored:
    """A name's tensors in a checkpoint, whether one rank wrote them or many."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name = folder, name
        self._files = ExitStack()
        self._whole: dict[str, Any] = {}
        self._parts: dict[str, list[tuple[int, Any]]] = {}
        self._num_rows: dict[str, int] = {}

    def __enter__(self) -> Self:
        whole = self._open(self.folder / f"{self.name}.safetensors")
        self._whole = dict.fromkeys(whole.keys(), whole)
        for path in sorted(self.folder.glob(f"{self.name}.rank-*.safetensors")):
            part = self._open(path)
            for key, (first, num_rows) in json.loads(part.metadata()["rows"]).items():
                self._parts.setdefault(key, []).append((first, part))
                self._num_rows[key] = num_rows
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()

    def _open(self, path: Path) -> Any:
        try:
            return self._files.enter_context(safe_open(path, framework="pt"))
        except (OSError, SafetensorError) as error:
            raise _damaged(path, error) from error

    @property
    def keys(self) -> list[str]:
        return [*self._whole, *self._parts]

    def read(self, key: str, shard: Shard | None) -> Tensor:
        """A tensor, or a shard's rows of it; scalars are whole."""
        if key in self._whole:
            stored = self._whole[key].get_slice(key)
            if shard is None or not stored.get_shape():
                return _tensor(self._whole[key].get_tensor(key))
            return _tensor(stored[shard.first : shard.last])
        first, last = (0, self._num_rows[key]) if shard is None else (shard.first, shard.last)
        rows = [self._parts[key][0][1].get_slice(key)[:0]]
        for start, part in self._parts[key]:
            stored = part.get_slice(key)
            begin, end = max(first - start, 0), min(last - start, stored.get_shape()[0])
            if begin < end:
                rows.append(stored[begin:end])
        value = torch.cat(rows)
        if len(value) != last - first:
            raise IncompatibleArtifact(
                f"A checkpoint must hold the files of all its ranks; {self.folder} has {len(value)} of the "
                f"rows {first} to {last} of {key}. Resume from another checkpoint."
            )
        return value


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value
