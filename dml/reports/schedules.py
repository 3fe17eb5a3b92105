"""Results about refreshes of indexes by schedule."""

from datetime import datetime

from pydantic import Field

from dml.refs import IndexRef
from dml.reports.datasets import DatasetChanges
from dml.reports.result import PartialResult, Result


class Refresh(Result):
    """When an index is refreshed by itself, and from what."""

    cron: str = Field(description="minute, hour, day of month, month, day of week")
    timezone: str = Field(description="that of `cron`, as Europe/Rome")
    model: str = Field(
        description="NAME (its champion at that time), NAME@ALIAS or NAME/VERSION; empty for imported vectors"
    )
    dataset: str = Field(
        description="NAME, whose source is read again first, or NAME@VERSION; or the name of imported vectors"
    )


class Schedule(Refresh):
    """A scheduled refresh."""

    index: str
    next: datetime = Field(description="when it is due next, in the time zone of the schedule")


class ScheduleList(PartialResult):
    """The scheduled indexes, and who follows their schedules."""

    schedules: list[Schedule]
    prefect: str | None = Field(description="address of the Prefect API that follows; null: none")
    damaged: dict[str, str] = Field(description="index to what is wrong with its schedule")


class RefreshedIndex(IndexRef):
    """The version of an index that a refresh made current, and what was new for it."""

    ingested: DatasetChanges | None = Field(
        None,
        description="what the ingest before it found in its dataset's source; null: there was none, since it "
        "is of imported vectors or of one version of a dataset",
    )


class RefreshReport(PartialResult):
    """What refreshing indexes did."""

    refreshed: list[RefreshedIndex]
    failed: dict[str, str] = Field({}, description="index to why it was not refreshed")
