"""Losses with one learnt proxy per class."""

import math
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from dml.losses.blocks import Pairs, Totals, average_over_anchors, log_one_plus_sum_exp, log_sum_exp
from dml.losses.references import References
from dml.similarity import at_least_float32, cosine_similarities, squared_distances


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
    return average_over_anchors(
        partial(_proxy_anchor_terms, margin=margin, scale=scale),
        anchors,
        classes,
        replace(references, contain_anchors=False),
        block_rows=block_rows,
    )


def _proxy_anchor_terms(pairs: Pairs, *, margin: float, scale: float) -> Totals:
    attracting = (-scale * (pairs.positives - margin)).masked_fill(~pairs.is_positive, -torch.inf)
    repelling = scale * (pairs.negatives + margin)
    losses = torch.stack([log_one_plus_sum_exp(attracting).sum(), log_one_plus_sum_exp(repelling).sum()])
    return Totals(losses, losses.new_tensor([pairs.is_positive.any(1).sum(), len(pairs.negatives)]))


def proxy_softmax_loss(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    *,
    scale: float,
    cosine_margin: float = 0.0,
    angular_margin: float = 0.0,
) -> Tensor:
    """Classification by cosine to the proxies; the right class must win with cos(angle + m_a) - m_c.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids, [0, C).
        proxies: (C, D) float, any length.
        scale: multiplies cosines, > 0.
        cosine_margin: CosFace's.
        angular_margin: ArcFace's, in radians, [0, pi]. Where angle + m_a exceeds pi, and its cosine would
            rise again, cos(angle) - m_a sin(m_a) is used, as the authors' code.

    Returns:
        Scalar, the mean over the batch; an anchor needs no other, so W workers need no references.

    Source: Zhai, Wu 2019, arXiv:1811.12649 (no margin); Wang et al. 2018, arXiv:1801.09414 (CosFace); Deng et
    al. 2019, arXiv:1801.07698 (ArcFace).
    """
    cosines = _cosines_to_proxies(embeddings, labels, proxies)
    target = cosines.gather(1, labels[:, None])
    harder = _turned(target, angular_margin) - cosine_margin
    return nn.functional.cross_entropy(scale * cosines.scatter(1, labels[:, None], harder), labels)


def _turned(cosines: Tensor, angle: float) -> Tensor:
    """cos(arccos(cosines) + angle), falling on linearly beyond pi; the gradient at +-1 is finite."""
    # The floor keeps the root's slope below 1e4; arccos itself would have an infinite one.
    sines = (1 - cosines.square()).clamp_min(1e-8).sqrt()
    turned = cosines * math.cos(angle) - sines * math.sin(angle) if angle else cosines
    return torch.where(cosines >= -math.cos(angle), turned, cosines - angle * math.sin(angle))


def proxy_nca_loss(
    embeddings: Tensor,
    labels: Tensor,
    proxies: Tensor,
    *,
    scale: float = 9.0,
    positive_in_denominator: bool = True,
) -> Tensor:
    """Softmax over negative squared distances to the proxies.

    Args:
        embeddings: (B, D) float, unit length.
        labels: (B,) int64 class ids, [0, C).
        proxies: (C, D) float, any length; C >= 2.
        scale: multiplies squared distances; 9 is Proxy-NCA++'s temperature 1/9, and the factor 3 on
            embeddings and proxies of the usual code of Proxy-NCA.
        positive_in_denominator: True: Proxy-NCA++, a probability; False: Proxy-NCA, a ratio to the others.

    Returns:
        Scalar, the mean over the batch; an anchor needs no other, so W workers need no references.

    Source: Movshovitz-Attias et al. 2017, arXiv:1703.07464, eq. 4; Teh et al. 2020, arXiv:2004.01113, eq. 5.
    """
    logits = -scale * squared_distances(_cosines_to_proxies(embeddings, labels, proxies))
    if positive_in_denominator:
        return nn.functional.cross_entropy(logits, labels)
    others = logits.scatter(1, labels[:, None], -torch.inf)
    return (log_sum_exp(others) - logits.gather(1, labels[:, None])[:, 0]).mean()


def _cosines_to_proxies(embeddings: Tensor, labels: Tensor, proxies: Tensor) -> Tensor:
    References.of(embeddings, labels, None)
    _check_classes(labels, proxies)
    return cosine_similarities(embeddings, nn.functional.normalize(at_least_float32(proxies)))


def new_proxies(num_classes: int, dim: int, generator: torch.Generator | None) -> nn.Parameter:
    """(C, D) proxies, Kaiming normal over fan-out, as Proxy-Anchor's authors; only directions matter."""
    proxies = torch.empty(num_classes, dim)
    return nn.Parameter(nn.init.kaiming_normal_(proxies, mode="fan_out", generator=generator))


def _check_classes(labels: Tensor, proxies: Tensor) -> None:
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(proxies):
        raise ValueError(
            f"labels must be class ids in [0, {len(proxies)}), one proxy each; got {int(labels.min())} to "
            f"{int(labels.max())}. Number the training classes from 0, or give num_classes."
        )


class ProxyAnchor(nn.Module):
    """`proxy_anchor_loss` with its proxies, drawn from the generator."""

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
        self.proxies = new_proxies(num_classes, dim, generator)
        self.margin = margin
        self.scale = scale

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return proxy_anchor_loss(
            embeddings, labels, self.proxies, references, margin=self.margin, scale=self.scale
        )


class NormalisedSoftmax(nn.Module):
    """`proxy_softmax_loss` without a margin, with its proxies."""

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        temperature: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.proxies = new_proxies(num_classes, dim, generator)
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return proxy_softmax_loss(embeddings, labels, self.proxies, scale=1 / self.temperature)


class CosFace(nn.Module):
    """`proxy_softmax_loss` with a margin of cosine, with its proxies."""

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 0.35,
        scale: float = 64.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.proxies = new_proxies(num_classes, dim, generator)
        self.margin = margin
        self.scale = scale

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return proxy_softmax_loss(
            embeddings, labels, self.proxies, scale=self.scale, cosine_margin=self.margin
        )


class ArcFace(nn.Module):
    """`proxy_softmax_loss` with a margin of angle, in radians, with its proxies."""

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        margin: float = 0.5,
        scale: float = 64.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.proxies = new_proxies(num_classes, dim, generator)
        self.margin = margin
        self.scale = scale

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return proxy_softmax_loss(
            embeddings, labels, self.proxies, scale=self.scale, angular_margin=self.margin
        )


class ProxyNCA(nn.Module):
    """`proxy_nca_loss` with its proxies."""

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        scale: float = 9.0,
        positive_in_denominator: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.proxies = new_proxies(num_classes, dim, generator)
        self.scale = scale
        self.positive_in_denominator = positive_in_denominator

    def forward(self, embeddings: Tensor, labels: Tensor, references: References | None = None) -> Tensor:
        return proxy_nca_loss(
            embeddings,
            labels,
            self.proxies,
            scale=self.scale,
            positive_in_denominator=self.positive_in_denominator,
        )
