"""A memory of former batches around any loss of pairs."""

from dataclasses import replace

import torch
from torch import Tensor, nn

from dml.losses.references import References
from dml.similarity import at_least_float32


class CrossBatchMemory(nn.Module):
    """The loss on the batch, and the same loss of the batch's anchors against embeddings of former batches.

    Embeddings change slowly after a while, so that those of the last batches still serve as references,
    without gradient. The memory is a part of the module's state: a resumed run remembers what it remembered.
    It is filled with the global batch in rank order, hence the same on every worker and for any number of
    them. A batch is remembered after its loss: no image meets its own copy.

    Args:
        loss: a loss of pairs whose references need not contain its anchors. Ours that want them there say so
            by an attribute `within_batch`, and are refused.
        dim: D, length of an embedding.
        size: how many embeddings are remembered; the paper remembers the whole data set.
        start_after: calls before the memory is used; it fills meanwhile.
        weight: of the loss against the memory.

    Raises:
        ValueError: no size, a negative start, or a loss that learns within the batch.

    Source: Wang et al. 2020, arXiv:1912.06798, alg. 1; there the batch is remembered before its loss.
    """

    embeddings: Tensor
    labels: Tensor
    num_calls: Tensor
    num_seen: Tensor

    def __init__(
        self, loss: nn.Module, *, dim: int, size: int = 8192, start_after: int = 1000, weight: float = 1.0
    ) -> None:
        super().__init__()
        if getattr(loss, "within_batch", False):
            raise ValueError(
                "A memory serves losses of pairs whose other ends may be of former batches; got "
                f"{type(loss).__name__}, which learns within the batch. Use it alone, or another loss here."
            )
        if size < 1 or start_after < 0:
            raise ValueError(
                f"size must be at least 1 and start_after at least 0; got {size} and {start_after}. Without "
                "a memory use the loss by itself."
            )
        self.loss, self.start_after, self.weight = loss, start_after, weight
        self.register_buffer("embeddings", torch.zeros(size, dim))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("num_calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("num_seen", torch.zeros((), dtype=torch.int64))

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        references = References.of(embeddings, labels, references)
        total: Tensor = self.loss(embeddings, labels, references)
        num_seen, num_calls = torch.stack([self.num_seen, self.num_calls]).tolist()  # one wait for a GPU
        size = min(num_seen, len(self.labels))
        if size and num_calls >= self.start_after:
            remembered = replace(
                references,
                # In float64 where the batch is: a loss of pairs has no precision of its own.
                embeddings=self.embeddings[:size].to(at_least_float32(embeddings).dtype),
                labels=self.labels[:size],
                contain_anchors=False,
            )
            total = total + self.weight * self.loss(embeddings, labels, remembered)
        if self.training:
            self._remember(references)
        return total

    @torch.no_grad()
    def _remember(self, references: References) -> None:
        """Write the global batch over the oldest rows."""
        size = len(self.labels)
        rows, labels = references.embeddings[-size:], references.labels[-size:]
        # A new tensor, not the old one's rows: autograd still holds those for the backward of this call.
        self.embeddings, self.labels = self.embeddings.clone(), self.labels.clone()
        places = (self.num_seen + torch.arange(len(labels), device=labels.device)) % size
        self.embeddings[places] = rows.to(self.embeddings.dtype)
        self.labels[places] = labels
        self.num_seen += len(labels)
        self.num_calls += 1
