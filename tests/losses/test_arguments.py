"""Every numeric argument of a constructor has a stated range, and is refused outside of it."""

import inspect
import math
import re
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, get_args, get_origin

import numpy as np
import pytest
from torch import nn

from dml import losses
from dml.arguments import Range, check_arguments
from tests.losses.cases import CASES, DIM, NUM_CLASSES

MADE_WITH = {"loss": losses.SupCon(), "num_classes": NUM_CLASSES, "dim": DIM, "mining": "all", "seed": 0}


def constructors() -> dict[str, type]:
    """The losses with their base classes, the miners and the memory."""
    miners = losses.SemiHardMiner, losses.DistanceWeightedMiner, losses.MultiSimilarityMiner
    classes = *losses.LOSSES.values(), *miners, losses.CrossBatchMemory
    return {each.__name__: each for made in classes for each in made.__mro__ if "losses" in each.__module__}


def numeric(annotation: Any) -> bool:
    return annotation in (int, float) or any(numeric(each) for each in get_args(annotation))


def ranges(annotation: Any) -> list[Range]:
    own = [each for each in getattr(annotation, "__metadata__", ()) if isinstance(each, Range)]
    return own + [each for inner in get_args(annotation) for each in ranges(inner)]


def numeric_arguments() -> Iterator[tuple[type, str, Any]]:
    for made in constructors().values():
        for name, parameter in inspect.signature(made).parameters.items():
            if numeric(parameter.annotation):
                yield made, name, parameter.annotation


NUMERIC = [pytest.param(*each, id=f"{each[0].__name__}.{each[1]}") for each in numeric_arguments()]
REFUSED = [math.nan, math.inf, -math.inf, -1e9, 10**400, "0.5", True]


def make(made: type, name: str, value: Any) -> object:
    wanted = {n for n, p in inspect.signature(made).parameters.items() if p.default is p.empty}
    settings = {n: MADE_WITH[n] for n in wanted if n in MADE_WITH}
    return made(**{**settings, name: value})


@pytest.mark.parametrize(("made", "name", "annotation"), NUMERIC)
@pytest.mark.parametrize("value", REFUSED, ids=lambda v: str(v)[:9])
def test_a_number_outside_of_its_range_is_refused_when_the_loss_is_made(made, name, annotation, value):
    is_sequence = any(get_origin(each) is Sequence for each in (annotation, *get_args(annotation)))
    if name == "seed" and value == -1e9:
        value = -(2.0**64)
    with pytest.raises(ValueError, match=rf"^{name} must be .*(number|integer) in [\[(].*; got .*\. [A-Z]"):
        make(made, name, [value] if is_sequence else value)


@pytest.mark.parametrize(("made", "name", "annotation"), NUMERIC)
def test_every_numeric_argument_states_its_range(made, name, annotation):
    assert ranges(annotation)


@pytest.mark.parametrize("name", ["size", "dim", "start_after"])
def test_a_count_must_be_an_integer(name):
    with pytest.raises(ValueError, match=f"{name} must be an integer"):
        make(losses.CrossBatchMemory, name, 2.5)


@pytest.mark.parametrize("value", [np.float32(0.5), np.float64(0.5), np.int64(1)])
def test_numbers_of_numpy_are_numbers(value):
    assert losses.TripletMargin(value).margin == value


def test_every_loss_of_the_cases_is_looked_at():
    assert {name.partition(",")[0] for name in CASES} <= set(constructors())


@check_arguments
class Example(nn.Module):
    def __init__(
        self,
        kind: Literal["a", "b"] = "a",
        *,
        flag: bool = False,
        size: Annotated[int, Range(ge=1, lt=9)] | None = None,
        several: Sequence[Annotated[float, Range(gt=0)]] = (1.0,),
    ) -> None:
        super().__init__()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "c"}, r"kind must be one of a, b; got 'c'\. Leave it out for 'a'\."),
        ({"flag": "no"}, r"flag must be True or False; got 'no'"),
        ({"size": 9}, r"size must be an integer in \[1, 9\) or None; got 9"),
        ({"size": 1.0}, r"size must be an integer"),
        ({"several": (1.0, 0.0)}, r"several must be a sequence of one or more, each a number in \(0, inf\)"),
        ({"several": 1.0}, r"several must be a sequence"),
    ],
    ids=str,
)
def test_the_message_says_what_must_be_what_came_and_what_to_do(settings, message):
    with pytest.raises(ValueError, match=message):
        Example(**settings)


def test_what_the_annotations_allow_is_taken():
    Example("b", flag=True, size=8, several=[0.1, 2])
    with pytest.raises(TypeError, match="color"):
        Example(color="red")


@pytest.mark.parametrize("kind", losses.LOSSES)
def test_a_range_in_a_docstring_is_the_range_that_is_checked(kind):
    loss = losses.LOSSES[kind]
    arguments = inspect.getdoc(loss).partition("Args:\n")[2].partition("\n\n")[0]
    documented = re.findall(r"^    (\w+):[^\n]*?([\[(][\d.]+, [\w.]+[\])])", arguments, re.MULTILINE)
    documented += [
        (name, "(0, inf)") for name in re.findall(r"^    (\w+):[^\n]*> 0", arguments, re.MULTILINE)
    ]
    for name, shown in documented:
        checked = [str(each) for each in ranges(inspect.signature(loss).parameters[name].annotation)]
        assert shown.replace("pi", f"{math.pi:g}") in checked, name
