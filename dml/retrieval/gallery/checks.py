"""Checks of what is enrolled: vectors, ids and attributes in, the same of the right types or an error out."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dml.errors import InvalidData, InvalidSetting, did_you_mean
from dml.labels import require_name, require_text
from dml.names import MAX_ID_LENGTH
from dml.refs import AttributeType, IndexRef

_LENGTH_TOLERANCE = 1e-3
_ID_DIGITS = 12
_MAX_VALUE_BYTES = 1 << 16
"""The longest value of an attribute."""
_PYTHON_TYPES: dict[AttributeType, tuple[type, ...]] = {
    "string": (str,),
    "int64": (int,),
    "double": (float, int),
    "bool": (bool,),
}


def checked_vectors(vectors: NDArray[np.float32], ref: IndexRef) -> NDArray[np.float32]:
    """(M, D) of unit length by the index's embedder; raises InvalidData."""
    try:
        checked = np.ascontiguousarray(vectors, np.float32)
    except (TypeError, ValueError) as error:
        raise InvalidData(f"vectors must be (M, {ref.embeddings.dim}) float32; got {error}.") from error
    if checked.ndim != 2 or checked.shape[1] != ref.embeddings.dim or not len(checked):
        raise InvalidData(
            f"vectors must be (M, {ref.embeddings.dim}) float32 by {ref.embeddings.embedder}; got "
            f"{checked.shape}."
        )
    lengths = np.linalg.norm(checked, axis=1)
    if not (np.abs(lengths - 1) <= _LENGTH_TOLERANCE).all():
        raise InvalidData(
            f"vectors must have length 1; got lengths {lengths.min()} to {lengths.max()}. Divide each by its "
            "length."
        )
    return checked


def require_unit_length(vectors: NDArray[np.float32], names: Sequence[str]) -> None:
    """Raise InvalidData for what a model made of images: one that is no number would be in every comparison.

    Args:
        vectors: (M, D) embeddings.
        names: of the M images, for the message.
    """
    wrong = ~(np.abs(np.linalg.norm(vectors, axis=1) - 1) <= _LENGTH_TOLERANCE)
    if wrong.any():
        raise InvalidData(
            f"The model must give an enrolled image an embedding of unit length; it gives {int(wrong.sum())} "
            f"of {len(vectors)} NaN, infinite or zero numbers, the first {names[int(wrong.argmax())]}. Leave "
            "it out, or index by another model."
        )


def checked_ids(ids: Sequence[str] | None, identity: str, digests: Sequence[str]) -> list[str]:
    """Of M items with these contents; None: the identity and the content name them. Raises InvalidSetting."""
    if ids is None:
        names = [f"{identity}/{digest[:_ID_DIGITS]}" for digest in digests]
        if len(identity) + 1 + _ID_DIGITS > MAX_ID_LENGTH:
            raise InvalidSetting(
                f"An identity must be at most {MAX_ID_LENGTH - 1 - _ID_DIGITS} characters, to which ids add "
                f"{1 + _ID_DIGITS}; got {len(identity)}. Shorten it, or give ids."
            )
    elif isinstance(ids, str) or len(ids) != len(digests):
        raise InvalidSetting(f"ids must be {len(digests)}, one for each image or vector; got {ids!r}.")
    else:
        names = list(ids)
    for name in names:
        require_name("An id", name)
    twice = next((name for name, number in Counter(names).items() if number > 1), None)
    if twice is not None:
        raise InvalidSetting(f"ids must be different, as their images; got {twice!r} twice.")
    return names


def checked_attributes(attributes: Mapping[str, Any], ref: IndexRef) -> dict[str, Any]:
    """Values of the index's columns, or None; raises InvalidSetting."""
    known = ref.embeddings.items.attributes
    checked = {}
    if not isinstance(attributes, Mapping):
        raise InvalidSetting(f"attributes must be names with values; got {type(attributes).__name__}.")
    for name, value in attributes.items():
        if name not in known:
            raise InvalidSetting(
                f"attributes must be of the index's, {list(known)}; got {name!r}."
                f"{did_you_mean(str(name), known)}"
            )
        kind = known[name]
        is_right = isinstance(value, _PYTHON_TYPES[kind]) and (kind == "bool" or not isinstance(value, bool))
        if kind == "int64" and is_right:
            is_right = -(2**63) <= value < 2**63
        wanted: str = kind
        if kind == "double" and is_right:
            is_right, wanted = bool(np.isfinite(value)), "a finite double"
        if value is not None and not is_right:
            raise InvalidSetting(
                f"Attribute {name!r} must be {wanted} or missing; got {type(value).__name__} {value!r}."
            )
        if isinstance(value, str):
            require_text(f"Attribute {name!r}", value, max_bytes=_MAX_VALUE_BYTES, or_empty=True)
        checked[name] = float(value) if kind == "double" and value is not None else value
    return checked
