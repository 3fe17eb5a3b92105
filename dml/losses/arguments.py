"""What the arguments of a constructor may be: stated in their annotations, checked alike everywhere."""

import functools
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The finite numbers that an argument may be, in the words of pydantic's `Field`.

    Example:
        >>> str(Range(gt=0, le=4))
        '(0, 4]'
    """

    gt: float | None = None
    ge: float | None = None
    lt: float | None = None
    le: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.gt is None or value > self.gt)
            and (self.ge is None or value >= self.ge)
            and (self.lt is None or value < self.lt)
            and (self.le is None or value <= self.le)
        )

    def __str__(self) -> str:
        low = f"({self.gt:g}" if self.gt is not None else f"[{self.ge:g}" if self.ge is not None else "(-inf"
        high = f"{self.lt:g})" if self.lt is not None else f"{self.le:g}]" if self.le is not None else "inf)"
        return f"{low}, {high}"


PositiveFloat = Annotated[float, Range(gt=0)]
NonNegativeFloat = Annotated[float, Range(ge=0)]
PositiveInt = Annotated[int, Range(ge=1, lt=2**63)]
NonNegativeInt = Annotated[int, Range(ge=0, lt=2**63)]
Seed = Annotated[int, Range(ge=-(2**63), lt=2**64)]
"""As torch's own seeds."""


def check_arguments(cls: type[T]) -> type[T]:
    """Have a class's constructor refuse, by ValueError, what the annotations of its arguments do not allow.

    Looked at are numbers, which must be finite, with or without a `Range`; bool; Literal; sequences, unions
    and functions of these. Other annotations allow everything.

    Example:
        >>> @check_arguments
        ... @dataclass
        ... class Hinge:
        ...     margin: Annotated[float, Range(gt=0, le=4)] = 0.2
        >>> Hinge(5)
        Traceback (most recent call last):
        ValueError: margin must be a number in (0, 4]; got 5. Leave it out for 0.2.
    """
    make: Callable[..., None] = cls.__init__
    signature = inspect.signature(make)

    @functools.wraps(make)
    def checked(*arguments: Any, **options: Any) -> None:
        given = signature.bind(*arguments, **options).arguments
        for name, parameter in signature.parameters.items():
            if name in given and not _allows(parameter.annotation, given[name]):
                default = parameter.default
                do = "Pass one." if default is parameter.empty else f"Leave it out for {default!r}."
                raise ValueError(
                    f"{name} must be {_in_words(parameter.annotation)}; got {given[name]!r}. {do}"
                )
        make(*arguments, **options)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


def _allows(annotation: Any, value: Any) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        allowed, *ranges = arguments
        return _allows(allowed, value) and all(value in each for each in ranges if isinstance(each, Range))
    if origin in (Union, UnionType):
        return any(_allows(each, value) for each in arguments)
    if origin is Literal:
        return any(type(value) is type(each) and value == each for each in arguments)
    if origin in (Sequence, tuple):
        is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
        return is_sequence and all(_allows(arguments[0], each) for each in value)
    if origin is Callable:
        return callable(value)
    if annotation is bool:
        return isinstance(value, bool)
    if annotation is int:
        return not isinstance(value, bool) and isinstance(value, Integral)
    if annotation is float:
        return not isinstance(value, bool) and isinstance(value, Real) and _is_finite(value)
    return value is None if annotation in (None, NoneType) else True


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond what a float can be
        return False


def _in_words(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        ranges = [f" in {each}" for each in arguments[1:] if isinstance(each, Range)]
        return _in_words(arguments[0]) + "".join(ranges)
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Sequence, tuple):
        return f"a sequence, each element {_in_words(arguments[0])}"
    if origin is Callable:
        return "a function"
    words = {bool: "True or False", int: "an integer", float: "a number", NoneType: "None"}
    return words.get(annotation, "something else")
