"""Configuration of ingest, splits, preprocessing, augmentation and samplers."""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from dml.config.part import Part, parse
from dml.names import SourceLayout, check_name

Name = Annotated[str, AfterValidator(check_name), Field(json_schema_extra={"pattern": "^[a-z][a-z0-9._-]*$"})]
"""A validated name."""
MAX_PIXELS = 64_000_000
"""Limit of any decoded image, including queries: 8000 x 8000, about 300 MB in memory."""


class OfficialSplit(Part):
    """The split of the source: the class halves of CUB, CARS and SOP, or a manifest's `split` column."""

    kind: Literal["official"] = "official"

    def __str__(self) -> str:
        """The form that `--split` takes."""
        return self.kind


class ClassSplit(Part):
    """A fraction of the classes is held out: those whose labels have the smallest hashes."""

    kind: Literal["classes"] = "classes"
    test_fraction: float = Field(0.5, ge=0, le=1, description="fraction of the classes held out for test")

    def __str__(self) -> str:
        return f"{self.kind}:{self.test_fraction:g}"


class AttributeSplit(Part):
    """Groups of classes are held out by the value of an attribute; `label` is the class itself."""

    kind: Literal["attribute"] = "attribute"
    name: str = Field(description="attribute with one value per class, or `label`")
    test_values: Annotated[int, Field(strict=True)] | tuple[str, ...] = Field(
        description="the values; or their number, taken from the end of the sorted values"
    )

    def __str__(self) -> str:
        values = self.test_values if isinstance(self.test_values, int) else ",".join(self.test_values)
        return f"{self.name}:{values}"


class NoSplit(Part):
    """Every class is for training; evaluate on another dataset, `dml train NAME --test OTHER`."""

    kind: Literal["none"] = "none"

    def __str__(self) -> str:
        return self.kind


SplitConfig = Annotated[OfficialSplit | ClassSplit | AttributeSplit | NoSplit, Field(discriminator="kind")]

# A number with another spelling, such as 007, is a value.
_COUNT = re.compile(r"0|[1-9][0-9]{0,18}")


def _split_tree(value: Any) -> Any:
    """The tree of a split given as text: `classes:0.3`, `label:a,b`, `none`."""
    if not isinstance(value, str):
        return value
    kind, colon, text = value.partition(":")
    if kind in ("official", "none") and not colon:
        return {"kind": kind}
    if kind == "classes":
        return {"kind": "classes", **({"test_fraction": text} if colon else {})}
    if colon and text and kind:
        values = int(text) if _COUNT.fullmatch(text) else tuple(text.split(","))
        return {"kind": "attribute", "name": kind, "test_values": values}
    raise ValueError(
        "it must be official, none, classes:FRACTION, ATTRIBUTE:COUNT or ATTRIBUTE:VALUE,VALUE; got "
        f"{value!r}."
    )


class IngestConfig(Part):
    """Conversion of a source of labelled images to a dataset version."""

    name: Name = Field(description="the dataset's name in the store")
    source: str = Field(description="folder, zip, manifest file, or `glyphs:` for drawn characters")
    layout: SourceLayout = "auto"
    split: Annotated[SplitConfig | None, BeforeValidator(_split_tree)] = Field(
        None,
        description="None: the split of the former version of this name, else the layout's usual split",
    )
    max_pixels: int = Field(MAX_PIXELS, gt=0, le=MAX_PIXELS, description="larger images go to quarantine")
    max_bytes: int = Field(64 << 20, gt=0, lt=1 << 31, description="larger files go to quarantine")
    allowed_prefixes: tuple[str, ...] = Field(
        (),
        description="further locations of images besides the source's folder: /folder, s3:// or https://",
    )
    timeout_s: float = Field(30.0, gt=0, description="for one image from the web, including all retries")
    retries: int = Field(3, ge=0, description="retries if a web server is busy or closes the connection")
    quarantine_contradictions: bool = Field(
        False, description="quarantine images whose bytes occur under several labels"
    )
    max_quarantined: float = Field(
        0.05, ge=0, le=1, description="the ingest fails if a larger fraction of rows is quarantined; 1: never"
    )
    rows_per_fragment: int = Field(1024, gt=0, description="maximum rows of one Parquet file")
    rows_per_group: int = Field(128, gt=0, description="rows of one Parquet row group")
    bytes_per_group: int = Field(
        128 << 20,
        gt=0,
        lt=1 << 31,
        description="bytes of images in a Parquet row group; a larger image gets its own group",
    )
    num_workers: int | None = Field(None, ge=1, description="None: one for a small source, else all cores")

    @field_validator("allowed_prefixes")
    @classmethod
    def _absolute(cls, prefixes: tuple[str, ...]) -> tuple[str, ...]:
        for prefix in prefixes:
            web = re.fullmatch(r"https?://[^/?#@\s]+/[^?#\s]*", prefix)
            if not (web or re.match(r"(file://)?/|~/|s3://[^/]", prefix)) or ".." in prefix.split("/"):
                raise ValueError(
                    "each must be an absolute folder, s3://BUCKET/FOLDER/ or https://HOST/FOLDER/, without "
                    f"user and query; got {prefix!r}. For a whole host write https://HOST/."
                )
        return prefixes


class PreprocessingConfig(Part):
    """Deterministic conversion of an image to a tensor; part of the package."""

    color: Literal["RGB", "L"] = "RGB"
    resize: int = Field(256, gt=0, description="shorter side in pixels")
    crop: int = Field(224, gt=0, description="side of the centre crop, in pixels")
    crop_mode: Literal["center", "squash", "border", "none"] = Field(
        "center",
        description="squash: both sides to `resize`, whatever the shape; border: the whole image, with "
        "borders of the mean colour; none: as large as it is",
    )
    height: int | None = Field(
        None, gt=0, description="of the result in pixels; None: `crop`, a square. `crop` is the width then"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos", "box", "hamming"] = "bilinear"
    channel_order: Literal["RGB", "BGR"] = Field("RGB", description="in which the network takes them")
    mean: tuple[float, ...] = Field(
        (0.485, 0.456, 0.406), description="of pixels from 0 to 1, in the network's order of channels"
    )
    std: tuple[float, ...] = (0.229, 0.224, 0.225)

    @property
    def channels(self) -> int:
        return len(self.color)

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the result in pixels."""
        return self.crop, self.height or self.crop

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.crop > self.resize:
            raise ValueError(f"crop must not exceed resize; got {self.crop} and {self.resize}.")
        if self.height is not None and self.crop_mode == "none":
            raise ValueError(
                f"height is of a result that has one size; got {self.height} with crop_mode 'none'. Take "
                "another crop_mode, or leave height out."
            )
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ValueError(
                f"mean and std need one value for each of {self.color!r}'s {self.channels} channels; "
                f"got {len(self.mean)} and {len(self.std)}."
            )
        if min(self.std) <= 0:
            raise ValueError(f"std must be greater than 0, since pixels are divided by it; got {self.std}.")
        return self


class AugmentationConfig(Part):
    """Random changes of training images, in addition to preprocessing; all off by default."""

    random_resized_crop: tuple[float, float] | None = Field(
        None, description="area range of the crop, (0, 1]"
    )
    horizontal_flip: bool = False
    rotation: float = Field(0.0, ge=0, le=180, description="degrees, drawn from [-rotation, rotation]")
    translation: float = Field(0.0, ge=0, le=0.5, description="fraction of the side")
    scaling: tuple[float, float] | None = Field(None, description="range of the zoom factor")

    @model_validator(mode="after")
    def _ranges(self) -> Self:
        for name, maximum in (("random_resized_crop", 1.0), ("scaling", 10.0)):
            bounds = getattr(self, name)
            if bounds is not None and not 0 < bounds[0] <= bounds[1] <= maximum:
                raise ValueError(f"{name} must be a range within (0, {maximum:g}]; got {list(bounds)}.")
        return self


class _ClassBatches(Part):
    """A global batch of P classes with K images each."""

    classes_per_batch: int = Field(28, ge=2, description="P")
    samples_per_class: int = Field(4, ge=1, description="K")

    @property
    def batch_size(self) -> int:
        return self.classes_per_batch * self.samples_per_class


class SamplerConfig(_ClassBatches):
    """P x K: every class once per pass, every image once per round of its class."""

    kind: Literal["pk"] = "pk"


class AttributeSamplerConfig(_ClassBatches):
    """P x K; all classes of a batch share one value of an attribute."""

    kind: Literal["attribute"] = "attribute"
    attribute: str = Field(description="a column of the dataset, such as category or camera")
    small_values: Literal["pool", "refuse"] = Field("pool", description="values of fewer than P classes")
    several_values: Literal["refuse", "majority", "split"] = Field(
        "refuse", description="classes with several values; split: the rows of each value separately"
    )


class SimilarSamplerConfig(_ClassBatches):
    """P x K; a batch holds some seed classes and the classes most similar to them."""

    kind: Literal["similar"] = "similar"
    seeds_per_batch: int = Field(1, ge=1, description="must divide P; more seeds give easier batches")
    refresh_every_steps: int = Field(
        100,
        gt=0,
        description="steps between updates of the class vectors; plain P x K until the first update",
    )
    momentum: float = Field(
        0.5, ge=0, lt=1, description="momentum of the running class means; not used with proxies"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.classes_per_batch % self.seeds_per_batch:
            raise ValueError(
                f"classes_per_batch must be a multiple of seeds_per_batch; got {self.classes_per_batch} and "
                f"{self.seeds_per_batch}."
            )
        return self


class ShuffledSamplerConfig(Part):
    """Every image once per epoch, independent of its class; for proxy losses."""

    kind: Literal["shuffled"] = "shuffled"
    batch_size: int = Field(112, ge=2, description="size of the global batch")


def _sampler_kind(sampler: Any) -> Any:
    """The kind of a sampler; P x K if none is given."""
    if isinstance(sampler, dict):
        return sampler.get("kind", "pk")
    return getattr(sampler, "kind", None)


BatchesConfig = Annotated[
    Annotated[SamplerConfig, Tag("pk")]
    | Annotated[AttributeSamplerConfig, Tag("attribute")]
    | Annotated[SimilarSamplerConfig, Tag("similar")]
    | Annotated[ShuffledSamplerConfig, Tag("shuffled")],
    Discriminator(_sampler_kind),
]


def parse_ingest(tree: Any) -> IngestConfig:
    """The ingest that a JSON tree describes; raises InvalidSetting with every invalid setting."""
    return parse(IngestConfig, tree)
