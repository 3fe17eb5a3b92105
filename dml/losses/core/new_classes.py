"""Adding classes to a trained proxy loss, including its optimizer state."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from dml.arguments import PositiveInt, check_argument
from dml.losses.core.proxies import ProxyLoss, initial_rows
from dml.losses.core.shards import Shard, reshard


@torch.no_grad()
def append_classes(
    loss: ProxyLoss,
    num_new: int,
    *,
    directions: Tensor | None = None,
    optimizer: Optimizer | None = None,
) -> None:
    """Add `num_new` classes to a proxy loss. The existing classes keep their proxies and ids.

    With sharded proxies every rank must call it; afterwards each rank holds its rows of the new sharding. The
    parameters are new objects, so wrap the loss in DistributedDataParallel again.

    Args:
        loss: any proxy loss.
        num_new: N, number of classes to add; they get the ids C to C + N - 1.
        directions: (N, D), or (N, K, D) for a loss with K centers, e.g. the mean embeddings of the new
            classes, equal on all ranks. Each is scaled to the mean length of the existing proxies, so that it
            learns at the same rate (Qi et al. 2018, arXiv:1712.07136). None: random, like the initial
            proxies.
        optimizer: optimizer of the loss. It gets the new parameters and keeps the moments of the existing
            classes; those of the new classes are 0. None: the caller creates a new optimizer.

    Raises:
        ValueError: num_new is below 1, or directions have another shape.
    """
    shape = loss.proxies.shape[1:]
    check_argument("num_new", PositiveInt, num_new, {})
    if directions is not None and directions.shape != (num_new, *shape):
        raise ValueError(
            f"directions must be {(num_new, *shape)}; got {tuple(directions.shape)}. Pass one direction for "
            "each new class, or for each of its centers."
        )
    old = loss.shard
    new = Shard(old.num_rows + num_new, old.rank, old.world_size)
    first = max(new.first, old.num_rows)  # this rank's rows from here on are new
    if directions is None:
        rows = initial_rows(first, max(new.last, first), shape, seed=loss.seed) * loss.deviation
    else:
        local = directions[first - old.num_rows : max(new.last - old.num_rows, 0)]
        rows = nn.functional.normalize(local, dim=-1) * _mean_length(loss.proxies, old)
    for name, parameter in list(loss.named_parameters(recurse=False)):
        extended = nn.Parameter(reshard(parameter.detach(), old, new), requires_grad=parameter.requires_grad)
        if parameter is loss.proxies and len(rows):
            extended[-len(rows) :] = rows.to(extended)
        if optimizer is not None:
            _replace(optimizer, parameter, extended, old, new)
        setattr(loss, name, extended)
    loss.shard = new


def _mean_length(proxies: Tensor, shard: Shard) -> Tensor:
    lengths = proxies.norm(dim=-1)
    total = torch.stack([lengths.sum(), torch.full_like(lengths.sum(), lengths.numel())])
    if shard.world_size > 1:
        dist.all_reduce(total)
    return total[0] / total[1]


def _replace(
    optimizer: Optimizer, parameter: nn.Parameter, extended: nn.Parameter, old: Shard, new: Shard
) -> None:
    """Replace the parameter in the optimizer by the extended one, and reshard its moments."""
    for group in optimizer.param_groups:
        group["params"] = [extended if old_one is parameter else old_one for old_one in group["params"]]
    if parameter in optimizer.state:
        optimizer.state[extended] = {
            name: reshard(value, old, new) if isinstance(value, Tensor) and value.ndim else value
            for name, value in optimizer.state.pop(parameter).items()
        }
