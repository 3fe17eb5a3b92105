"""Losses with one learnt proxy per class."""

from functools import partial

import torch
from torch import Tensor, nn

from dml.losses.blocks import Pairs, log_one_plus_sum_exp, sum_over_anchors
from dml.losses.references import References
from dml.similarity import at_least_float32


def proxy_anchor_loss(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    references: References | None = None,
    *,
    margin: float = 0.1,
    scale: float = 32.0,
    block_rows: int | None = None,
) -> Tensor:
    """Every proxy is an anchor that draws its class near and pushes all other images away.

    A rank takes its share of the proxies against the global batch, so the work is divided over ranks and the
    classes with positives are counted globally.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids, [0, C).
        proxies: (C, D) float, any length.
        references: the global batch; None: the batch itself.
        margin: of cosine similarity, delta in the paper.
        scale: alpha in the paper.
        block_rows: proxies at a time; None chooses.

    Returns:
        Scalar.

    Source: Kim et al. 2020, arXiv:2003.13911, eq. 4.
    """
    references = References.of(embeddings, labels, references)
    _check_classes(references.labels, proxies)
    world_size = len(references.labels) // len(labels)
    rank = references.first_row // len(labels)
    classes = torch.arange(len(proxies), device=proxies.device).tensor_split(world_size)[rank]
    anchors = nn.functional.normalize(at_least_float32(proxies[classes]))
    totals = sum_over_anchors(
        partial(_proxy_anchor_terms, margin=margin, scale=scale),
        anchors,
        classes,
        references,
        anchors_are_references=False,
        block_rows=block_rows,
    )
    return references.average(totals[:2], totals[2:]).sum()


def _proxy_anchor_terms(pairs: Pairs, *, margin: float, scale: float) -> Tensor:
    attracting = (-scale * (pairs.positive_similarities - margin)).masked_fill(~pairs.positives, -torch.inf)
    repelling = (scale * (pairs.similarities + margin)).masked_fill(~pairs.negatives, -torch.inf)
    losses = torch.stack([log_one_plus_sum_exp(attracting).sum(), log_one_plus_sum_exp(repelling).sum()])
    num_proxies = losses.new_tensor([pairs.positives.any(1).sum(), len(pairs.negatives)])
    return torch.cat([losses, num_proxies])


def _check_classes(labels: Tensor, proxies: Tensor) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(proxies):
        raise ValueError(
            f"labels must be class ids in [0, {len(proxies)}), one proxy each; got {int(labels.min())} to "
            f"{int(labels.max())}. Number the training classes from 0, or give num_classes."
        )


class ProxyAnchor(nn.Module):
    """`proxy_anchor_loss` with its proxies, drawn as Kaiming normal, fan-out, from the generator."""

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 0.1,
        scale: float = 32.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.proxies = nn.Parameter(torch.empty(num_classes, dim))
        nn.init.kaiming_normal_(self.proxies, mode="fan_out", generator=generator)
        self.margin = margin
        self.scale = scale

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return proxy_anchor_loss(
            embeddings, labels, self.proxies, references, margin=self.margin, scale=self.scale
        )
