"""The losses of deep metric learning as torch modules; they need only torch.

In your own loop call `loss(embeddings, labels)`. On W workers call `loss(embeddings, labels, references)`
with the references of `dml.training.gather.gather`; the mean over workers is then the loss of the global
batch.

Each file of this folder defines one loss. The file name is its kind in a configuration: `loss.kind=arcface`.
"""

import pkgutil
from importlib import import_module

from dml.losses.arcface import ArcFace
from dml.losses.circle import Circle
from dml.losses.contrastive import Contrastive
from dml.losses.core.base import EmbeddingLoss, Loss
from dml.losses.core.miners import MINING, DistanceWeightedMiner, MultiSimilarityMiner, SemiHardMiner
from dml.losses.core.new_classes import append_classes
from dml.losses.core.pair_loss import PairLoss
from dml.losses.core.proxies import ProxyLoss, keep_shards_local, named_shards, sharded_parameters
from dml.losses.core.references import References
from dml.losses.cosface import CosFace
from dml.losses.cross_batch_memory import CrossBatchMemory
from dml.losses.generalized_lifted_structure import GeneralizedLiftedStructure
from dml.losses.lifted_structure import LiftedStructure
from dml.losses.margin import Margin
from dml.losses.multi_similarity import MultiSimilarity
from dml.losses.n_pair import NPair
from dml.losses.normalized_softmax import NormalizedSoftmax
from dml.losses.nt_xent import NTXent
from dml.losses.proxy_anchor import ProxyAnchor
from dml.losses.proxy_nca import ProxyNCA
from dml.losses.proxy_nca_plus_plus import ProxyNCAPlusPlus
from dml.losses.ranked_list import RankedList
from dml.losses.recall_at_k import RecallAtK
from dml.losses.smooth_ap import SmoothAP
from dml.losses.soft_triple import SoftTriple
from dml.losses.softmax import Softmax
from dml.losses.sup_con import SupCon
from dml.losses.triplet_margin import TripletMargin

__all__ = [
    "LOSSES",
    "MINING",
    "ArcFace",
    "Circle",
    "Contrastive",
    "CosFace",
    "CrossBatchMemory",
    "DistanceWeightedMiner",
    "EmbeddingLoss",
    "GeneralizedLiftedStructure",
    "LiftedStructure",
    "Loss",
    "Margin",
    "MultiSimilarity",
    "MultiSimilarityMiner",
    "NPair",
    "NTXent",
    "NormalizedSoftmax",
    "PairLoss",
    "ProxyAnchor",
    "ProxyLoss",
    "ProxyNCA",
    "ProxyNCAPlusPlus",
    "RankedList",
    "RecallAtK",
    "References",
    "SemiHardMiner",
    "SmoothAP",
    "SoftTriple",
    "Softmax",
    "SupCon",
    "TripletMargin",
    "append_classes",
    "keep_shards_local",
    "named_shards",
    "sharded_parameters",
]


def _discover_losses() -> dict[str, type[EmbeddingLoss]]:
    losses = {}
    for file in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{file.name}")
        for value in vars(module).values():
            if (
                isinstance(value, type)
                and issubclass(value, EmbeddingLoss)
                and value.__module__ == module.__name__
            ):
                losses[file.name] = value
    return losses


LOSSES = _discover_losses()
"""All losses: maps each kind to its class."""
# Exports the loss of a new file without an import above; the imports are for editors and type checkers.
globals().update({loss.__name__: loss for loss in LOSSES.values()})
