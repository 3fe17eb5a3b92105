"""The losses of deep metric learning as torch modules; nothing but torch is needed.

`loss(embeddings, labels)` in anybody's loop; on W workers `loss(embeddings, labels, references)` with the
references of `dml.training.gather.gather`, and the mean over workers is the loss of the one big batch.
"""

from dml.losses.classification import ArcFace, CosFace, NormalisedSoftmax, Softmax
from dml.losses.growth import append_classes
from dml.losses.margin import Margin
from dml.losses.memory import CrossBatchMemory
from dml.losses.mining import MINING, DrawDistanceWeighted, DrawSemiHard, KeepMultiSimilarity
from dml.losses.pair import Contrastive, MultiSimilarity
from dml.losses.proxies import keep_shards_local, sharded_parameters, shards_of
from dml.losses.proxy_anchor import ProxyAnchor
from dml.losses.proxy_nca import ProxyNCA, ProxyNCAPlusPlus
from dml.losses.rank import RecallAtK, SmoothAP
from dml.losses.references import References
from dml.losses.soft import Circle, GeneralisedLifted, NPair, NTXent, SupCon
from dml.losses.soft_triple import SoftTriple
from dml.losses.structured import LiftedStructure, RankedList
from dml.losses.triplet import TripletMargin

__all__ = [
    "MINING",
    "ArcFace",
    "Circle",
    "Contrastive",
    "CosFace",
    "CrossBatchMemory",
    "DrawDistanceWeighted",
    "DrawSemiHard",
    "GeneralisedLifted",
    "KeepMultiSimilarity",
    "LiftedStructure",
    "Margin",
    "MultiSimilarity",
    "NPair",
    "NTXent",
    "NormalisedSoftmax",
    "ProxyAnchor",
    "ProxyNCA",
    "ProxyNCAPlusPlus",
    "RankedList",
    "RecallAtK",
    "References",
    "SmoothAP",
    "SoftTriple",
    "Softmax",
    "SupCon",
    "TripletMargin",
    "append_classes",
    "keep_shards_local",
    "sharded_parameters",
    "shards_of",
]
