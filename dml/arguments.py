"""What the arguments of a constructor may be: stated in their annotations, checked alike everywhere."""

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The finite numbers that an argument may be, in the words of pydantic's `Field`.

    A bound may be the name of an argument that comes before.

    Example:
        >>> str(Range(gt=0, le=4))
        '(0, 4]'
    """

    gt: int | float | str | None = None
    ge: int | float | str | None = None
    lt: int | float | str | None = None
    le: int | float | str | None = None

    def holds(self, value: float, others: Mapping[str, Any]) -> bool:
        """Whether a value is within, given the other arguments by name."""

        def number(bound: int | float | str | None, without: float) -> float:
            named = others[bound] if isinstance(bound, str) else bound
            return without if named is None else float(named)

        is_above = value > number(self.gt, -math.inf) and value >= number(self.ge, -math.inf)
        return is_above and value < number(self.lt, math.inf) and value <= number(self.le, math.inf)

    def __str__(self) -> str:
        low = f"({_shown(self.gt)}" if self.gt is not None else f"[{_shown(self.ge, '-inf')}"
        high = f"{_shown(self.lt)})" if self.lt is not None else f"{_shown(self.le, 'inf')}]"
        return f"{low}, {high}".replace("[-inf", "(-inf").replace("inf]", "inf)")


@dataclass(frozen=True)
class Unless:
    """Beside a type of a union: not allowed where another argument has this value.

    Example:
        >>> str(Unless("mining", "semi_hard"))
        'unless mining is semi_hard'
    """

    argument: str
    value: Any

    def holds(self, _value: Any, others: Mapping[str, Any]) -> bool:
        """Whether any value is allowed, given the other arguments by name."""
        return bool(others[self.argument] != self.value)

    def __str__(self) -> str:
        return f"unless {self.argument} is {self.value}"


def _shown(bound: int | float | str | None, none: str = "") -> str:
    if isinstance(bound, int) and abs(bound) >= 1 << 53:
        return f"{'-' * (bound < 0)}2**{abs(bound).bit_length() - 1}"
    return none if bound is None else bound if isinstance(bound, str) else f"{bound:g}"


PositiveFloat = Annotated[float, Range(gt=0)]
NonNegativeFloat = Annotated[float, Range(ge=0)]
PositiveInt = Annotated[int, Range(ge=1, lt=2**63)]
NonNegativeInt = Annotated[int, Range(ge=0, lt=2**63)]
Seed = Annotated[int, Range(ge=-(2**63), lt=2**64)]
"""As torch's own seeds."""


def check_arguments(cls: type[T]) -> type[T]:
    """Have a class's constructor refuse, by ValueError, what the annotations of its arguments do not allow.

    Looked at are numbers, which must be finite, with or without a `Range`; bool; Literal; sequences, unions
    and functions of these; each with or without an `Unless`. Other annotations allow everything.

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
        bound = signature.bind(*arguments, **options)
        bound.apply_defaults()
        for name, parameter in signature.parameters.items():
            if parameter.kind is not parameter.VAR_KEYWORD:
                value, default = bound.arguments[name], parameter.default
                check_argument(
                    name,
                    parameter.annotation,
                    value,
                    bound.arguments,
                    ... if default is parameter.empty else default,
                )
        make(*arguments, **options)

    cls.__init__ = checked  # type: ignore[method-assign]
    return cls


def check_argument(
    name: str, annotation: Any, value: Any, others: Mapping[str, Any], default: Any = ...
) -> None:
    """Raise ValueError for a value that an annotation does not allow.

    Args:
        name: of the argument.
        annotation: what `check_arguments` looks at.
        value: what came.
        others: the other arguments by name, which may be its bounds.
        default: what to advise; `...`: it has none.
    """
    if not _allows(annotation, value, others):
        do = "Pass such a value." if default is ... or default == value else f"Leave it out for {default!r}."
        raise ValueError(f"{name} must be {_in_words(annotation)}; got {value!r}. {do}")


def constructor_arguments(cls: type) -> dict[str, inspect.Parameter]:
    """All arguments of a constructor by name: what it takes as `**options` is found in its base classes."""
    arguments: dict[str, inspect.Parameter] = {}
    for name, parameter in inspect.signature(cls).parameters.items():
        if parameter.kind is not parameter.VAR_KEYWORD:
            arguments[name] = parameter
            continue
        (options,) = get_args(parameter.annotation)
        bases = [inspect.signature(base).parameters for base in cls.__mro__[1:] if base is not object]
        for option in options.__annotations__:
            arguments[option] = next(base[option] for base in bases if option in base)
    return arguments


def _allows(annotation: Any, value: Any, others: Mapping[str, Any]) -> bool:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        allowed, *conditions = arguments
        return _allows(allowed, value, others) and all(
            condition.holds(value, others)
            for condition in conditions
            if isinstance(condition, Range | Unless)
        )
    if origin in (Union, UnionType):
        return any(_allows(argument, value, others) for argument in arguments)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in arguments)
    if origin in (Sequence, tuple):
        is_sequence = isinstance(value, Sequence) and not isinstance(value, str)
        return is_sequence and len(value) > 0 and all(_allows(arguments[0], item, others) for item in value)
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
        ranges = [f" in {condition}" for condition in arguments[1:] if isinstance(condition, Range)]
        exceptions = [f" {condition}" for condition in arguments[1:] if isinstance(condition, Unless)]
        return _in_words(arguments[0]) + "".join(ranges + exceptions)
    if origin in (Union, UnionType):
        return " or ".join(map(_in_words, arguments))
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin in (Sequence, tuple):
        return f"a sequence of one or more, each {_in_words(arguments[0])}"
    if origin is Callable:
        return "a function"
    words = {bool: "True or False", int: "an integer", float: "a number", NoneType: "None"}
    return words.get(annotation, "something else")
