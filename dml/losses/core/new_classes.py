"""New classes for a proxy loss that is already trained."""

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
    """Give a proxy loss `num_new` classes behind those it has, which keep their proxies and their ids.

    With shards every rank must call it, and holds its rows of the new sharding afterwards. Wrap the loss in
    DistributedDataParallel anew: its parameters are new objects.

    Args:
        loss: any proxy loss.
        num_new: N more classes; they get the ids C to C + N - 1.
        directions: (N, D), or (N, K, D) of a loss with K centers, such as the mean embeddings of the new
            classes, equal on all ranks; each is scaled to the mean length of the proxies there are, so that
            it learns at their pace (Qi et al. 2018, arXiv:1712.07136). None: drawn as the first ones were.
        optimizer: what trains the loss: it continues with the new parameters and with the moments of the old
            classes, those of the new ones at 0. None: the caller makes another.

    Raises:
        ValueError: no new class, or directions of another shape.
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
    first = max(new.first, old.num_rows)  # of this rank's rows, those from here on are new
    if directions is None:
        rows = initial_rows(first, max(new.last, first), shape, seed=loss.seed) * loss.deviation
    else:
        chosen = directions[first - old.num_rows : max(new.last - old.num_rows, 0)]
        rows = nn.functional.normalize(chosen, dim=-1) * _mean_length(loss.proxies, old)
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
    """Put the extended parameter in the place of the old one, and shard its moments as its rows."""
    for group in optimizer.param_groups:
        group["params"] = [extended if each is parameter else each for each in group["params"]]
    if parameter in optimizer.state:
        optimizer.state[extended] = {
            name: reshard(value, old, new) if isinstance(value, Tensor) and value.ndim else value
            for name, value in optimizer.state.pop(parameter).items()
        }
