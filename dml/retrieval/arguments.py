"""Checks of the arguments of searches and identifications: any object in, a value of its type out."""

from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dml.errors import InvalidData, InvalidSetting

_LEAST_SQUARE, _GREATEST_SQUARE = (1 - 1e-3) ** 2, (1 + 1e-3) ** 2  # of the length


def checked_k(k: object, *, at_most: int | None = None, engine: str = "") -> int:
    """A number of answers.

    Args:
        k: what was passed.
        at_most: the most answers that an engine gives; None: any number.
        engine: the name of that engine.

    Raises:
        InvalidSetting: it is no whole number from 1 to `at_most`.
    """
    is_whole = type(k) is int or (isinstance(k, Integral) and not isinstance(k, bool))  # the first is fast
    number = int(k) if is_whole else 0  # type: ignore[call-overload]
    if number < 1 or (at_most is not None and number > at_most):
        allowed = "or more" if at_most is None else f"to {at_most} with {engine}"
        raise InvalidSetting(f"k must be a whole number, 1 {allowed}; got {k!r}.")
    return number


def check_vectors(what: str, vectors: NDArray[np.float32], dim: int, *, do: str = "") -> None:
    """Refuse vectors that are not those of an index or collection.

    Args:
        what: how an error calls them.
        vectors: what was passed.
        dim: of the index.
        do: the remedy for another dimension.

    Raises:
        InvalidData: they are not (N, dim) of real numbers, or not of unit length.
    """
    if not hasattr(vectors, "ndim") or getattr(vectors.dtype, "kind", "f") not in "fiub":  # "f": a tensor
        got = getattr(vectors, "dtype", type(vectors).__name__)
        raise InvalidData(
            f"{what} must be an array ({what[0]}, {dim}) of real numbers; got {got}. "
            "Pass np.asarray(..., np.float32)."
        )
    if vectors.ndim != 2 or vectors.shape[1] != dim:
        raise InvalidData(f"{what} must be ({what[0]}, {dim}); got {vectors.shape}.{do and ' ' + do}")
    if not _are_unit(vectors):
        lengths = np.linalg.norm(vectors, axis=1)
        if num_bad := int((~np.isfinite(lengths)).sum()):
            raise InvalidData(
                f"{what} must be finite and have length 1; {num_bad} of {len(lengths)} have NaN or infinite "
                "numbers. Leave them out."
            )
        raise InvalidData(
            f"{what} must have length 1; got lengths {lengths.min()} to {lengths.max()}. "
            "Divide each by its length."
        )


def _are_unit(vectors: NDArray[np.float32]) -> bool:
    if len(vectors) == 1:  # in 0.4 us instead of the 1.0 of arrays
        vector = vectors.ravel()
        return bool(_LEAST_SQUARE <= vector.dot(vector) <= _GREATEST_SQUARE)
    squares = np.vecdot(vectors, vectors)
    return bool(((squares >= _LEAST_SQUARE) & (squares <= _GREATEST_SQUARE)).all())  # NaN is neither


def checked_error_rate(name: str, value: object, *, usual: float) -> float:
    """A false-positive or false-match rate; raises InvalidSetting where it is no number in (0, 0.5]."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) <= 0.5:
        raise InvalidSetting(f"{name} must be a number in (0, 0.5]; got {value!r}. {usual} is usual.")
    return float(value)


def checked_threshold(value: object, **rates: float | None) -> float | None:
    """A threshold of cosines that was given instead of a calibrated one; None: none was.

    Args:
        value: what was passed.
        rates: the error rate that the calibrated threshold would be for, by its name; None: not given.

    Raises:
        InvalidSetting: it is no number in [-1, 1], or a rate was given too, which nothing would follow.
    """
    if value is None:
        return None
    for name, rate in rates.items():
        if rate is not None:
            raise InvalidSetting(
                f"threshold and {name} each decide alone; got {value!r} and {rate!r}. Leave one out."
            )
    if isinstance(value, bool) or not isinstance(value, Real) or not -1 <= float(value) <= 1:
        raise InvalidSetting(f"threshold must be a cosine, in [-1, 1]; got {value!r}. Pass 0.6, for example.")
    return float(value)


def checked_list(name: str, values: object, example: str) -> list[Any]:
    """The values as a list; raises InvalidSetting for text, a mapping, or what has no values."""
    if isinstance(values, str | bytes | Mapping) or not isinstance(values, Iterable):
        raise InvalidSetting(f"{name} must be a list; got {values!r}. Pass [{example}].")
    return list(values)
