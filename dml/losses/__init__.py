"""The losses of deep metric learning as torch modules; nothing but torch is needed.

`loss(embeddings, labels)` in anybody's loop; on W workers `loss(embeddings, labels, references)` with the
references of `dml.training.gather.gather`, and the mean over workers is the loss of the one big batch.
"""

from dml.losses.pair import Contrastive, MultiSimilarity
from dml.losses.proxy import ArcFace, CosFace, NormalisedSoftmax, ProxyAnchor, ProxyNCA
from dml.losses.references import References
from dml.losses.soft import Circle, GeneralisedLifted, NTXent, SupCon
from dml.losses.triplet import TripletMargin

__all__ = [
    "ArcFace",
    "Circle",
    "Contrastive",
    "CosFace",
    "GeneralisedLifted",
    "MultiSimilarity",
    "NTXent",
    "NormalisedSoftmax",
    "ProxyAnchor",
    "ProxyNCA",
    "References",
    "SupCon",
    "TripletMargin",
]
