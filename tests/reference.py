"""The losses in plain loops over Python lists of scalars: slow, and right by reading.

Every function takes embeddings (B, D) float64 and labels (B,), and returns a scalar with its gradient.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from dml.losses.core.rng import CounterRNG


def similarity(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum()


def squared_distance(x: Tensor, y: Tensor) -> Tensor:
    """The gradient at coincident points is 0: along the sphere it is, and off the sphere nothing moves."""
    return hinge(2 - 2 * similarity(x, y))


def cosine(x: Tensor, proxy: Tensor) -> Tensor:
    """Of a unit vector and a proxy of any length."""
    return similarity(x, proxy / proxy.norm())


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


class Kept(NamedTuple):
    """What a miner keeps of an anchor."""

    positives: list[int]
    negatives: list[int]
    """Of each positive one, in its order, if drawn; else all go with all."""
    drawn: bool

    def triplets(self) -> list[tuple[int, int]]:
        if self.drawn:
            return list(zip(self.positives, self.negatives, strict=True))
        return [(p, n) for p in self.positives for n in self.negatives]


def mine(x: Tensor, labels: Tensor, mining: str, *, margin: float = 0.2, squared: bool = True) -> list[Kept]:
    """What a miner keeps of every anchor; the uniform numbers of draws are the only thing it shares."""
    return [_mine_anchor(x.detach(), labels, i, mining, margin, squared) for i in range(len(x))]


def _mine_anchor(x: Tensor, labels: Tensor, i: int, mining: str, margin: float, squared: bool) -> Kept:
    near, far = positives(labels, i), negatives(labels, i)
    s = [float(similarity(x[i], y)) for y in x]
    measure = (lambda j: 2 - 2 * s[j]) if squared else (lambda j: max(2 - 2 * s[j], 0.0) ** 0.5)
    # Slots are the members of the anchor's class in the batch's order, the anchor included.
    slot = [j for j in range(len(x)) if labels[j] == labels[i]].index
    num_slots = int(max(torch.bincount(labels)))

    def uniform(slots: int, stream: int) -> list[float]:
        return CounterRNG(0, torch.tensor(0)).uniform(torch.tensor([i]), slots, stream=stream)[0].tolist()

    def draw(weights: dict[int, float], u: float) -> int:
        target, total = u * sum(weights.values()), 0.0
        for j, weight in weights.items():
            total += weight
            if total > target:
                return j
        raise AssertionError

    match mining:
        case "all":
            return Kept(near, far, drawn=False)
        case "multi_similarity":
            hard_near = [p for p in near if far and s[p] < max(s[n] for n in far) + 0.1]
            return Kept(
                hard_near, [n for n in far if near and s[n] > min(s[p] for p in near) - 0.1], drawn=False
            )
        case "n_pair":
            occurrence = [sum(int(labels[k] == labels[j]) for k in range(j)) for j in range(len(x))]
            partner = [p for p in near if occurrence[i] % 2 == 0 and occurrence[p] == occurrence[i] + 1]
            return Kept(partner, [n for n in far if partner and occurrence[n] % 2], drawn=False)
    if not near or not far:
        return Kept([], [], drawn=True)
    match mining:
        case "random":
            u = uniform(num_slots, 0)
            return Kept(near, [draw(dict.fromkeys(far, 1.0), u[slot(p)]) for p in near], drawn=True)
        case "batch_hard":
            return Kept([min(near, key=s.__getitem__)], [max(far, key=s.__getitem__)], drawn=True)
        case "semi_hard":
            kept, drawn = [], []
            for p in near:
                among = [n for n in far if measure(p) < measure(n) < measure(p) + margin]
                if among:
                    kept.append(p)
                    drawn.append(draw(dict.fromkeys(among, 1.0), uniform(num_slots, slot(p))[0]))
            return Kept(kept, drawn, drawn=True)
        case "soft_hard":
            hard_near = [p for p in near if s[p] < max(s[n] for n in far)] or near
            hard_far = [n for n in far if s[n] > min(s[p] for p in near)] or far
            u = uniform(2, 0)
            return Kept(
                [draw(dict.fromkeys(hard_near, 1.0), u[0])],
                [draw(dict.fromkeys(hard_far, 1.0), u[1])],
                drawn=True,
            )
        case "distance_weighted":
            u, dim = uniform(num_slots, 0), x.shape[1]
            weights = {}
            for n in far:
                d = max(math.sqrt(max(2 - 2 * s[n], 0)), 0.5)
                if d < 1.4:
                    weights[n] = 1 / (d ** (dim - 2) * (1 - d * d / 4) ** ((dim - 3) / 2))
            weights = weights or dict.fromkeys(far, 1.0)
            return Kept(near, [draw(weights, u[slot(p)]) for p in near], drawn=True)
    raise AssertionError(mining)


def contrastive(
    x: Tensor, labels: Tensor, *, positive_margin: float, negative_margin: float, squared: bool, mining: str
) -> Tensor:
    attracted, repelled = [], []
    for i, kept in enumerate(mine(x, labels, mining)):
        attracted += [hinge(distance(x[i], x[j]) - positive_margin) for j in kept.positives]
        repelled += [hinge(negative_margin - distance(x[i], x[j])) for j in kept.negatives]
    kinds = [[value for value in kind if value > 0] for kind in (attracted, repelled)]
    return sum(mean([value**2 if squared else value for value in kind], x) for kind in kinds)


def margin(x: Tensor, labels: Tensor, beta: Tensor, *, alpha: float, nu: float, mining: str) -> Tensor:
    total, num_active = 0 * x.sum() + 0 * beta.sum(), 0
    for i, kept in enumerate(mine(x, labels, mining)):
        boundary = beta if beta.ndim == 0 else beta[labels[i]]
        hinges = [hinge(alpha + distance(x[i], x[p]) - boundary) for p in kept.positives]
        hinges += [hinge(alpha + boundary - distance(x[i], x[n])) for n in kept.negatives]
        num_active += sum(int(value > 0) for value in hinges)
        total = total + sum(hinges) + nu * boundary * len(kept.positives)
    return total / max(num_active, 1)


def triplet_margin(x: Tensor, labels: Tensor, *, mining: str, margin: float | None, squared: bool) -> Tensor:
    # Squared without a hinge: its gradient at coincident points runs along them, and moves nothing.
    measure = (lambda a, b: 2 - 2 * similarity(a, b)) if squared else distance
    only_violating = margin is not None and mining in ("all", "semi_hard")
    within = "all" if only_violating else mining
    penalties = []
    for i, kept in enumerate(mine(x, labels, within, margin=margin or 0.2, squared=squared)):
        for p, n in kept.triplets():
            gap = measure(x[i], x[p]) - measure(x[i], x[n])
            if margin is None:
                penalties.append(torch.log(1 + gap.exp()))
            elif not only_violating:
                penalties.append(hinge(gap + margin))
            elif gap + margin > 0 and (mining == "all" or gap < 0):
                penalties.append(gap + margin)
    return mean(penalties, x)


def n_pair(x: Tensor, labels: Tensor, *, scale: float, l2: float) -> Tensor:
    losses = []
    for i, kept in enumerate(mine(x, labels, "n_pair")):
        for p in kept.positives:
            near = scale * similarity(x[i], x[p])
            losses.append(
                log_one_plus_sum_exp([scale * similarity(x[i], x[n]) - near for n in kept.negatives])
            )
    return mean(losses, x) + l2 * sum(similarity(row, row) for row in x) / len(x)


def lifted_structure(x: Tensor, labels: Tensor, *, margin: float) -> Tensor:
    losses = []
    for i in range(len(x)):
        for j in positives(labels, i):
            of_both = [(margin - distance(x[k], x[n])).exp() for k in (i, j) for n in negatives(labels, k)]
            value = hinge(sum(of_both).log() + distance(x[i], x[j])) if of_both else 0 * x.sum()
            losses.append(value**2 / 2)
    return mean(losses, x)


def ranked_list(
    x: Tensor, labels: Tensor, *, boundary: float, margin: float, temperature: float, negative_weight: float
) -> Tensor:
    total = 0 * x.sum()
    for i in range(len(x)):
        near = [hinge(distance(x[i], x[p]) - (boundary - margin)) for p in positives(labels, i)]
        far = [hinge(boundary - distance(x[i], x[n])) for n in negatives(labels, i)]
        near, far = [h for h in near if h > 0], [h for h in far if h > 0]
        weights = [(temperature * h.detach()).exp() for h in far]
        total = total + mean(near, x)
        if far:
            weighted = sum(w * h for w, h in zip(weights, far, strict=True))
            total = total + negative_weight * weighted / sum(weights)
    return total / len(x)


def _smooth_rank(x: Tensor, i: int, p: int, among: list[int], temperature: float) -> Tensor:
    steps = [
        ((similarity(x[i], x[j]) - similarity(x[i], x[p])) / temperature).sigmoid() for j in among if j != p
    ]
    return 1 + sum(steps)


def smooth_ap(x: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
    losses = []
    for i in range(len(x)):
        near, others = positives(labels, i), [j for j in range(len(x)) if j != i]
        if near:
            precisions = [
                _smooth_rank(x, i, p, near, temperature) / _smooth_rank(x, i, p, others, temperature)
                for p in near
            ]
            losses.append(1 - mean(precisions, x))
    return mean(losses, x)


def recall_at_k(
    x: Tensor, labels: Tensor, *, ks: tuple[int, ...], rank_temperature: float, cut_temperature: float
) -> Tensor:
    losses = []
    for i in range(len(x)):
        near, others = positives(labels, i), [j for j in range(len(x)) if j != i]
        if near:
            ranks = [_smooth_rank(x, i, p, others, rank_temperature) for p in near]
            recalls = [
                sum(((k - rank) / cut_temperature).sigmoid() for rank in ranks) / min(k, len(near))
                for k in ks
            ]
            losses.append(1 - mean(recalls, x))
    return mean(losses, x)


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


def sup_con(x: Tensor, labels: Tensor, *, temperature: float) -> Tensor:
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


def generalized_lifted_structure(x: Tensor, labels: Tensor, *, margin: float) -> Tensor:
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


def cross_entropy(x: Tensor, labels: Tensor, logits: Callable[[Tensor, int], list[Tensor]]) -> Tensor:
    """Of the logits of a row and its label to every class."""
    losses = []
    for row, label in zip(x, labels.tolist(), strict=True):
        exponentials = [logit.exp() for logit in logits(row, label)]
        losses.append(-(exponentials[label] / sum(exponentials)).log())
    return mean(losses, x)


def softmax(x: Tensor, labels: Tensor, weights: Tensor, bias: Tensor) -> Tensor:
    return cross_entropy(
        x, labels, lambda row, _: [similarity(row, w) + b for w, b in zip(weights, bias, strict=True)]
    )


def normalized_softmax(x: Tensor, labels: Tensor, proxies: Tensor, *, temperature: float) -> Tensor:
    return cross_entropy(x, labels, lambda row, _: [cosine(row, p) / temperature for p in proxies])


def cosface(x: Tensor, labels: Tensor, proxies: Tensor, *, margin: float, scale: float) -> Tensor:
    def logits(row: Tensor, label: int) -> list[Tensor]:
        return [scale * (cosine(row, proxy) - margin * (c == label)) for c, proxy in enumerate(proxies)]

    return cross_entropy(x, labels, logits)


def arcface(
    x: Tensor, labels: Tensor, proxies: Tensor, *, margin: float, scale: float, beyond_pi: str
) -> Tensor:
    def logits(row: Tensor, label: int) -> list[Tensor]:
        cosines = [cosine(row, proxy) for proxy in proxies]
        angle = cosines[label].acos()
        if angle + margin <= math.pi or beyond_pi == "cosine":
            cosines[label] = (angle + margin).cos()
        else:
            cosines[label] = cosines[label] - margin * math.sin(margin)
        return [scale * value for value in cosines]

    return cross_entropy(x, labels, logits)


def proxy_nca(x: Tensor, labels: Tensor, proxies: Tensor, *, scale: float) -> Tensor:
    losses = []
    for row, label in zip(x, labels.tolist(), strict=True):
        near = [(-scale * squared_distance(row, proxy / proxy.norm())).exp() for proxy in proxies]
        losses.append(-(near[label] / sum(value for c, value in enumerate(near) if c != label)).log())
    return mean(losses, x)


def proxy_nca_plus_plus(x: Tensor, labels: Tensor, proxies: Tensor, *, temperature: float) -> Tensor:
    def logits(row: Tensor, _: int) -> list[Tensor]:
        return [-squared_distance(row, proxy / proxy.norm()) / temperature for proxy in proxies]

    return cross_entropy(x, labels, logits)


def soft_triple(
    x: Tensor, labels: Tensor, proxies: Tensor, *, scale: float, gamma: float, margin: float, tau: float
) -> Tensor:
    num_classes, num_centers = proxies.shape[:2]
    centers = [[center / center.norm() for center in of_class] for of_class in proxies]

    def logits(row: Tensor, label: int) -> list[Tensor]:
        relaxed = []
        for of_class in centers:
            cosines = [similarity(row, center) for center in of_class]
            weights = [(value / gamma).exp() for value in cosines]
            relaxed.append(sum(w * s for w, s in zip(weights, cosines, strict=True)) / sum(weights))
        return [scale * (value - margin * (c == label)) for c, value in enumerate(relaxed)]

    loss = cross_entropy(x, labels, logits)
    apart = [
        distance(of_class[s], of_class[t])
        for of_class in centers
        for s in range(num_centers)
        for t in range(s + 1, num_centers)
    ]
    return loss + tau * sum(apart) / (num_classes * num_centers * (num_centers - 1)) if apart else loss
