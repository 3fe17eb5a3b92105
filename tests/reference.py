"""The losses in plain loops over Python lists of scalars: slow, and right by reading.

Every function takes embeddings (B, D) float64 and labels (B,), and returns a scalar with its gradient.
"""

import math

import torch
from torch import Tensor


def similarity(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum()


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """The gradient at coincident points is 0: along the sphere it is, and off the sphere nothing moves."""
    return hinge(2 - 2 * similarity(x, y))


def distance(x: Tensor, y: Tensor) -> Tensor:
    """The root has no gradient at coincident points; there it is 0."""
    squared = squared_distance(x, y)
    return squared.sqrt() if squared > 0 else squared


def hinge(value: Tensor) -> Tensor:
    return value if value > 0 else value * 0


def positives(labels: Tensor, anchor: int) -> list[int]:
    return [j for j in range(len(labels)) if j != anchor and labels[j] == labels[anchor]]


def negatives(labels: Tensor, anchor: int) -> list[int]:
    return [j for j in range(len(labels)) if labels[j] != labels[anchor]]


def mean(values: list[Tensor], embeddings: Tensor) -> Tensor:
    """The mean, or a zero that depends on the embeddings."""
    return sum(values) / len(values) if values else 0 * embeddings.sum()


def log_one_plus_sum_exp(values: list[Tensor]) -> Tensor:
    return (1 + sum(value.exp() for value in values)).log() if values else torch.zeros(())


def contrastive(
    x: Tensor, labels: Tensor, *, positive_margin: float, negative_margin: float, squared: bool
) -> Tensor:
    attracted, repelled = [], []
    for i in range(len(x)):
        attracted += [hinge(distance(x[i], x[j]) - positive_margin) for j in positives(labels, i)]
        repelled += [hinge(negative_margin - distance(x[i], x[j])) for j in negatives(labels, i)]
    kinds = [[value for value in kind if value > 0] for kind in (attracted, repelled)]
    return sum(mean([value**2 if squared else value for value in kind], x) for kind in kinds)


def triplet(x: Tensor, labels: Tensor, *, mining: str, margin: float | None, squared: bool) -> Tensor:
    # Squared without a hinge: its gradient at coincident points runs along them, and moves nothing.
    measure = (lambda a, b: 2 - 2 * similarity(a, b)) if squared else distance
    penalties = []
    for i in range(len(x)):
        to_positives = [measure(x[i], x[p]) for p in positives(labels, i)]
        to_negatives = [measure(x[i], x[n]) for n in negatives(labels, i)]
        if mining == "batch-hard" and to_positives and to_negatives:
            to_positives = [max(to_positives)]  # of equals the first
            to_negatives = [min(to_negatives)]
        for positive in to_positives:
            for negative in to_negatives:
                gap = positive - negative
                if margin is None:
                    penalties.append(torch.log(1 + gap.exp()))
                elif mining == "batch-hard":
                    penalties.append(hinge(gap + margin))
                elif gap + margin > 0 and (mining == "all" or gap < 0):
                    penalties.append(gap + margin)
    return mean(penalties, x)


def multi_similarity(
    x: Tensor, labels: Tensor, *, alpha: float, beta: float, base: float, epsilon: float | None
) -> Tensor:
    losses = []
    for i in range(len(x)):
        near = [similarity(x[i], x[p]) for p in positives(labels, i)]
        far = [similarity(x[i], x[n]) for n in negatives(labels, i)]
        if epsilon is not None:
            hard_near = [s for s in near if far and s < max(far) + epsilon]
            hard_far = [s for s in far if near and s > min(near) - epsilon]
            near, far = hard_near, hard_far
        losses.append(
            log_one_plus_sum_exp([-alpha * (s - base) for s in near]) / alpha
            + log_one_plus_sum_exp([beta * (s - base) for s in far]) / beta
        )
    return mean(losses, x) + 0 * x.sum()


def supervised_contrastive(x: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    losses = []
    for i in range(len(x)):
        others = sum((similarity(x[i], x[a]) / temperature).exp() for a in range(len(x)) if a != i)
        of_pairs = [others.log() - similarity(x[i], x[p]) / temperature for p in positives(labels, i)]
        if of_pairs:
            losses.append(mean(of_pairs, x))
    return mean(losses, x)


def nt_xent(x: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    losses = []
    for i in range(len(x)):
        far = sum((similarity(x[i], x[n]) / temperature).exp() for n in negatives(labels, i))
        for p in positives(labels, i):
            near = (similarity(x[i], x[p]) / temperature).exp()
            losses.append(-(near / (near + far)).log())
    return mean(losses, x)


def circle(x: Tensor, labels: Tensor, *, margin: float, scale: float) -> Tensor:
    losses = []
    for i in range(len(x)):
        near = [similarity(x[i], x[p]) for p in positives(labels, i)]
        far = [similarity(x[i], x[n]) for n in negatives(labels, i)]
        if near and far:
            attracting = [-scale * hinge(1 + margin - s.detach()) * (s - (1 - margin)) for s in near]
            repelling = [scale * hinge(s.detach() + margin) * (s - margin) for s in far]
            losses.append(log_one_plus_sum_exp([p + n for p in attracting for n in repelling]))
    return mean(losses, x)


def generalised_lifted(x: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    losses = []
    for i in range(len(x)):
        near = [distance(x[i], x[p]).exp() for p in positives(labels, i)]
        far = [(margin - distance(x[i], x[n])).exp() for n in negatives(labels, i)]
        if near and far:
            losses.append(hinge(sum(near).log() + sum(far).log()))
    return mean(losses, x)


def proxy_anchor(x: Tensor, labels: Tensor, proxies: Tensor, *, margin: float, scale: float) -> Tensor:
    attracting, repelling = [], []
    for label, proxy in enumerate(proxies):
        direction = proxy / proxy.norm()
        of_class = [
            -scale * (similarity(x[i], direction) - margin) for i in range(len(x)) if labels[i] == label
        ]
        of_others = [
            scale * (similarity(x[i], direction) + margin) for i in range(len(x)) if labels[i] != label
        ]
        if of_class:
            attracting.append(log_one_plus_sum_exp(of_class))
        repelling.append(log_one_plus_sum_exp(of_others))
    return mean(attracting, x) + mean(repelling, x)


def proxy_softmax(
    x: Tensor,
    labels: Tensor,
    proxies: Tensor,
    *,
    scale: float,
    cosine_margin: float = 0.0,
    angular_margin: float = 0.0,
) -> Tensor:
    losses = []
    for i, label in enumerate(labels.tolist()):
        cosines = [similarity(x[i], proxy / proxy.norm()) for proxy in proxies]
        angle = cosines[label].acos()
        if angle + angular_margin <= math.pi:
            cosines[label] = (angle + angular_margin).cos() - cosine_margin
        else:
            cosines[label] = cosines[label] - angular_margin * math.sin(angular_margin) - cosine_margin
        exponentials = [(scale * cosine).exp() for cosine in cosines]
        losses.append(-(exponentials[label] / sum(exponentials)).log())
    return mean(losses, x)


def proxy_nca(x: Tensor, labels: Tensor, proxies: Tensor, *, scale: float, ratio: bool) -> Tensor:
    losses = []
    for i, label in enumerate(labels.tolist()):
        near = [(-scale * squared_distance(x[i], proxy / proxy.norm())).exp() for proxy in proxies]
        among = [value for c, value in enumerate(near) if not (ratio and c == label)]
        losses.append(-(near[label] / sum(among)).log())
    return mean(losses, x)
