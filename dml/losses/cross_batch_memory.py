"""A memory bank of former batches around any loss of pairs (XBM)."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dml.arguments import NonNegativeInt, PositiveFloat, PositiveInt, check_arguments
from dml.losses.core.base import EmbeddingLoss, Loss
from dml.losses.core.references import References
from dml.similarity import at_least_float32, unit_length


@check_arguments
class CrossBatchMemory(nn.Module):
    """The loss on the batch, and the same loss of the batch's anchors against embeddings of former batches.

        loss(batch against itself) + weight * loss(batch against the memory bank)

    Embeddings change slowly after a while, so that those of the last batches still serve as references,
    without gradient. The memory bank is a part of the module's state: a resumed run continues with it. It is
    filled with the global batch in rank order, hence the same on every worker and for any number of them. A
    batch is stored after its loss: no image is compared with its own copy. A row that is not finite is never
    stored: one bad batch gives one bad loss.

    Args:
        loss: a loss of pairs, ours or yours, whose references need not contain its anchors; those of ours
            with `within_batch` are refused.
        dim: D, length of an embedding.
        size: how many embeddings are stored; the paper stores the whole data set.
        start_after: calls before the memory bank is used; it fills meanwhile.
        weight: of the loss against the memory bank.

    Raises:
        ValueError: a loss that learns within the batch, or another memory.

    Source: Wang et al. 2020, arXiv:1912.06798, alg. 1; there the batch is stored before its loss.

    Example:
        >>> import torch
        >>> from dml.losses import SupCon
        >>> loss = CrossBatchMemory(SupCon(), dim=4, size=8, start_after=0)
        >>> values = [loss(torch.eye(4), torch.tensor([0, 0, 1, 1])) for _ in range(2)]
        >>> round(values[0].item(), 4), round(values[1].item(), 4)
        (1.0986, 6.0987)
    """

    embeddings: Tensor
    labels: Tensor
    num_calls: Tensor
    num_seen: Tensor
    """() int64, rows stored so far, those overwritten among them."""

    def __init__(
        self,
        loss: Loss,
        *,
        dim: PositiveInt,
        size: PositiveInt = 8192,
        start_after: NonNegativeInt = 1000,
        weight: PositiveFloat = 1.0,
    ) -> None:
        super().__init__()
        if isinstance(loss, type) or not callable(loss):
            raise ValueError(
                f"A memory must be around a loss, as SupCon(); got {loss!r}. Make the loss first: it is the "
                "object that is called."
            )
        if isinstance(loss, CrossBatchMemory):
            raise ValueError(
                "A memory must be around a loss; got another CrossBatchMemory. Make one memory with a larger "
                "size."
            )
        if isinstance(loss, EmbeddingLoss) and loss.within_batch:
            raise ValueError(
                "A memory serves losses of pairs whose other ends may be of former batches; got "
                f"{type(loss).__name__}, which learns within the batch. Use it alone, or another loss here."
            )
        self.loss, self.start_after, self.weight = loss, start_after, weight
        self.register_buffer("embeddings", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))
        self._is_full = False
        self.register_load_state_dict_post_hook(_recount)  # type: ignore[no-untyped-call]

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        references = References.of(embeddings, labels, references)
        if embeddings.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"embeddings must be (B, {self.embeddings.shape[1]}), as the memory; got "
                f"{tuple(embeddings.shape)}. Make it with dim={embeddings.shape[1]}."
            )
        total: Tensor = self.loss(embeddings, labels, references)
        size = self._size_to_use()
        if size:
            # Ours keep nothing of references without gradient; autograd may hold another's until backward.
            bank = self.embeddings if isinstance(self.loss, EmbeddingLoss) else self.embeddings.clone()
            stored = replace(
                references,
                # In float64 where the batch is: a loss of pairs has no precision of its own.
                embeddings=bank[:size].to(at_least_float32(embeddings).dtype),
                labels=self.labels[:size],
                contain_anchors=False,
            )
            total = total + self.weight * self.loss(embeddings, labels, stored)
        if self.training:
            rows, zero_or_nan = self._narrowed(references.embeddings)
            self._store(rows, references.labels)
            total = total + zero_or_nan
        return total

    @torch.no_grad()
    def _narrowed(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """(R, D) embeddings in the memory's type; () 0, or off the CPU NaN where it cannot hold one.

        Raises:
            ValueError: on the CPU a finite embedding is beyond the memory's type.
        """
        if isinstance(self.loss, EmbeddingLoss) and self.loss.normalize:
            embeddings = unit_length(embeddings)  # whose directions alone count, and whose type may be wider
        rows = embeddings.to(self.embeddings.dtype)
        if torch.finfo(rows.dtype).max >= torch.finfo(embeddings.dtype).max:
            return rows, embeddings.new_zeros(())
        is_lost = (embeddings.isfinite() & ~rows.isfinite()).any()
        if is_lost.device.type == "cpu" and is_lost:
            raise ValueError(
                f"Embeddings must fit the memory's {rows.dtype}; got {embeddings.dtype} up to "
                f"{float(embeddings.abs().max()):.3g}. Normalize them, or make the memory .double()."
            )
        return rows, torch.where(is_lost, torch.nan, 0.0)

    def _size_to_use(self) -> int:
        """How many rows serve as references; once all do, it needs no look at the counts, and no wait."""
        if self._is_full:
            return len(self.labels)
        counts = torch.stack([self.num_seen, self.num_calls])
        num_seen, num_calls = map(int, counts.tolist())  # one wait for a GPU
        if num_calls < self.start_after:
            return 0
        self._is_full = num_seen >= len(self.labels)
        return min(num_seen, len(self.labels))

    @torch.no_grad()
    def _store(self, rows: Tensor, labels: Tensor) -> None:
        """Write the global batch's finite rows over the oldest."""
        size = len(self.labels)
        is_finite = rows.sum(1).isfinite()
        # The finite ones behind the others, each in their order; of these the last, as many as there is room.
        order = is_finite.byte().argsort(stable=True)[-size:]
        num_finite = torch.count_nonzero(is_finite).clamp_max(size)
        # The first of these slots are those of rows that are not finite: they keep what they have.
        nth = torch.arange(len(order), device=labels.device) - (len(order) - num_finite)
        slots = (self.num_seen + nth) % size
        is_new = nth >= 0
        self.embeddings[slots] = torch.where(is_new[:, None], rows[order], self.embeddings[slots])
        self.labels[slots] = torch.where(is_new, labels[order], self.labels[slots])
        self.num_seen += num_finite
        self.num_calls += 1


def _recount(memory: CrossBatchMemory, _: Any) -> None:
    """Another state was loaded: how much of it can be used must be looked up again."""
    memory._is_full = False
