"""Every loss by its kind with its own settings, and the memory around it, from their constructors."""

from collections.abc import Sequence
from functools import reduce
from operator import or_
from types import UnionType
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import Field, create_model, model_validator

from dml.arguments import Range, check_argument
from dml.config.part import Part
from dml.config.signatures import Argument, Signature, read_mining, read_signatures
from dml.errors import InvalidSetting, did_you_mean

_SET_BY_THE_RUN = {"loss", "num_classes", "dim", "seed", "normalize"}


class _ConstructorPart(Part):
    """The settings of a constructor, checked as it checks them."""

    signature: ClassVar[Signature]

    @model_validator(mode="after")
    def _as_the_constructor(self) -> Self:
        for name, argument in self.signature.arguments.items():
            if name in type(self).model_fields:
                values = {other: getattr(self, other) for other in type(self).model_fields}
                check_argument(name, argument.annotation, values[name], values, argument.default)
        return self


class LossPart(_ConstructorPart):
    """The settings of a loss."""

    kind: str

    @property
    def has_proxies(self) -> bool:
        """Whether it holds vectors of the classes, instead of comparing the images of a batch."""
        return "ProxyLoss" in self.signature.bases

    @property
    def within_batch(self) -> bool:
        """Whether its pairs lie within the batch, so that no memory can be around it."""
        is_mined_so = getattr(self, "mining", None) == "n_pair"
        return is_mined_so or bool(self.signature.constants.get("within_batch"))

    @model_validator(mode="before")
    @classmethod
    def _mining_where_there_is_some(cls, values: Any) -> Any:
        if isinstance(values, dict) and "mining" in values and "mining" not in cls.model_fields:
            takers = [kind for kind, part in loss_kinds().items() if "mining" in part.model_fields]
            raise ValueError(
                f"The {values.get('kind')} loss weighs all pairs or proxies itself, so none are mined; got "
                f"mining {values['mining']!r}. Leave it out, or take {', '.join(takers)}."
            )
        return values


def _fields(signature: Signature) -> dict[str, Any]:
    """The fields of a section, as pydantic makes models of them."""
    arguments = {name: each for name, each in signature.arguments.items() if name not in _SET_BY_THE_RUN}
    num_classes = signature.arguments.get("num_classes")
    if num_classes is not None and num_classes.default is None:
        description = f"whether num_classes is the dataset's: {num_classes.description}"
        arguments["per_class"] = Argument(bool, False, description)
    defaults = signature.constants.get("unit_length_defaults", {})  # an encoder's embeddings have length 1
    return {
        name: _field(each.annotation, defaults.get(name, each.default), each.description)
        for name, each in arguments.items()
    }


def _field(annotation: Any, default: Any, description: str) -> tuple[Any, Any]:
    bounds = _bounds(annotation)
    if get_origin(annotation) is Sequence:
        (element,) = get_args(annotation)
        elements = _annotated(_without_ranges(element), Field(**_bounds(element)))
        return tuple.__class_getitem__((elements, ...)), Field(default, description=description, min_length=1)
    return _without_ranges(annotation), Field(default, description=description, **bounds)


def _annotated(annotation: Any, field: Any) -> Any:
    return Annotated[annotation, field]


def _bounds(annotation: Any) -> dict[str, Any]:
    """What pydantic can check of the ranges in an annotation, and a schema can say."""
    found: dict[str, Any] = {}
    for each in (annotation, *get_args(annotation)):
        for limits in getattr(each, "__metadata__", ()):
            if isinstance(limits, Range):
                for name, loosest in (("gt", min), ("ge", min), ("lt", max), ("le", max)):
                    bound = getattr(limits, name)
                    if _is_telling(bound):
                        found[name] = loosest(bound, found.get(name, bound))
    return found


def _is_telling(bound: int | float | str | None) -> bool:
    return isinstance(bound, int | float) and abs(bound) < 2**53


def _without_ranges(annotation: Any) -> Any:
    if get_origin(annotation) is Annotated:
        return get_args(annotation)[0]
    if get_origin(annotation) in (Union, UnionType):
        return reduce(or_, map(_without_ranges, get_args(annotation)))
    return annotation


def _part(signature: Signature, base: type[_ConstructorPart], **fields: Any) -> Any:
    name = f"{signature.name}Config"
    fields |= _fields(signature)
    part = create_model(name, __base__=base, __module__=__name__, __doc__=signature.summary, **fields)
    part.signature = signature
    globals()[name] = part  # where pickle looks for it
    return part


_SIGNATURES = read_signatures()
_KINDS: dict[str, type[LossPart]] = {
    kind: _part(signature, LossPart, kind=(Literal[kind], kind))
    for kind, signature in _SIGNATURES.items()
    if "EmbeddingLoss" in signature.bases
}

if TYPE_CHECKING:
    Mining = str
    LossConfig = LossPart

    class MemoryConfig(Part):
        """What is made below."""

        size: int
        start_after: int
        weight: float

else:
    Mining = read_mining()
    LossConfig = Annotated[reduce(or_, _KINDS.values()), Field(discriminator="kind")]
    MemoryConfig = _part(_SIGNATURES["cross_batch_memory"], _ConstructorPart)


def loss_kinds() -> dict[str, type[LossPart]]:
    """Every loss by its kind."""
    return dict(_KINDS)


def loss_config(kind: str, **settings: Any) -> LossPart:
    """A loss with some of its settings; raises InvalidSetting for an unknown one."""
    return _kind(kind).model_validate({"kind": kind, **settings})


def takes_mining(kind: str) -> bool:
    """Whether a loss learns from tuples that a miner chooses; raises InvalidSetting for an unknown loss."""
    return "mining" in _kind(kind).model_fields


def _kind(kind: str) -> type[LossPart]:
    if kind not in _KINDS:
        raise InvalidSetting(
            f"A loss must be one of {', '.join(_KINDS)}; got {kind!r}.{did_you_mean(kind, _KINDS)}"
        )
    return _KINDS[kind]
