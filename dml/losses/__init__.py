"""The losses of deep metric learning as torch modules; nothing but torch is needed.

`loss(embeddings, labels)` in anybody's loop; on W workers `loss(embeddings, labels, references)` with the
references of `dml.training.gather.gather`, and the mean over workers is the loss of the one big batch.

A file of this folder holds one loss, and its name is the loss's kind in a configuration: `loss.kind=arcface`.
"""

import pkgutil
from importlib import import_module

from dml.losses.arcface import ArcFace as ArcFace
from dml.losses.circle import Circle as Circle
from dml.losses.contrastive import Contrastive as Contrastive
from dml.losses.core.base import EmbeddingLoss as EmbeddingLoss
from dml.losses.core.base import Loss as Loss
from dml.losses.core.miners import MINING as MINING
from dml.losses.core.miners import DistanceWeightedMiner as DistanceWeightedMiner
from dml.losses.core.miners import MultiSimilarityMiner as MultiSimilarityMiner
from dml.losses.core.miners import SemiHardMiner as SemiHardMiner
from dml.losses.core.new_classes import append_classes as append_classes
from dml.losses.core.pair_loss import PairLoss as PairLoss
from dml.losses.core.proxies import ProxyLoss as ProxyLoss
from dml.losses.core.proxies import keep_shards_local as keep_shards_local
from dml.losses.core.proxies import sharded_parameters as sharded_parameters
from dml.losses.core.proxies import shards_of as shards_of
from dml.losses.core.references import References as References
from dml.losses.cosface import CosFace as CosFace
from dml.losses.cross_batch_memory import CrossBatchMemory as CrossBatchMemory
from dml.losses.generalized_lifted_structure import GeneralizedLiftedStructure as GeneralizedLiftedStructure
from dml.losses.lifted_structure import LiftedStructure as LiftedStructure
from dml.losses.margin import Margin as Margin
from dml.losses.multi_similarity import MultiSimilarity as MultiSimilarity
from dml.losses.n_pair import NPair as NPair
from dml.losses.normalized_softmax import NormalizedSoftmax as NormalizedSoftmax
from dml.losses.nt_xent import NTXent as NTXent
from dml.losses.proxy_anchor import ProxyAnchor as ProxyAnchor
from dml.losses.proxy_nca import ProxyNCA as ProxyNCA
from dml.losses.proxy_nca_plus_plus import ProxyNCAPlusPlus as ProxyNCAPlusPlus
from dml.losses.ranked_list import RankedList as RankedList
from dml.losses.recall_at_k import RecallAtK as RecallAtK
from dml.losses.smooth_ap import SmoothAP as SmoothAP
from dml.losses.soft_triple import SoftTriple as SoftTriple
from dml.losses.softmax import Softmax as Softmax
from dml.losses.sup_con import SupCon as SupCon
from dml.losses.triplet_margin import TripletMargin as TripletMargin


def _find() -> dict[str, type[EmbeddingLoss]]:
    losses = {}
    for file in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{file.name}")
        for each in vars(module).values():
            if (
                isinstance(each, type)
                and issubclass(each, EmbeddingLoss)
                and each.__module__ == module.__name__
            ):
                losses[file.name] = each
    return losses


LOSSES = _find()
"""Every loss by its kind."""
# A new file's loss is exported without a line above, which tells editors and type checkers of it.
globals().update({loss.__name__: loss for loss in LOSSES.values()})
