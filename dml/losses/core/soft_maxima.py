"""Soft maxima (log-sum-exp) over the positives and over the negatives of each anchor."""

from torch import Tensor

from dml.losses.core.log_sum_exp import log_sum_exp
from dml.losses.core.pair_loss import MASKED, Pairs


def sum_of_soft_maxima(pairs: Pairs, attracting: Tensor, repelling: Tensor) -> tuple[Tensor, Tensor]:
    """(A,) log-sum-exp over positives plus log-sum-exp over negatives; (A,) bool, whether both exist.

    Args:
        pairs: the block.
        attracting: (A, P) values of the positives.
        repelling: (A, R) values of the negatives, -inf where masked.
    """
    attraction = log_sum_exp(attracting.masked_fill(~pairs.is_positive, MASKED))
    valid = pairs.is_positive.any(1) & (pairs.num_negatives > 0)
    return attraction + log_sum_exp(repelling), valid
