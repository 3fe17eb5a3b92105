"""Requests and answers of the routes that look through datasets and lineage."""

from typing import Annotated, Literal

from pydantic import Field

from dml.reports import ItemCorrection, NearDuplicatePair, Refusal, SuspectedLabel
from dml.serving.app.messages.base import Message, StoredScalar, Text, Where
from dml.serving.app.messages.catalogue import Column

MAX_PAGE = 500
First = Annotated[int, Field(ge=0, le=10**12, description="number of the first one, from 0")]
Most = Annotated[int, Field(ge=1, le=MAX_PAGE, description="how many at most")]


class DatasetSummary(Message):
    """A dataset, in its current version."""

    name: str
    version: str
    rows: int
    classes: int = Field(description="different labels")
    quarantined: int = Field(description="entries of the source that were refused")


class DatasetList(Message):
    """The datasets of the store."""

    datasets: list[DatasetSummary]
    damaged: list[str] = Field(description="what of versions cannot be read, and what to do; empty: nothing")


class DatasetDetail(DatasetSummary):
    """A dataset with what a form of filters needs."""

    columns: list[Column] = Field(description="label, split, width and height, then the attributes")


class ItemsRequest(Message):
    """Which items of a dataset to list."""

    first: First = 0
    most: Most = 60
    filter: Where | Annotated[list[Where], Field(max_length=32)] | None = Field(
        None, description="as of a search, of the dataset's columns"
    )


class DatasetItem(Message):
    """An item of a dataset."""

    id: str
    label: str
    split: str
    width: int = Field(description="pixels")
    height: int
    attributes: dict[str, StoredScalar] = Field(description="null: it has no value")


class ItemsPage(Message):
    """Some of the items that match, in the order of the dataset."""

    version: str
    total: int = Field(description="that match")
    items: list[DatasetItem]


class RefusedEntry(Message):
    """An entry of the source that became no item."""

    id: str | None
    label: str | None
    locator: str | None = Field(description="where it is in the source")
    reason: str
    detail: str | None


class QuarantinePage(Message):
    """Some of what was refused."""

    version: str
    total: int
    reasons: list[Refusal] = Field(description="of all of it, the most frequent first")
    problems: list[RefusedEntry]


class SuspectsPage(Message):
    """Some of the items whose nearest neighbours agree on another label, the surest first."""

    version: str
    embedder: str = Field(description="what embedded the dataset")
    total: int
    suspects: list[SuspectedLabel]


class BetweenPair(Message):
    """An image, and its nearest near-duplicate."""

    between: Literal["test and train", "train", "test"] = Field(description="the splits they are in")
    pair: NearDuplicatePair


class NearDuplicatesPage(Message):
    """Some of the images that have a near-duplicate."""

    version: str
    total: int
    pairs: list[BetweenPair]


class CorrectionRequest(Message):
    """Give an item of a dataset another label."""

    id: Text = Field(min_length=1)
    label: Text = Field(min_length=1)


class ItemRequest(Message):
    """Name an item of a dataset."""

    id: Text = Field(min_length=1)


class CorrectionsPage(Message):
    """Some of the corrections of a dataset, by id."""

    version: str
    total: int
    corrections: list[ItemCorrection]


class NewVersion(Message):
    """The version of the dataset that a correction made; the former one stays as it is."""

    dataset: str
    version: str
    rows: int


class LineageStep(Message):
    """An artefact that an index was made from, or the index itself."""

    kind: Literal["dataset", "vectors", "run", "package", "embeddings", "index"]
    name: str
    what: str = Field(description="how much it holds, or how it came about; empty: not said")
    url: str | None = Field(description="its page in MLflow; null: it has none")


class VersionLineage(Message):
    """A version of an index, and what it was made from."""

    version: str
    created: str = Field(description="ISO 8601, UTC")
    current: bool
    rows: int
    recall: float = Field(description="recall@10 against exact search, measured when it was built")
    lineage: list[LineageStep] = Field(description="from the dataset to the index")


class IndexLineage(Message):
    """The versions of an index, the newest first."""

    name: str
    versions: list[VersionLineage]


class RegisteredModel(Message):
    """A version of a registered model."""

    name: str = Field(description="NAME/VERSION")
    champion: bool
    dataset: str = Field(description="that it was trained on; empty: it was not trained here")
    recall_at_1: float | None
    reason: str = Field(description="of the gate; empty: it was not judged")
    created: str | None
    url: str | None = Field(description="its page in MLflow; null: it has none")


class Pages(Message):
    """The pages of a server of the stack."""

    name: Literal["MLflow", "Prefect"]
    url: str


class Lineage(Message):
    """What the indexes and models were made from."""

    indexes: list[IndexLineage]
    damaged: list[str] = Field(description="what of versions cannot be read, and what to do; empty: nothing")
    models: list[RegisteredModel] = Field(description="the newest first within a name")
    models_missing: str = Field(description="why there are no models; empty: they were read")
    pages: list[Pages]
