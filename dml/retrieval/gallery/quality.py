"""The quality gate of enrolment: images and vectors in, or an error that says what is wrong with them.

An image that says little about its identity matches many: it is refused where it would be enrolled, and not
found out by wrong answers later. Limits are of what is embedded: the face, where the model detects faces,
else the picture.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dml.errors import InvalidData, InvalidSetting
from dml.faces import Detector, main_region
from dml.preprocessing import decode
from dml.retrieval.answer import Answer
from dml.retrieval.filters import Compare
from dml.retrieval.search import Index

Quality = Literal["off", "standard", "strict"]

_SHARPNESS_SIDE = 256
"""Sharpness depends on the size, so a larger image is measured at this length of its longer side."""
_BETTER = "Enrol a better one, or with quality off."
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
    """Pixels of the shorter side; of a face those in the picture, not of its aligned crop."""
    sharpness: float
    """Variance of the Laplacian of the grey values, 0 to 255."""
    brightness: float
    """Mean of the grey values, 0 to 255."""


def measure(image: bytes, detector: Detector | None = None) -> ImageQuality:
    """Size, sharpness and brightness of an image file, or of the crop of its main face.

    Raises:
        UnreadableImage: it is none.
        NoFace: there is a detector, which finds nothing in it.

    Source: Pech-Pacheco et al. 2000, variance of the Laplacian as a measure of focus.
    """
    if detector is None:
        picture = decode(image, "L")
        side = min(picture.size)
    else:
        region = main_region(detector, np.asarray(decode(image, "RGB")))
        picture = Image.fromarray(region.crop).convert("L")
        side = int(min(region.box[2:]))
    brightness = float(np.asarray(picture).mean())
    picture.thumbnail((_SHARPNESS_SIDE, _SHARPNESS_SIDE))
    return ImageQuality(side, _laplacian_variance(np.asarray(picture, np.float32)), brightness)


def check_quality(
    quality: Quality,
    images: Sequence[bytes],
    detector: Detector | None = None,
    *,
    limits: QualityLimits | None = None,
) -> None:
    """Refuse images that are not good enough to be enrolled.

    Args:
        quality: "off" takes every image that can be read; "standard" and "strict" have limits.
        images: M files' bytes.
        detector: of the model that embeds them; then their faces are measured.
        limits: instead of those of the level.

    Raises:
        InvalidSetting: no such level.
        InvalidData: an image is too small, blurred, dark or bright; NoFace: its detector finds no face.
    """
    if quality == "off":
        return
    if quality not in LIMITS:
        raise InvalidSetting(f"quality must be off, standard or strict; got {quality!r}.")
    limits = limits or LIMITS[quality]
    for number, image in enumerate(images):
        must = _missed(measure(image, detector), limits)
        if must is not None:
            which = _named(number, len(images))
            what = which if detector is None else f"The face of {which[0].lower()}{which[1:]}"
            raise InvalidData(f"{what} must {must}. {_BETTER}")


def check_norms(quality: Quality, norms: NDArray[np.float32], *, limits: QualityLimits | None = None) -> None:
    """Refuse images with short embeddings.

    Args:
        quality: a level.
        norms: (M,) lengths of their embeddings before these are divided by them.
        limits: instead of those of the level.

    Raises:
        InvalidData: one is too short.
    """
    if quality == "off":
        return
    limits = limits or LIMITS[quality]
    for number, norm in enumerate(norms):
        if not norm > limits.norm:
            raise InvalidData(
                f"{_named(number, len(norms))} must have an embedding longer than {limits.norm:g}; got "
                f"{norm:.3g}. {_BETTER}"
            )


class DuplicateCheck:
    """Calls `check_duplicates` for the images of an enrolment, once for each state of the gallery.

    It is called when they are embedded, and again in their transaction where anything was written since.

    Args:
        vectors: (M, D) unit length, of the new images.
        identity: whose they are to be.
    """

    def __init__(self, vectors: NDArray[np.float32], identity: str) -> None:
        self._vectors, self._identity = vectors, identity
        self._passed: Index | None = None

    def __call__(self, index: Index) -> None:
        """Compare with what is enrolled; raises InvalidData where others are more similar."""
        if index is not self._passed:
            check_duplicates(index, self._vectors, self._identity)
            self._passed = index


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
            which = _named(number, len(vectors))
            whose = other.id if other.label is None else other.label
            raise InvalidData(
                f"{which} must resemble {identity!r} more than anybody else; it resembles {whose!r} "
                f"(item {other.id!r}), {other.similarity:.3f}, where the own reach {limit:.3f}. Enrol it as "
                f"{whose!r}, forget the duplicate, or enrol with quality standard."
            )


def _named(number: int, count: int) -> str:
    """An image of an enrolment, for a message."""
    return "The image" if count == 1 else f"Image {number + 1}"


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
