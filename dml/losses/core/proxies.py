"""Base class of proxy losses: one or several learnt vectors per class, replicated or sharded over ranks."""

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
    """Arguments of every proxy loss; see `ProxyLoss`."""

    seed: Seed | None
    sharded: bool


class ProxyArguments(ProxyOptions, total=False):
    """`ProxyOptions`, and arguments that a subclass sets for its proxies."""

    centers_per_class: PositiveInt | None
    deviation: PositiveFloat | None


class ProxyLoss(EmbeddingLoss):
    """A loss with one learnt vector, the proxy, for each class.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        centers_per_class: K vectors for each class; None: one, and proxies have no such dimension.
        deviation: standard deviation of the initial values; None: sqrt(2 / C), Kaiming normal with fan-out,
            as in the code of Proxy-Anchor's authors.
        seed: of the initial proxies; a row does not depend on C or the number of ranks. None: torch's seed.
        sharded: whether each rank of the default group holds only ceil(C / W) of the rows. Value and
            gradients are the same as without. Call `keep_shards_local` before you wrap the loss in
            DistributedDataParallel. A norm of all gradients must sum the squares over ranks. Each rank's
            optimizer holds the state of its rows.
        normalize: see `EmbeddingLoss`.
    """

    within_batch = True
    """Pairs are an image of the batch and a proxy: a memory bank cannot be used."""
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
        self.shard = Shard.of_this_rank(num_classes) if sharded else Shard(num_classes)
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
                f"embeddings must be (B, {self.proxies.shape[-1]}), like the proxies; got D = {dim}. Create "
                f"the loss with dim={dim}."
            )

    def check_labels(self, labels: Tensor) -> Tensor:
        return check_class_ids(labels, self.num_classes, "proxy")

    def global_batch(self, labels: Tensor, references: References) -> References:
        """The batch of all ranks, prepared for the proxies of this rank.

        Raises:
            ValueError: the references do not contain the anchors, or with sharded proxies are not the
                global batch.
        """
        batch = references.with_anchors("A proxy loss")
        if self.shard.world_size == 1:
            return batch
        if len(batch.labels) != self.shard.world_size * len(labels):
            raise ValueError(
                f"Sharded proxies need the batches of all {self.shard.world_size} ranks; got "
                f"{len(batch.labels)} references for {len(labels)} anchors. Pass the references of "
                "dml.training.gather.gather."
            )
        return replace(batch, embeddings=for_all_shards(batch.embeddings, self.shard.world_size))


def initial_rows(first: int, last: int, shape: Sequence[int], *, seed: int) -> Tensor:
    """Rows `first` to `last` of an unlimited table of standard normal rows that depends only on the seed.

    10^6 rows of 128 values take 1.5 s on one core; memory is that of the returned rows.

    Args:
        first: the first row.
        last: the last row, exclusive.
        shape: of one row.
        seed: of the table.
    """
    rows = torch.empty(last - first, *shape)
    # torch's CPU generator uses 32 bits of its seed: the base is hashed, the chunks count up, so none
    # collide.
    base = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=4).digest(), "big")
    for start in range(first - first % _ROWS_PER_DRAW, last, _ROWS_PER_DRAW):
        generator = torch.Generator().manual_seed((base + start // _ROWS_PER_DRAW) % (1 << 32))
        drawn = torch.randn(_ROWS_PER_DRAW, *shape, generator=generator)
        begin, end = max(start, first), min(start + _ROWS_PER_DRAW, last)
        rows[begin - first : end - first] = drawn[begin - start : end - start]
    return rows


def named_shards(module: nn.Module) -> dict[str, Shard]:
    """The sharded parameters of a module: maps each name to the shard of this rank."""
    return {
        f"{prefix}.{name}" if prefix else name: loss.shard
        for prefix, loss in module.named_modules()
        if isinstance(loss, ProxyLoss) and loss.sharded
        for name, _ in loss.named_parameters(recurse=False)
    }


def sharded_parameters(module: nn.Module) -> dict[nn.Parameter, Shard]:
    """The same with parameters as keys, for a gradient norm or the state of an optimizer."""
    return {module.get_parameter(name): shard for name, shard in named_shards(module).items()}


def keep_shards_local(module: nn.Module) -> None:
    """Make DistributedDataParallel ignore the sharded parameters; call it before you wrap the module.

    Otherwise it overwrites the rows of every rank with those of rank 0 and averages gradients of different
    classes.
    """
    ignored = {*getattr(module, "_ddp_params_and_buffers_to_ignore", ()), *named_shards(module)}
    # torch has no public function for this; `_set_params_and_buffers_to_ignore_for_model` does the same.
    module._ddp_params_and_buffers_to_ignore = sorted(ignored)  # type: ignore[assignment]
