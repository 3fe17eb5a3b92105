"""A second oracle: pytorch-metric-learning computes the same, where its settings can be made the same."""

import pytest
import torch
from pytorch_metric_learning import distances, miners
from pytorch_metric_learning import losses as peer
from torch import nn

from dml import losses

SQUARED = distances.LpDistance(power=2)


class Mined(nn.Module):
    """A loss of theirs behind their miner."""

    def __init__(self, loss: nn.Module, miner: nn.Module) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, embeddings: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return self.loss(embeddings, labels, self.miner(embeddings, labels))


PAIRS = {
    "contrastive": (losses.Contrastive(squared=False), peer.ContrastiveLoss()),
    "triplet, all": (
        losses.TripletMargin(mining="all", squared=False),
        peer.TripletMarginLoss(0.2),
    ),
    "triplet, semi-hard": (
        losses.TripletMargin(),
        Mined(
            peer.TripletMarginLoss(0.2, distance=SQUARED),
            miners.TripletMarginMiner(0.2, "semihard", distance=SQUARED),
        ),
    ),
    "generalized lifted structure": (
        losses.GeneralizedLiftedStructure(),
        peer.GeneralizedLiftedStructureLoss(1, 0),
    ),
    "multi_similarity": (
        losses.MultiSimilarity(),
        Mined(peer.MultiSimilarityLoss(2, 50, 0.5), miners.MultiSimilarityMiner(0.1)),
    ),
    "SupCon": (losses.SupCon(), peer.SupConLoss(0.1)),
    "NT-Xent": (losses.NTXent(), peer.NTXentLoss(0.1)),
    "circle": (losses.Circle(), peer.CircleLoss(0.4, 80)),
    "N-pair": (losses.NPair(l2=0), peer.NPairsLoss()),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("seed", range(3))
def test_value_and_gradient_are_the_peer_s(name, seed):
    loss_here, peers_loss = PAIRS[name]
    generator = torch.Generator().manual_seed(seed)
    per_class = 2 if name == "N-pair" else 4
    labels = torch.arange(32) // per_class
    centers = torch.randn(32, 16, dtype=torch.float64, generator=generator)[labels]
    rows = centers + torch.randn(32, 16, dtype=torch.float64, generator=generator)
    x = nn.functional.normalize(rows).requires_grad_()
    values = [loss(x, labels) for loss in (loss_here, peers_loss)]
    gradients = [torch.autograd.grad(value, x)[0] for value in values]
    # Theirs normalises once more, which takes the part along the embedding out of its gradient.
    gradients = [g - (g * x).sum(1, keepdim=True) * x for g in gradients]
    torch.testing.assert_close(values[0], values[1], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
