"""The result of the whole way from images to an index."""

from pydantic import Field

from dml.refs import DatasetRef, IndexRef
from dml.reports.models import TrainingReport
from dml.reports.result import Result


class EndToEndReport(Result):
    """From images to an index: the results, and the seconds of each stage."""

    dataset: DatasetRef
    training: TrainingReport
    index: IndexRef
    gallery: str = Field(description="path or URI of the picture of queries and their answers")
    seconds: dict[str, float]
