"""Argument checks shared by all metrics."""

import math
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Literal, TypeGuard, TypeVar

import torch
from torch import Tensor

LENGTH_TOLERANCE = 0.01
"""Allowed deviation of the length of a row from 1; rounding to bfloat16 changes it by up to 0.004."""

_SHOWN_CHARACTERS = 80

Word = TypeVar("Word", bound=str)


def checked_count(name: str, value: object, *, at_least: int | None = 1) -> int:
    """An integer as `int`; raises ValueError for other values, for bool, and if it is too small.

    Args:
        name: of the argument.
        value: what came; a NumPy integer is one too.
        at_least: the smallest allowed; None: any.
    """
    number = int(value) if _is_number(value) and isinstance(value, Integral) else None
    if number is not None and (at_least is None or number >= at_least):
        return number
    limit = "" if at_least is None else f", {at_least} or more"
    raise ValueError(
        f"{name} must be a whole number{limit}; got {_shown(value)}. Pass one, such as {at_least or 1}."
    )


def checked_ranks(name: str, values: object, *, may_be_empty: bool = False) -> tuple[int, ...]:
    """A sequence of K as ints; raises ValueError for a single number, an empty sequence, and a K below 1."""
    ranks = _several(name, values, "one K or more", "1")
    if not ranks and not may_be_empty:
        raise ValueError(f"{name} must contain at least one K; got none. Pass {name}=(1,).")
    return tuple(checked_count(f"Every K of {name}", k) for k in ranks)


def checked_share(name: str, value: object, *, usual: float) -> float:
    """A number in (0, 1), such as a confidence or a rate; raises ValueError for other values."""
    if _is_number(value) and 0 < float(value) < 1:
        return float(value)
    raise ValueError(f"{name} must be in (0, 1); got {_shown(value)}. {usual} is usual.")


def checked_shares(name: str, values: object, *, usual: float) -> tuple[float, ...]:
    """A sequence of numbers in (0, 1); raises ValueError for other values, and if it is empty."""
    shares = _several(name, values, "one or more in (0, 1)", str(usual))
    if not shares:
        raise ValueError(f"{name} must be one or more in (0, 1); got none. Pass ({usual},).")
    return tuple(checked_share(f"Every number of {name}", share, usual=usual) for share in shares)


def _several(name: str, values: object, expected: str, example: str) -> tuple[object, ...]:
    if isinstance(values, str | Mapping | Tensor) or not isinstance(values, Iterable):
        raise ValueError(
            f"{name} must be {expected}; got {_shown(values)}. Pass a tuple: {name}=({example},)."
        )
    return tuple(values)


def checked_number(name: str, value: object) -> float:
    """A finite number; raises ValueError for other values."""
    if _is_number(value) and math.isfinite(value):
        return float(value)
    raise ValueError(f"{name} must be a finite number; got {_shown(value)}. Pass {name}=0.0, for example.")


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise ValueError if the value is not one of the choices."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}; got {_shown(value)}.")


def checked_choices(name: str, values: Sequence[Word], choices: Sequence[str]) -> tuple[Word, ...]:
    """A tuple of choices; raises ValueError if one is invalid."""
    for value in _several(name, values, f"some of {', '.join(choices)}", repr(choices[0])):
        check_choice(f"Each of {name}", value, choices)
    return tuple(values)


def check_vector(name: str, values: object, kind: Literal["int64", "float", "bool", "number"]) -> None:
    """Raise ValueError unless the values are a finite tensor (N,) of this kind.

    Args:
        name: of the argument.
        values: what came.
        kind: "int64": any whole numbers; "float": floats and whole numbers; "number": truth values too.
    """
    if not isinstance(values, Tensor):
        raise ValueError(
            f"{name} must be a torch tensor; got {_type_name(values)}. Pass torch.as_tensor({name})."
        )
    if values.ndim != 1:
        raise ValueError(
            f"{name} must be (N,) {kind}; got {tuple(values.shape)}. Pass one value for each row."
        )
    is_bool = values.dtype == torch.bool
    is_whole = not (is_bool or values.is_floating_point() or values.is_complex())
    allowed = {
        "int64": is_whole,
        "float": is_whole or values.is_floating_point(),
        "bool": is_bool,
        "number": is_whole or is_bool or values.is_floating_point(),
    }
    if values.is_floating_point():
        check_finite(values, name)
    if not allowed[kind]:
        call = {"int64": "long", "bool": "bool"}.get(kind, "double")
        raise ValueError(f"{name} must be (N,) {kind}; got {values.dtype}. Pass {name}.{call}().")


def check_same_length(**columns: Tensor | None) -> None:
    """Raise ValueError for tensors of different length; None is ignored."""
    lengths = {name: len(column) for name, column in columns.items() if column is not None}
    if len(set(lengths.values())) > 1:
        names = list(lengths)
        listed = f"{', '.join(names[:-1])} and {names[-1]}"
        raise ValueError(
            f"{listed} must have the same length; got {', '.join(map(str, lengths.values()))}. Pass one "
            "value for each row."
        )


def check_one_device(**columns: Tensor | None) -> None:
    """Raise ValueError for tensors on different devices; None is ignored."""
    devices = {name: column.device for name, column in columns.items() if column is not None}
    if len(set(devices.values())) > 1:
        listed = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"{', '.join(devices)} must be on one device; got {listed}. Pass all .to(device).")


def check_labelled(embeddings: object, labels: object, **more: object) -> None:
    """Raise ValueError unless these are embeddings (N, D) with labels and other columns (N,) int64.

    Args:
        embeddings: (N, D) float.
        labels: (N,) int64.
        more: name to (N,) int64, or None where there is none.
    """
    if not isinstance(embeddings, Tensor):
        raise ValueError(
            f"embeddings must be a torch tensor; got {_type_name(embeddings)}. Pass "
            "torch.as_tensor(embeddings)."
        )
    if embeddings.ndim != 2 or not embeddings.is_floating_point():
        raise ValueError(
            f"embeddings must be (N, D) floats; got {tuple(embeddings.shape)} of {embeddings.dtype}. Pass "
            "one row for each item."
        )
    columns: dict[str, Tensor | None] = {"embeddings": embeddings}
    for name, column in {"labels": labels, **more}.items():
        if column is not None or name == "labels":
            check_vector(name, column, "int64")
            assert isinstance(column, Tensor)
            columns[name] = column
    check_same_length(**columns)
    check_one_device(**columns)


def check_unit_rows(embeddings: Tensor) -> None:
    """Check that all rows have length 1, so that inner products are cosine similarities.

    Args:
        embeddings: (N, D) float.

    Raises:
        ValueError: a row that is not finite, or one whose length is off by more than `LENGTH_TOLERANCE`.
    """
    dtype = torch.float64 if embeddings.dtype == torch.float64 else torch.float32
    lengths = torch.linalg.vector_norm(embeddings, dim=1, dtype=dtype)
    is_wrong = ~((lengths - 1).abs() <= LENGTH_TOLERANCE)
    if not is_wrong.any():
        return
    check_finite(embeddings, "embeddings")
    row = int(is_wrong.int().argmax())
    raise ValueError(
        f"embeddings must be rows of length 1; got length {float(lengths[row]):.4g} in row {row} and "
        f"{int(is_wrong.sum())} such rows of {len(lengths)}. Pass torch.nn.functional.normalize(embeddings)."
    )


def check_finite(values: Tensor, name: str) -> None:
    """Raise ValueError for infinity or NaN; comparisons with NaN would silently be False."""
    if not values.isfinite().all():
        raise ValueError(f"{name} must be finite; got infinity or NaN. Check the code that computed them.")


def _is_number(value: object) -> TypeGuard[Real]:
    """Whether it is a Python or NumPy number; bool is not."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)}"
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def _type_name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__name__}".removeprefix("builtins.")
