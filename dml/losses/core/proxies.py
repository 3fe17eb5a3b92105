"""The proxies of a loss: one row, or several, for each class; whole on every rank, or sharded."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dml.arguments import PositiveFloat, PositiveInt, Seed
from dml.losses.core.base import EmbeddingLoss, LossOptions
from dml.losses.core.references import References, check_class_ids
from dml.losses.core.shards import Shard, for_all_shards

_ROWS_PER_DRAW = 1024


class ProxyOptions(LossOptions, total=False):
    """The arguments of every proxy loss; `ProxyLoss` documents them."""

    seed: Seed | None
    sharded: bool


class ProxyArguments(ProxyOptions, total=False):
    """`ProxyOptions`, and what a subclass decides for its proxies."""

    centers_per_class: PositiveInt | None
    deviation: PositiveFloat | None


class ProxyLoss(EmbeddingLoss):
    """A loss with a learnt vector, the proxy, for each class.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        centers_per_class: K rows for each class; None: one, and proxies without that dimension.
        deviation: standard deviation of the initial values; None: sqrt(2 / C), Kaiming normal over fan-out
            as Proxy-Anchor's authors have it.
        seed: decides the initial proxies, row by row, whatever C and the number of ranks; None: torch's.
        sharded: whether each rank of the default group holds only ceil(C / W) of the rows. Value and
            gradients stay those of the whole. Before wrapping it in DistributedDataParallel call
            `keep_shards_local`; a norm of all gradients must add the squares over ranks. A rank's optimiser
            holds the state of its rows.
        normalize: see `EmbeddingLoss`.
    """

    within_batch = True
    """Its pairs are of the batch and the proxies: a memory bank cannot serve."""
    proxies: nn.Parameter
    """(C, D) or (C, K, D) float; with `sharded` only this rank's rows."""

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        centers_per_class: PositiveInt | None = None,
        deviation: PositiveFloat | None = None,
        seed: Seed | None = None,
        sharded: bool = False,
        normalize: bool = True,
    ) -> None:
        super().__init__(normalize=normalize)
        self.seed = torch.initial_seed() if seed is None else seed
        self.sharded = sharded
        self.shard = Shard.here(num_classes) if sharded else Shard(num_classes)
        self.deviation = math.sqrt(2 / num_classes) if deviation is None else deviation
        shape = (dim,) if centers_per_class is None else (centers_per_class, dim)
        rows = initial_rows(self.shard.first, self.shard.last, shape, seed=self.seed)
        self.proxies = nn.Parameter(rows.mul_(self.deviation))

    @property
    def num_classes(self) -> int:
        return self.shard.num_rows

    def check_dim(self, dim: int) -> None:
        if dim != self.proxies.shape[-1]:
            raise ValueError(
                f"embeddings must be (B, {self.proxies.shape[-1]}), as the proxies; got D = {dim}. Make the "
                f"loss with dim={dim}."
            )

    def check_labels(self, labels: Tensor) -> Tensor:
        return check_class_ids(labels, self.num_classes, "proxy")

    def global_batch(self, labels: Tensor, references: References) -> References:
        """The batch of all ranks, ready for this rank's shard.

        Raises:
            ValueError: references without the anchors, or shards without the global batch.
        """
        batch = references.with_anchors("A proxy loss")
        if self.shard.world_size == 1:
            return batch
        if len(batch.labels) != self.shard.world_size * len(labels):
            raise ValueError(
                f"Sharded proxies must see the batches of all {self.shard.world_size} ranks; got "
                f"{len(batch.labels)} references for {len(labels)} anchors. Pass the references of "
                "dml.training.gather.gather."
            )
        return replace(batch, embeddings=for_all_shards(batch.embeddings, self.shard.world_size))


def initial_rows(first: int, last: int, shape: Sequence[int], *, seed: int) -> Tensor:
    """Rows `first` to `last` of an endless table of standard normal rows, which the seed decides.

    10^6 rows of 128 take 1.5 s on one core, and no memory beyond the rows asked for.

    Args:
        first: the first row.
        last: one behind the last.
        shape: of one row.
        seed: of the table.
    """
    rows = torch.empty(last - first, *shape)
    # torch's generator for CPUs looks at 32 bits of its seed: spread, then consecutive, so that none collide.
    base = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "big")
    for start in range(first - first % _ROWS_PER_DRAW, last, _ROWS_PER_DRAW):
        generator = torch.Generator().manual_seed((base + start // _ROWS_PER_DRAW) % (1 << 32))
        drawn = torch.randn(_ROWS_PER_DRAW, *shape, generator=generator)
        begin, end = max(start, first), min(start + _ROWS_PER_DRAW, last)
        rows[begin - first : end - first] = drawn[begin - start : end - start]
    return rows


def shards_of(module: nn.Module) -> dict[str, Shard]:
    """The parameters of a module that are sharded over ranks by rows: name to this rank's shard."""
    return {
        f"{prefix}.{name}" if prefix else name: loss.shard
        for prefix, loss in module.named_modules()
        if isinstance(loss, ProxyLoss) and loss.sharded
        for name, _ in loss.named_parameters(recurse=False)
    }


def sharded_parameters(module: nn.Module) -> dict[nn.Parameter, Shard]:
    """The same by parameter: for a norm of gradients, or an optimiser's state."""
    return {module.get_parameter(name): shard for name, shard in shards_of(module).items()}


def keep_shards_local(module: nn.Module) -> None:
    """Have DistributedDataParallel leave a module's shards alone; call it on the module before it is wrapped.

    Else it overwrites every rank's rows with rank 0's, and averages the gradients of different classes.
    """
    ignored = {*getattr(module, "_ddp_params_and_buffers_to_ignore", ()), *shards_of(module)}
    # torch has no public name for it; its own `_set_params_and_buffers_to_ignore_for_model` does this.
    module._ddp_params_and_buffers_to_ignore = sorted(ignored)  # type: ignore[assignment]
