"""Results about datasets: ingests, versions, forgotten items."""

from datetime import datetime
from typing import Literal

from pydantic import Field

from dml.refs import DatasetRef, IndexRef
from dml.reports.result import PartialResult, Result


class Refusal(Result):
    """How many rows of a source were refused for one reason."""

    reason: str
    rows: int
    example: str = Field(description="where one of them is, and what is wrong with it")


IngestOutcome = Literal["made", "found", "repaired", "current"]
"""made: a new version; found: it was there, and is the current one now; repaired: it was there, damaged;
current: it was that before."""


class DatasetChanges(Result):
    """How a dataset version differs from the former one, and what was read of its source for that."""

    files_read: int = Field(0, description="images read from the source")
    bytes_read: int = 0
    added: int = Field(0, description="items that the former version has not")
    changed: int = Field(0, description="items with another image")
    relabelled: int = Field(0, description="items with the same image and another label, split or attribute")
    removed: int = 0
    unchanged: int = 0

    def __str__(self) -> str:
        return (
            f"{self.files_read} images read ({self.bytes_read / 1e6:.1f} MB): {self.added} added, "
            f"{self.changed} changed, {self.relabelled} relabelled, {self.removed} removed, {self.unchanged} "
            "unchanged"
        )


class ItemCorrection(Result):
    """A correction of one item of a dataset by a person."""

    id: str
    label: str | None = Field(description="the right label; null: the item is removed")
    former_label: str = Field(description="the label in the source when it was corrected")
    who: str
    when: str = Field(description="ISO 8601 in UTC")


class CorrectionList(Result):
    """The corrections of a dataset."""

    dataset: DatasetRef
    corrections: list[ItemCorrection]


class IngestReport(Result):
    """An ingest's result: the version, and what its reader must know of how it came about."""

    dataset: DatasetRef
    outcome: IngestOutcome
    changes: DatasetChanges = Field(description="since the former version")
    refused: list[Refusal] = Field([])
    quarantine: str = Field(description="path or URI of the table of what was refused, one row each")
    notes: list[str] = Field([], description="sentences on the split, merged labels, contradictory labels")


class Erasure(Result):
    """One place that held what was forgotten."""

    place: str = Field(
        description="what kind of thing it is, such as log, segment, index, changes, thresholds, dataset"
    )
    name: str = Field(description="its name, or the URI of what was removed or, a segment, written again")
    erased: bool
    until: str = Field("", description="what erases it there; empty where it is erased")


class ForgetReport(Result):
    """What forgetting items did."""

    items: int
    rebuilt: list[IndexRef] = Field(description="indexes, over what is left")
    removed: list[str] = Field(description="URIs of artefacts that held the items or were made of them")
    same_images: list[str] = Field(description="ids of other items with the same bytes, which stay")
    still_held_by: list[str] = Field(
        [], description="index versions that hold what was forgotten in their gallery, until they are erased"
    )
    receipt: list[Erasure] = Field([], description="place by place, what is erased and what is not yet")


class ListedDataset(DatasetRef):
    """A version of a dataset in the store."""

    created: datetime = Field(description="when it was published, UTC")
    current: bool = Field(description="whether the name alone means this version")


class DatasetList(PartialResult):
    """The versions of the store's datasets, by name, the oldest first."""

    datasets: list[ListedDataset]
