"""Losses of learnt class representatives; the proxies are the module's parameters, with a rate of their own."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dml.losses.pair import log_one_plus_sum
from dml.losses.references import References
from dml.similarity import at_least_float32, cosine_similarities


def proxy_anchor_loss(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    references: References | None = None,
    *,
    margin: float = 0.1,
    scale: float = 32.0,
) -> Tensor:
    """Each proxy, as an anchor, pulls its class's images and pushes all others, the hardest most.

    Args:
        embeddings: (b, D) float, unit length: this worker's rows.
        labels: (b,) int64 class ids in [0, C).
        proxies: (C, D) float of any length.
        references: the global batch; None: the rows themselves.
        margin: gap on the cosine around 0.
        scale: sharpness, alpha in the paper.

    Returns:
        Scalar. Each worker computes its share of the proxies against the global batch: memory O(C / W * W b).

    Raises:
        ValueError: a label outside [0, C).

    Source: Kim et al. 2020, arXiv:2003.13911, eq. 4. The pull is a mean over the classes in the global batch, the
    push a mean over all classes.
    """
    references = references or References.of_batch(embeddings, labels)
    if len(labels) and not (0 <= int(references.labels.min()) <= int(references.labels.max()) < len(proxies)):
        raise ValueError(
            f"Labels must be class ids in [0, {len(proxies)}), one per proxy; got "
            f"{int(references.labels.min())} to {int(references.labels.max())}."
        )
    share = references.share_of(len(proxies), len(labels))
    mine = F.normalize(at_least_float32(proxies[share]), dim=1)
    similarities = cosine_similarities(mine, references.embeddings)
    classes = torch.arange(share.start, share.stop, device=labels.device)
    of_class = classes[:, None] == references.labels[None, :]
    pulled = log_one_plus_sum(-scale * (similarities - margin), of_class)
    pushed = log_one_plus_sum(scale * (similarities + margin), ~of_class)
    present = of_class.any(1).sum()
    all_classes = torch.tensor(len(classes), device=labels.device)
    return pulled.sum() / references.mean_count(present) + pushed.sum() / references.mean_count(all_classes)


class ProxyAnchor(nn.Module):
    """`proxy_anchor_loss` with its settings and proxies.

    Args:
        num_classes: C.
        dim: D.
        margin, scale: as the function.
        generator: decides the proxies' first values (He et al.'s normal, fan-out, as the paper's code).
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        margin: float = 0.1,
        scale: float = 32.0,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.margin, self.scale = margin, scale
        self.proxies = nn.Parameter(torch.empty(num_classes, dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out", generator=generator)

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return proxy_anchor_loss(
            embeddings, labels, self.proxies, references, margin=self.margin, scale=self.scale
        )
