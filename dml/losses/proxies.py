"""The proxies of a loss: one row, or several, for each class; whole on every rank, or cut over the ranks."""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dml.losses.arguments import PositiveFloat, PositiveInt, Seed
from dml.losses.base import EmbeddingLoss, LossOptions
from dml.losses.references import References, check_class_ids
from dml.losses.shards import Shard, of_all_shards

_ROWS_PER_DRAW = 1024


class ProxyOptions(LossOptions, total=False):
    """What every proxy loss can be told beside its own settings; `ProxyLoss` says what each means."""

    seed: int | None
    sharded: bool


class ProxyLoss(EmbeddingLoss):
    """What all proxy losses have in common: the proxies.

    Args:
        num_classes: C; labels are 0 to C - 1.
        dim: D, length of an embedding.
        centres: K rows for each class; None: one, and proxies without that dimension.
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
    """Its tuples are of the batch and the proxies: former batches cannot serve."""
    proxies: nn.Parameter
    """(C, D) or (C, K, D) float; with `sharded` only this rank's rows."""

    def __init__(
        self,
        num_classes: PositiveInt,
        dim: PositiveInt,
        *,
        centres: PositiveInt | None = None,
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
        shape = (dim,) if centres is None else (centres, dim)
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
        return replace(batch, embeddings=of_all_shards(batch.embeddings, self.shard.world_size))


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
    """The parameters below a module that are cut over ranks by rows: name to this rank's shard."""
    return {
        f"{prefix}.{name}" if prefix else name: part.shard
        for prefix, part in module.named_modules()
        if isinstance(part, ProxyLoss) and part.sharded
        for name, _ in part.named_parameters(recurse=False)
    }


def sharded_parameters(module: nn.Module) -> dict[nn.Parameter, Shard]:
    """The same by parameter: for a norm of gradients, or an optimiser's state."""
    return {module.get_parameter(name): shard for name, shard in shards_of(module).items()}


def keep_shards_local(module: nn.Module) -> None:
    """Have DistributedDataParallel leave a module's shards alone; call it on what will be wrapped.

    It would else overwrite every rank's rows with rank 0's, and average the gradients of different classes.
    """
    ignored = {*getattr(module, "_ddp_params_and_buffers_to_ignore", ()), *shards_of(module)}
    # torch has no public name for it; its own `_set_params_and_buffers_to_ignore_for_model` does this.
    module._ddp_params_and_buffers_to_ignore = sorted(ignored)  # type: ignore[assignment]
