"""Check that a loss on W workers has the value and gradient of one worker, and trains the same model.

`python -m dml.training.conformance` checks every loss of `dml.losses` with every mining and memory it takes;
`python -m dml.training.conformance mypackage.mymodule:MyLoss` checks another. A loss is called as
`loss(embeddings, labels, references)`, and returns this worker's part of a mean over workers: see
`dml.losses.References`. Prints a table; the exit status is 1 where W workers differ from one.
"""

import argparse
import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dml.losses import keep_shards_local, named_shards
from dml.losses.core.shards import Shard, reshard
from dml.training.conformance_table import DIM, Recipe, table
from dml.training.gather import gather, mean_over_ranks
from dml.training.spawn import run_ranks

TOLERANCES = {torch.float64: 1e-6, torch.float32: 1e-4}
"""Largest relative error that counts as rounding."""
_LABELS = [
    [int(digit, 16) for digit in "70030035011109038022044b"],  # uneven, and spread over ranks
    [row // 4 for row in range(24)],
    [row % 12 for row in range(24)],
    [2] * 24,
    [0] * 12 + [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 11],  # some ranks hold one class, others classes of one
]
"""The global batches' classes in turn; 24 rows are shared evenly by 1, 2, 3, 4 or 6 workers."""
_RATE = 0.05


@dataclass(frozen=True)
class Finding:
    """How far one loss on W workers is from the same on one: largest relative errors over ranks and steps."""

    loss: str
    world_size: int
    errors: Mapping[str, float]
    """`value`, `backbone` and `own` (the gradients of the loss's parameters) in both types; `trained`."""
    idle: bool
    """The loss was 0 with zero gradients all along, which proves nothing."""

    @property
    def passed(self) -> bool:
        return not self.idle and all(self.errors[name] <= _tolerance(name) for name in self.errors)


@dataclass(frozen=True)
class Report:
    """One finding for each loss and number of workers."""

    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    def __str__(self) -> str:
        width = max((len(finding.loss) for finding in self.findings), default=4)
        columns = list(self.findings[0].errors) if self.findings else []
        lines = [f"{'loss':{width}}  W  " + "  ".join(f"{column:>16}" for column in columns)]
        for finding in self.findings:
            errors = "  ".join(
                f"{error:15.0e}{' ' if error <= _tolerance(column) else '!'}"
                for column, error in finding.errors.items()
            )
            verdict = "ok" if finding.passed else "idle" if finding.idle else "FAILED"
            lines.append(f"{finding.loss:{width}}  {finding.world_size}  {errors}  {verdict}")
        return "\n".join(lines)


def conformance(
    losses: Callable[..., nn.Module] | Mapping[str, Callable[..., nn.Module] | Recipe],
    *,
    world_sizes: Sequence[int] = (1, 2, 3, 4),
    num_steps: int = 20,
    timeout_s: float = 600,
) -> Report:
    """Compare each loss on gloo groups of W processes with the same in this process.

    In float64 a small backbone and the loss are trained together; value and gradients are compared at every
    step, the weights and buffers after the last. In float32 five batches are compared at the initial weights.

    Args:
        losses: a class or function that makes a loss, importable by name, or several by name. It is given
            `num_classes` and `dim` where it has parameters of these names without a default.
        world_sizes: numbers of workers, each must divide 24; a group is started once for all losses.
        num_steps: of the float64 training; 5 see every kind of batch.
        timeout_s: for each group.

    Raises:
        RuntimeError: a loss raised on a rank; the message holds its traceback.
    """
    given = losses if isinstance(losses, Mapping) else {getattr(losses, "__name__", "loss"): losses}
    recipes = {name: loss if isinstance(loss, Recipe) else Recipe(loss) for name, loss in given.items()}
    alone = _trace_all(recipes, num_steps)
    findings = []
    for world_size in world_sizes:
        ranks = run_ranks(world_size, _trace_all, recipes, num_steps, timeout_s=timeout_s)
        for name in recipes:
            errors = {
                quantity: max(_error(rank[name][quantity], expected) for rank in ranks)
                for quantity, expected in alone[name].items()
            }
            idle = not any(tensor.any() for tensor in alone[name]["float64 value"])
            findings.append(Finding(name, world_size, errors, idle))
    return Report(tuple(sorted(findings, key=lambda finding: list(recipes).index(finding.loss))))


def _tolerance(quantity: str) -> float:
    return TOLERANCES[torch.float32 if quantity.startswith("float32") else torch.float64]


def _error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Largest relative difference of a quantity over the steps, each by its largest entry.

    The scale is at least a thousandth of the largest entry over all steps: a quantity that is zero up to
    rounding has no significant digits.
    """
    sizes = [float(tensor.abs().amax()) if tensor.numel() else 0.0 for tensor in expected]
    worst = 0.0
    for value, tensor, size in zip(actual, expected, sizes, strict=True):
        difference = float((value - tensor).abs().amax()) if tensor.numel() else 0.0
        if difference > 0 or difference != difference:
            scale = max(size, 1e-3 * max(sizes))
            worst = max(worst, difference / scale if difference <= scale else float("inf"))
    return worst


Trace = dict[str, list[Tensor]]
"""Quantity to its values at every step."""


def _trace_all(recipes: Mapping[str, Recipe], num_steps: int) -> dict[str, Trace]:
    """What every loss computes on this rank, or alone where there is no group."""
    traces = {}
    for name, recipe in recipes.items():
        try:
            trained = _trace(recipe, torch.float64, num_steps, rate=_RATE)
            still = _trace(recipe, torch.float32, len(_LABELS), rate=0.0)
        except Exception as error:
            error.add_note(f"The loss was {name!r}.")
            raise
        traces[name] = {
            **{f"float64 {quantity}": trained[quantity] for quantity in ("value", "backbone", "own")},
            "trained": trained["trained"],
            **{f"float32 {quantity}": still[quantity] for quantity in ("value", "backbone", "own")},
        }
    return traces


def _trace(recipe: Recipe, dtype: torch.dtype, num_steps: int, rate: float) -> Trace:
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = _Learner(recipe).to(dtype).train()
    learner: nn.Module = module
    if dist.is_initialized():
        keep_shards_local(module)
        # As the trainer: buffers are not evened out by rank 0's, and must agree by themselves.
        learner = DistributedDataParallel(module, forward_sync_buffers=False)
    optimizer = torch.optim.SGD(module.parameters(), lr=rate)
    trace: Trace = {"value": [], "backbone": [], "own": [], "trained": []}
    for step in range(num_steps):
        generator = torch.Generator().manual_seed(step)
        images = torch.randn(len(_LABELS[0]), DIM, dtype=torch.float64, generator=generator).to(dtype)
        labels = torch.tensor(_LABELS[step % len(_LABELS)])
        optimizer.zero_grad()
        value = learner(images.chunk(world_size)[rank], labels.chunk(world_size)[rank])
        torch.autograd.backward(value)
        trace["value"].append(mean_over_ranks(value))
        trace["backbone"].append(_flat(_gradients(module.backbone), {}))
        trace["own"].append(_flat(_gradients(module.loss), named_shards(module.loss)))
        optimizer.step()
    trace["trained"].append(_flat(module.state_dict(), named_shards(module)))
    return trace


class _Learner(nn.Module):
    """A backbone without kinks, so that a difference is the loss's, and the loss."""

    def __init__(self, recipe: Recipe) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Linear(DIM, DIM), nn.Tanh(), nn.Linear(DIM, DIM, bias=False))
        self.loss = recipe.make()

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        embeddings = nn.functional.normalize(self.backbone(images))
        value: Tensor = self.loss(embeddings, labels, gather(embeddings, labels))
        return value + 0.0 * embeddings.sum()


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    """A gradient that does not exist is zero."""
    return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in module.named_parameters()}


def _flat(tensors: Mapping[str, Tensor], shards: Mapping[str, Shard]) -> Tensor:
    """All numbers in a row; of what is cut over ranks, those of all ranks."""
    whole = [
        reshard(tensor.detach(), shards[name], Shard(shards[name].num_rows)) if name in shards else tensor
        for name, tensor in tensors.items()
    ]
    return torch.cat([torch.empty(0), *(tensor.detach().double().flatten() for tensor in whole)])


def _import(path: str) -> Callable[..., nn.Module]:
    module, colon, name = path.partition(":")
    if not colon:
        raise SystemExit(f"A loss must be named as package.module:Name; got {path!r}.")
    try:
        factory: Callable[..., nn.Module] = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise SystemExit(f"{path!r} must be importable from here: {error}.") from error
    return factory


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m dml.training.conformance", description=__doc__)
    parser.add_argument("losses", nargs="*", help="package.module:Name of a class or function; none: ours")
    parser.add_argument("--world-sizes", type=int, nargs="+", default=[1, 2, 3, 4])
    parser.add_argument("--steps", type=int, default=20, help="of the float64 training")
    given = parser.parse_args(arguments)
    losses = {path: _import(path) for path in given.losses} or table()
    report = conformance(losses, world_sizes=given.world_sizes, num_steps=given.steps)
    print(report)
    return 0 if report.passed else 1


if __name__ == "__main__":
    # By its importable name, or the processes started would hold this module's classes twice.
    sys.exit(importlib.import_module("dml.training.conformance").main())
