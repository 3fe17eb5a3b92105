"""64 bits of an image that stay nearly the same when it is resized, re-encoded or brightened."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

_FREQUENCIES = 8
_BLOCK = 4096  # thumbnails transformed at a time: 32 MiB
_GREY_LEVELS_SQUARED = (0.03 * 255) ** 2 / 2  # SSIM's C3


def perceptual_hashes(thumbnails: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """pHash: which of the 64 lowest frequencies of an image are above their median.

        bits = C[1:9, 1:9] > median(C[1:9, 1:9]), where C is the two-dimensional DCT of the thumbnail

    Frequency 0 of both directions is left out: it says how bright the image is. The hashes of equal images
    differ in no bit, those of independent ones in 32 on average.

    Args:
        thumbnails: (N, S, S), brightness; S at least 9.

    Returns:
        (N, 8): 64 bits, packed, as Faiss's binary indexes take them.

    Source: Zauner 2010, "Implementation and benchmarking of perceptual image hash functions", sec. 3.2.1.
    """
    if not len(thumbnails):
        return np.empty((0, _FREQUENCIES), np.uint8)
    blocks = [thumbnails[start : start + _BLOCK] for start in range(0, len(thumbnails), _BLOCK)]
    return np.concatenate([np.packbits(_bits(block), axis=1) for block in blocks])


def _bits(thumbnails: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(N, 64)."""
    # Less the mean, which no frequency here sees: then a blank image has zeros, and not what rounding leaves.
    pixels = thumbnails.astype(np.float64)
    pixels -= pixels.mean((1, 2), keepdims=True)
    basis = _dct_basis(thumbnails.shape[-1])
    values = (basis @ pixels @ basis.T).reshape(len(pixels), -1)
    bits: NDArray[np.bool_] = values > np.median(values, axis=1, keepdims=True)
    return bits


@cache
def _dct_basis(side: int) -> NDArray[np.float64]:
    """(8, side): the cosines of the DCT-II's frequencies 1 to 8."""
    frequencies = np.arange(1, _FREQUENCIES + 1)[:, None]
    basis: NDArray[np.float64] = np.cos(np.pi / side * (np.arange(side) + 0.5) * frequencies)
    return basis


def structure_similarity(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> NDArray[np.float32]:
    """How alike the structure of two thumbnails is, whatever their brightness and contrast: 1 for equal ones.

        (cov(x, y) + C3) / (std(x) std(y) + C3), C3 = (0.03 * 255)^2 / 2

    That is the correlation of their pixels, held near 1 where both are as good as blank.

    Args:
        first: (M, S, S).
        second: (M, S, S).

    Returns:
        (M,), in [-1, 1].

    Source: Wang, Bovik, Sheikh, Simoncelli 2004, "Image quality assessment: from error visibility to
    structural similarity", eq. 10, over the whole thumbnail.
    """
    x, y = (each.reshape(len(each), -1).astype(np.float32) for each in (first, second))
    x -= x.mean(1, keepdims=True)
    y -= y.mean(1, keepdims=True)
    size = x.shape[1]
    covariance = np.einsum("ms,ms->m", x, y) / size
    deviations = np.sqrt(np.einsum("ms,ms->m", x, x) * np.einsum("ms,ms->m", y, y)) / size
    similarity: NDArray[np.float32] = (covariance + _GREY_LEVELS_SQUARED) / (
        deviations + _GREY_LEVELS_SQUARED
    )
    return similarity.astype(np.float32)
