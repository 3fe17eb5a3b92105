"""Cross-batch memory (XBM): a memory bank of previous batches for any pair loss."""

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
    """The loss on the batch, plus the same loss of its anchors against embeddings of previous batches.

        loss(batch against itself) + weight * loss(batch against the memory bank)

    After some training, embeddings change slowly. Those of previous batches can then be references, without
    gradient. The memory bank is in `state_dict`, so a resumed run continues with it. It stores the global
    batch in rank order, so it is equal on every worker and for any number of workers. A batch is stored after
    its loss is computed: no image is compared with its own copy. Rows that are not finite are not stored: one
    bad batch gives one bad loss.

    Args:
        loss: a pair loss whose references need not contain the anchors, from this package or your own. A
            loss of this package with `within_batch` raises an error.
        dim: D, length of an embedding.
        size: capacity of the memory bank in embeddings; the paper stores the whole data set.
        start_after: number of calls before the memory bank is used; it is filled from the first call.
        weight: weight of the loss against the memory bank.

    Raises:
        ValueError: the loss uses pairs within the batch, or is another memory bank.

    Source: Wang et al. 2020, arXiv:1912.06798, alg. 1, which stores the batch before its loss.

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
    """() int64, rows stored so far, including overwritten ones."""

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
                f"loss must be a loss object, such as SupCon(); got {loss!r}. Create the loss first and pass "
                "the object."
            )
        if isinstance(loss, CrossBatchMemory):
            raise ValueError(
                "loss must be a pair loss; got another CrossBatchMemory. Use one CrossBatchMemory with a "
                "larger size."
            )
        if isinstance(loss, EmbeddingLoss) and loss.within_batch:
            raise ValueError(
                "loss must accept references from previous batches; got "
                f"{type(loss).__name__}, which uses pairs within the batch. Use it without "
                "CrossBatchMemory, or choose another loss."
            )
        self.loss, self.start_after, self.weight = loss, start_after, weight
        self.register_buffer("embeddings", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))
        self._is_full = False
        self.register_load_state_dict_post_hook(_reset_is_full)  # type: ignore[no-untyped-call]

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        references = References.check(embeddings, labels, references)
        if embeddings.shape[1] != self.embeddings.shape[1]:
            raise ValueError(
                f"embeddings must be (B, {self.embeddings.shape[1]}), like the memory bank; got "
                f"{tuple(embeddings.shape)}. Create it with dim={embeddings.shape[1]}."
            )
        total: Tensor = self.loss(embeddings, labels, references)
        size = self._size_to_use()
        if size:
            # Losses of this package save no references without gradient; another loss may save them for
            # backward, and the bank is overwritten before that, so it gets a copy.
            bank = self.embeddings if isinstance(self.loss, EmbeddingLoss) else self.embeddings.clone()
            stored = replace(
                references,
                # In the type of the batch: a pair loss computes in the type of its inputs.
                embeddings=bank[:size].to(at_least_float32(embeddings).dtype),
                labels=self.labels[:size],
                contain_anchors=False,
            )
            total = total + self.weight * self.loss(embeddings, labels, stored)
        if self.training:
            rows, zero_or_nan = self._cast_to_bank(references.embeddings)
            self._store(rows, references.labels)
            total = total + zero_or_nan
        return total

    @torch.no_grad()
    def _cast_to_bank(self, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """(R, D) embeddings in the type of the memory bank; () 0, or on a GPU NaN if one overflows.

        Raises:
            ValueError: on the CPU, a finite embedding overflows the type of the memory bank.
        """
        if isinstance(self.loss, EmbeddingLoss) and self.loss.normalize:
            embeddings = unit_length(embeddings)  # the loss uses only directions, and these cannot overflow
        rows = embeddings.to(self.embeddings.dtype)
        if torch.finfo(rows.dtype).max >= torch.finfo(embeddings.dtype).max:
            return rows, embeddings.new_zeros(())
        overflows = (embeddings.isfinite() & ~rows.isfinite()).any()
        if overflows.device.type == "cpu" and overflows:
            raise ValueError(
                f"Embeddings must fit the memory bank's {rows.dtype}; got {embeddings.dtype} up to "
                f"{float(embeddings.abs().max()):.3g}. Normalize them, or call .double() on the memory."
            )
        return rows, torch.where(overflows, torch.nan, 0.0)

    def _size_to_use(self) -> int:
        """The number of rows used as references; once the bank is full, without synchronizing with a GPU."""
        if self._is_full:
            return len(self.labels)
        counts = torch.stack([self.num_seen, self.num_calls])
        num_seen, num_calls = map(int, counts.tolist())  # one synchronization with a GPU
        if num_calls < self.start_after:
            return 0
        self._is_full = num_seen >= len(self.labels)
        return min(num_seen, len(self.labels))

    @torch.no_grad()
    def _store(self, rows: Tensor, labels: Tensor) -> None:
        """Overwrite the oldest rows with the finite rows of the global batch."""
        size = len(self.labels)
        is_finite = rows.sum(1).isfinite()
        # Finite rows last, in their order; only the last `size` rows fit.
        order = is_finite.byte().argsort(stable=True)[-size:]
        num_finite = torch.count_nonzero(is_finite).clamp_max(size)
        # Slots with nth < 0 belong to rows that are not finite: their old content is written back.
        nth = torch.arange(len(order), device=labels.device) - (len(order) - num_finite)
        slots = (self.num_seen + nth) % size
        is_new = nth >= 0
        self.embeddings[slots] = torch.where(is_new[:, None], rows[order], self.embeddings[slots])
        self.labels[slots] = torch.where(is_new, labels[order], self.labels[slots])
        self.num_seen += num_finite
        self.num_calls += 1


def _reset_is_full(memory: CrossBatchMemory, _: Any) -> None:
    """After loading a state, the counts must be read again."""
    memory._is_full = False
