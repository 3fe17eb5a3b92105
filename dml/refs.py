"""What the stages hand to each other: tiny, immutable, fingerprinted names of published artefacts.

Tasks pass refs, never tensors or tables. A ref holds its parents' refs, so the lineage of an index, down to
the dataset its model was trained on, is read and not looked up. Refs serialise to JSON (`model_dump_json`).
"""

import math
from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from dml.errors import IncompatibleArtifact
from dml.names import versioned

AttributeType = str
"""One of "string", "int64", "double", "bool": the type of an attribute column."""

Number = Annotated[
    float,
    BeforeValidator(lambda value: math.nan if value is None else value),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "null"}]}),
]
"""A measured number; NaN, which JSON cannot hold, is null there."""


class Fingerprinted(BaseModel):
    """Something whose content decides what it is called."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    fingerprint: str = Field(description="hex SHA-256 of the content, independent of where it is stored")

    @property
    def version(self) -> str:
        """The first twelve digits of the fingerprint: what people read, type and see in folder names."""
        return self.fingerprint[:12]


class Ref(Fingerprinted):
    """Where a published artefact is, and the digest of what it must contain."""

    uri: str = Field(description="absolute local path or s3:// URI of the artefact's folder")


class SplitSize(BaseModel):
    """How much of a dataset one split holds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    classes: int


class ItemsRef(Ref):
    """Ids with attributes and perhaps labels, in Parquet; without images, as of vectors made elsewhere."""

    kind: Literal["items"] = "items"
    name: str
    rows: int
    classes: int = Field(description="number of distinct labels; 0: the items have none")
    attributes: dict[str, AttributeType] = {}
    schema_version: int = Field(description="of its files, see `dml.data.schema`")

    def __str__(self) -> str:
        """As users type it: NAME@VERSION."""
        return versioned(self.name, self.version)


class DatasetRef(ItemsRef):
    """Items with images and splits; every row decodes, train and test share no class."""

    kind: Literal["dataset"] = "dataset"  # type: ignore[assignment]  # tells the two apart in JSON
    splits: dict[str, SplitSize]
    quarantined: int
    order: str = Field("", description="hex SHA-256 of the ids in the order of their positions")


AnyItems = Annotated[DatasetRef | ItemsRef, Field(discriminator="kind")]
"""In JSON `kind` says which."""


def require_dataset(items: ItemsRef, purpose: str) -> DatasetRef:
    """The dataset that items are.

    Args:
        items: of an embeddings table.
        purpose: what needs their images or splits, to begin a sentence with.

    Raises:
        IncompatibleArtifact: they have none.
    """
    if not isinstance(items, DatasetRef):
        raise IncompatibleArtifact(
            f"{purpose} needs images; these embeddings are of {items}, which has none. "
            "Ingest the images as a dataset and embed them."
        )
    return items


class PackageRef(Ref):
    """The model we ship: safetensors weights, encoder config and preprocessing; holds no pickle."""

    kind: Literal["package"] = "package"
    dim: int = Field(gt=0, description="length of one embedding")
    dataset: DatasetRef | None = Field(None, description="what it was trained on; None for an untrained one")
    initial: "PackageRef | None" = Field(None, description="the same encoder before that training")
    source: str = Field("", description="where it comes from if it was not trained here, as timm:resnet50")
    license: str = Field("", description="of weights from elsewhere, as their authors say")

    def __str__(self) -> str:
        return f"package {self.version}"


class ExternalModelRef(Fingerprinted):
    """An embedder that was not trained here, and perhaps does not even run here."""

    kind: Literal["external"] = "external"
    spec: str = Field(description='what it is, such as "timm:resnet50", "onnx:face.onnx", "vectors:clip"')
    dim: int = Field(gt=0, description="length of one embedding")
    preprocessing: str | None = Field(None, description="what an image becomes before it is embedded")
    license: str | None = Field(None, description="text of its license")

    def __str__(self) -> str:
        return self.spec


AnyEmbedder = Annotated[PackageRef | ExternalModelRef, Field(discriminator="kind")]
"""In JSON `kind` says which."""


def require_package(embedder: PackageRef | ExternalModelRef, purpose: str) -> PackageRef:
    """The package that an embedder is.

    Args:
        embedder: of an embeddings table.
        purpose: what needs its weights, to begin a sentence with.

    Raises:
        IncompatibleArtifact: it is a model that is not in the store.
    """
    if not isinstance(embedder, PackageRef):
        raise IncompatibleArtifact(
            f"{purpose} needs the model that made the embeddings; they are of {embedder}, which is not in "
            "the store. Search by vector or by item, or embed the images with a registered model."
        )
    return embedder


class BestStep(BaseModel):
    """What validation on held-out training classes gave at a step."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int = Field(description="steps done when it was measured")
    metric: str
    value: float


class TrainedRef(BaseModel):
    """What a finished training run leaves: its package, and how the training went."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run: str = Field(description="identity of configuration, dataset and code")
    package: PackageRef
    loss: float = Field(description="mean of the last steps")
    images_per_second: float = Field(description="all workers together, over all steps of the last start")
    data_wait: float = Field(description="share of that time spent waiting for images, [0, 1]")
    best: BestStep | None = Field(
        None, description="the step the package holds; None: the last, nothing was held out"
    )


class ModelRef(BaseModel):
    """One version of a registered model, and the package inside it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: int
    alias: str | None = Field(None, description="`champion` where this version passed the gate")
    package: PackageRef
    metrics: dict[str, Number] = {}
    reason: str = Field("", description="why the version was promoted, or was not")
    created: datetime | None = Field(None, description="when it was registered, UTC")

    @property
    def promoted(self) -> bool:
        return self.alias == "champion"

    def __str__(self) -> str:
        """As users type it: NAME/VERSION."""
        return f"{self.name}/{self.version}"


class EmbeddingsRef(Ref):
    """A Parquet table of one embedder's vectors for one set of items: exactly one row per id."""

    embedder: AnyEmbedder
    items: AnyItems
    split: str | None = Field(None, description="only this split's samples; None: all of the dataset")
    parts: tuple[int, int] | None = Field(
        None, description="only these parts of the table, from the first to before the last; None: all"
    )
    dim: int
    rows: int

    @property
    def source(self) -> str:
        """As users name what was embedded: the dataset, or the imported vectors, NAME@VERSION."""
        return (
            str(self.items)
            if isinstance(self.items, DatasetRef)
            else versioned(self.items.name, self.version)
        )


class ChangesRef(Ref):
    """What was enrolled, changed and forgotten in a gallery up to a revision, to be built into an index."""

    revision: int
    enrolled: int = Field(description="items that are not in the embeddings table")
    updated: int = Field(description="items of the table with another label or other attributes")
    removed: int = Field(description="items of the table that are left out")


class ShardRef(Ref):
    """A bundle with some consecutive rows of an index."""

    rows: int
    recall: float = Field(description="recall@10 among its own rows, measured when it was built")


class IndexRef(Ref):
    """A Faiss index of one embeddings table, with ids, labels and attributes beside the vectors."""

    name: str
    embeddings: EmbeddingsRef
    model: str = Field("", description="the registered version NAME/VERSION that embedded it")
    factory: str = Field(description="the Faiss index_factory string it was built with")
    metric: str = "cosine"
    rows: int
    recall: float = Field(
        description="recall@10 against exact search, measured when it was built; the mean of shards"
    )
    shards: tuple[ShardRef, ...] = Field(
        (), description="in the order of their rows; empty: it is one bundle"
    )
    covers_revision: int = Field(
        0, description="of the gallery: what was enrolled and forgotten up to it is in the index"
    )
    changes: ChangesRef | None = Field(None, description="what that was; null: nothing")

    def shard(self, number: int) -> "IndexRef":
        """A shard as an index of its own."""
        shard = self.shards[number]
        return self.model_copy(update={**shard.model_dump(), "shards": ()})

    def __str__(self) -> str:
        """As users type it: NAME@VERSION."""
        return versioned(self.name, self.version)


class ThresholdsRef(Ref):
    """Calibrated thresholds of an index version, for its gallery and scopes."""

    index: IndexRef
    fpir: float = Field(description="false-positive identification rate that they were checked for")
    scopes: list[str] = Field([], description="filters that were calibrated")
    by: list[str] = Field([], description="columns each of whose values was calibrated")


class ReportRef(Ref):
    """A page of pictures for people, with each picture beside it as a file."""

    title: str
    page: str = Field(description="path or URI of the page; it holds its pictures, so it can be sent alone")
    pictures: dict[str, str] = Field({}, description="file in the report's folder to what it shows")
