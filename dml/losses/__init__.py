"""Losses as torch modules: `loss(embeddings, labels)` in anybody's loop, the same object on any number of workers.

Needs torch alone. Mathematics is a function, a module holds settings and weights and calls it.
"""

from dml.losses.pair import (
    Contrastive,
    MultiSimilarity,
    TripletMargin,
    contrastive_loss,
    multi_similarity_loss,
    triplet_margin_loss,
)
from dml.losses.proxy import ProxyAnchor, proxy_anchor_loss
from dml.losses.references import References

__all__ = [
    "Contrastive",
    "MultiSimilarity",
    "ProxyAnchor",
    "References",
    "TripletMargin",
    "contrastive_loss",
    "multi_similarity_loss",
    "proxy_anchor_loss",
    "triplet_margin_loss",
]
