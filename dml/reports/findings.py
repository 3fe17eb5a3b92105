"""Results of a look at a dataset before any training."""

from typing import Literal

from pydantic import Field

from dml.refs import DatasetRef, ReportRef
from dml.reports.datasets import Refusal
from dml.reports.result import Result


class ClassSize(Result):
    """How many images a class has."""

    label: str
    split: str
    images: int


class ClassBalance(Result):
    """How the images of a split spread over its classes."""

    split: str
    images: int
    classes: int
    fewest: int = Field(description="images of the smallest class")
    median: float
    most: int = Field(description="images of the largest class")
    single: int = Field(description="classes with one image: it has no positive, and cannot be evaluated")


class Extent(Result):
    """The smallest, the median and the largest of a number."""

    low: float
    median: float
    high: float


class ImageSummary(Result):
    """What kind of files a dataset's images are."""

    width: Extent = Field(description="pixels, as the file stores them upright")
    height: Extent
    formats: dict[str, int] = Field(description="format and colour mode, as `JPEG RGB`, to images")
    grey: int = Field(description="images whose channels are alike, however they are stored")
    size_bytes: int = Field(description="of all files together")


class AttributeSummary(Result):
    """What an attribute's values are."""

    name: str
    type: str
    missing: int = Field(description="images without a value")
    distinct: int = Field(description="different values, the missing one apart")
    low: str | None = Field(description="the smallest value; None: all are missing")
    high: str | None
    most_frequent: str | None
    most_frequent_images: int


class NearDuplicatePair(Result):
    """Two images that are nearly the same."""

    first: str = Field(description="id")
    first_label: str
    second: str = Field(description="id of the first's nearest")
    second_label: str
    distance: int = Field(description="of 64 bits of the perceptual hashes, those that differ")
    similarity: float = Field(description="of the thumbnails' structure, at most 1")


Between = Literal["test and train", "train", "test"]


class NearDuplicateSummary(Result):
    """The near-duplicates within a split, or those that test images have in train."""

    between: Between
    images: int = Field(
        description="of the split that have a near-duplicate there; of test where between both"
    )
    other_label: int = Field(description="of these, images whose nearest near-duplicate has another label")
    pairs: int = Field(description="of near-duplicates; at least so many where `truncated`")
    truncated: int = Field(description="images with more candidates than were compared")
    examples: list[NearDuplicatePair] = Field(
        description="the most alike; near_duplicates.csv has all images"
    )


class SuspectedLabel(Result):
    """An image whose nearest neighbours agree on a label that is not its own."""

    id: str
    label: str
    split: str
    agreed: str = Field(description="the neighbours' label")
    neighbors: int = Field(description="that agree")
    similarity: float = Field(description="mean cosine similarity to them")


class DatasetFindings(Result):
    """What a look at a dataset finds, before any training; lists are cut, counts are of all."""

    splits: list[ClassBalance]
    largest: list[ClassSize] = Field(description="classes of each split; classes.csv has all")
    smallest: list[ClassSize]
    images: ImageSummary
    attributes: list[AttributeSummary]
    quarantine: list[Refusal]
    near_duplicates: list[NearDuplicateSummary]
    embedder: str | None = Field(
        None, description="what embedded the images; None: no embedding was looked at"
    )
    num_suspected: int | None = Field(None, description="suspected labels; None: no embedding was looked at")
    suspected: list[SuspectedLabel] = Field([], description="the first of them; suspects.csv has all")
    warnings: list[str] = Field([], description="what to look at first, in sentences")


class DatasetReport(Result):
    """The report of a dataset alone: its page, and what is on it."""

    dataset: DatasetRef
    report: ReportRef
    findings: DatasetFindings
