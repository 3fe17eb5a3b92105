"""The quality gate of enrolment: images and vectors in, or an error that says what is wrong with them.

An image that says little about its identity matches many: it is refused where it would be enrolled, and not
found out by wrong answers later. Limits are of any picture, not of faces alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from dml.errors import InvalidData, InvalidSetting
from dml.preprocessing import decode
from dml.retrieval.filters import Compare
from dml.retrieval.search import Answer, Index

Quality = Literal["off", "standard", "strict"]

_SHARPNESS_SIDE = 256
"""Sharpness depends on the size, so a larger image is measured at this length of its longer side."""
_SAME_PICTURE = 0.95
"""Of an identity without other images: cosine from which another's image is taken for the same."""


@dataclass(frozen=True)
class QualityLimits:
    """What an image must satisfy.

    Args:
        side: pixels of the shorter side, at least.
        sharpness: variance of the Laplacian of the grey values, 0 to 255, at least.
        darkest: mean of the grey values, at least.
        brightest: and at most.
        norm: length of its embedding before that is divided by it, at least; 0: any but 0.
    """

    side: int
    sharpness: float
    darkest: float
    brightest: float
    norm: float = 0.0


LIMITS: dict[Quality, QualityLimits] = {
    "standard": QualityLimits(side=32, sharpness=20, darkest=15, brightest=252),
    "strict": QualityLimits(side=64, sharpness=60, darkest=30, brightest=245),
}


@dataclass(frozen=True)
class ImageQuality:
    """What is measured of an image."""

    side: int
    """Pixels of the shorter side."""
    sharpness: float
    """Variance of the Laplacian of the grey values, 0 to 255."""
    brightness: float
    """Mean of the grey values, 0 to 255."""


def measure(image: bytes) -> ImageQuality:
    """Size, sharpness and brightness of an image file.

    Raises:
        UnreadableImage: it is none.

    Source: Pech-Pacheco et al. 2000, variance of the Laplacian as a measure of focus.
    """
    picture = decode(image, "L")
    brightness = float(np.asarray(picture).mean())
    side = min(picture.size)
    picture.thumbnail((_SHARPNESS_SIDE, _SHARPNESS_SIDE))
    return ImageQuality(side, _laplacian_variance(np.asarray(picture, np.float32)), brightness)


def check_quality(
    quality: Quality,
    images: Sequence[bytes],
    norms: NDArray[np.float32] | None = None,
    *,
    limits: QualityLimits | None = None,
) -> None:
    """Refuse images that are not good enough to be enrolled.

    Args:
        quality: "off" takes every image that can be read; "standard" and "strict" have limits.
        images: M files' bytes.
        norms: (M,) lengths of their embeddings before these are divided by them; None: not known.
        limits: instead of those of the level.

    Raises:
        InvalidSetting: no such level.
        InvalidData: an image is too small, blurred, dark or bright, or its embedding too short.
    """
    if quality == "off":
        return
    if quality not in LIMITS:
        raise InvalidSetting(f"quality must be off, standard or strict; got {quality!r}.")
    limits = limits or LIMITS[quality]
    for number, image in enumerate(images):
        which = "The image" if len(images) == 1 else f"Image {number + 1}"
        measured = measure(image)
        must = _missed(measured, limits)
        if must is None and norms is not None and not norms[number] > limits.norm:
            must = f"have an embedding longer than {limits.norm:g}; got {norms[number]:.3g}"
        if must is not None:
            raise InvalidData(f"{which} must {must}. Enrol a better one, or with quality off.")


def check_duplicates(index: Index, vectors: NDArray[np.float32], identity: str) -> None:
    """Refuse images that resemble another identity more than their own, naming that one.

    An image is compared with those of the identity that are enrolled and those that are enrolled with it. Of
    an identity's only image another's must be nearly the same picture.

    Args:
        index: what is enrolled.
        vectors: (M, D) unit length, of the new images.
        identity: whose they are to be.

    Raises:
        InvalidData: the best match outside the identity beats the best inside.
    """
    inside, outside = (_best(index, vectors, operator, identity) for operator in ("=", "!="))
    together = vectors @ vectors.T
    np.fill_diagonal(together, -1)
    for number, (own, other) in enumerate(zip(inside, outside, strict=True)):
        others = [*together[number], *([] if own is None else [own.similarity])]
        limit = max(others) if len(others) > 1 else _SAME_PICTURE
        if other is not None and other.similarity > limit:
            which = "The image" if len(vectors) == 1 else f"Image {number + 1}"
            whose = other.id if other.label is None else other.label
            raise InvalidData(
                f"{which} must resemble {identity!r} more than anybody else; it resembles {whose!r} "
                f"(item {other.id!r}), {other.similarity:.3f}, where the own reach {limit:.3f}. Enrol it as "
                f"{whose!r}, forget the duplicate, or enrol with quality standard."
            )


def _missed(measured: ImageQuality, limits: QualityLimits) -> str | None:
    if measured.side < limits.side:
        return f"have {limits.side} pixels on its shorter side; got {measured.side}"
    if measured.brightness < limits.darkest:
        return f"be brighter than {limits.darkest:g} of 255 in the mean; got {measured.brightness:.0f}"
    if measured.brightness > limits.brightest:
        return f"be darker than {limits.brightest:g} of 255 in the mean; got {measured.brightness:.0f}"
    if measured.sharpness < limits.sharpness:
        return (
            f"be sharp, the variance of its Laplacian {limits.sharpness:g} or more; got "
            f"{measured.sharpness:.1f}"
        )
    return None


def _laplacian_variance(grey: NDArray[np.float32]) -> float:
    if min(grey.shape) < 3:
        return 0.0
    inner = grey[1:-1, 1:-1]
    around = grey[:-2, 1:-1] + grey[2:, 1:-1] + grey[1:-1, :-2] + grey[1:-1, 2:]
    return float((around - 4 * inner).var())


def _best(
    index: Index, vectors: NDArray[np.float32], operator: Literal["=", "!="], identity: str
) -> list[Answer | None]:
    """For each vector the most similar item of the identity, or of any other; None: there is none."""
    if "label" not in index.columns:
        return [None] * len(vectors)
    found = index.search(
        vectors,
        1,
        embedder=index.ref.embeddings.embedder.fingerprint,
        where=Compare(column="label", operator=operator, value=identity),
        refuse_absent=False,
    )
    return [answers[0] if answers else None for answers in found.answers]
