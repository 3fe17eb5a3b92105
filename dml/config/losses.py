"""Configuration of every loss by kind, and of the memory, derived from their constructors."""

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

_SET_BY_TRAINING = {"loss", "num_classes", "dim", "seed", "normalize"}


class _ConstructorPart(Part):
    """The settings of a constructor, validated like its arguments."""

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
        """Whether the loss has a proxy per class, instead of comparing the images of a batch."""
        return "ProxyLoss" in self.signature.bases

    @property
    def is_classification(self) -> bool:
        """Whether the loss is a cross-entropy over classes, such as softmax and ArcFace."""
        return "ClassSoftmax" in self.signature.bases

    @property
    def within_batch(self) -> bool:
        """Whether all its pairs must be within the batch, so that it cannot use a memory."""
        mines_n_pairs = getattr(self, "mining", None) == "n_pair"
        return mines_n_pairs or bool(self.signature.constants.get("within_batch"))

    @model_validator(mode="before")
    @classmethod
    def _refuse_mining_without_miner(cls, values: Any) -> Any:
        if isinstance(values, dict) and "mining" in values and "mining" not in cls.model_fields:
            kinds = [kind for kind, part in loss_kinds().items() if "mining" in part.model_fields]
            raise ValueError(
                f"The {values.get('kind')} loss weighs all pairs or proxies itself, so none are mined; got "
                f"mining {values['mining']!r}. Leave it out, or take {', '.join(kinds)}."
            )
        return values


def _fields(signature: Signature) -> dict[str, Any]:
    """The fields of a section, as `pydantic.create_model` takes them."""
    arguments = {
        name: argument for name, argument in signature.arguments.items() if name not in _SET_BY_TRAINING
    }
    num_classes = signature.arguments.get("num_classes")
    if num_classes is not None and num_classes.default is None:
        description = f"whether num_classes is the dataset's: {num_classes.description}"
        arguments["per_class"] = Argument(bool, False, description)
    defaults = signature.constants.get("unit_length_defaults", {})  # an encoder's embeddings have length 1
    return {
        name: _field(argument.annotation, defaults.get(name, argument.default), argument.description)
        for name, argument in arguments.items()
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
    """The ranges in an annotation as bounds that pydantic checks and a schema shows."""
    bounds: dict[str, Any] = {}
    for choice in (annotation, *get_args(annotation)):
        for limits in getattr(choice, "__metadata__", ()):
            if isinstance(limits, Range):
                for name, loosest in (("gt", min), ("ge", min), ("lt", max), ("le", max)):
                    bound = getattr(limits, name)
                    if _is_exact(bound):
                        bounds[name] = loosest(bound, bounds.get(name, bound))
    return bounds


def _is_exact(bound: int | float | str | None) -> bool:
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
    globals()[name] = part  # so that pickle can look it up
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
        """For type checkers; the class is created below."""

        size: int
        start_after: int
        weight: float

else:
    Mining = read_mining()
    LossConfig = Annotated[reduce(or_, _KINDS.values()), Field(discriminator="kind")]
    MemoryConfig = _part(_SIGNATURES["cross_batch_memory"], _ConstructorPart)


def loss_kinds() -> dict[str, type[LossPart]]:
    """The configuration class of every loss, by kind."""
    return dict(_KINDS)


def loss_config(kind: str, **settings: Any) -> LossPart:
    """A loss with some of its settings replaced; raises InvalidSetting for an unknown kind."""
    return _kind(kind).model_validate({"kind": kind, **settings})


def takes_mining(kind: str) -> bool:
    """Whether a loss takes a miner; raises InvalidSetting for an unknown loss."""
    return "mining" in _kind(kind).model_fields


def _kind(kind: str) -> type[LossPart]:
    if kind not in _KINDS:
        raise InvalidSetting(
            f"A loss must be one of {', '.join(_KINDS)}; got {kind!r}.{did_you_mean(kind, _KINDS)}"
        )
    return _KINDS[kind]
