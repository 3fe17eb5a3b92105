"""Results about models: trainings, imports, versions, presets."""

from pydantic import Field

from dml.refs import ModelRef, TrainedRef
from dml.reports.evaluation import EvaluationReport
from dml.reports.result import Result


class TrainingReport(Result):
    """A training flow's result: the version, how training went, and its evaluation."""

    model: ModelRef
    trained: TrainedRef
    evaluation: EvaluationReport
    gate_metric: str = Field(description="by which the gate compared it")
    reason: str | None = Field(None, description="why this experiment was chosen; None: it was named")


class ListedModel(ModelRef):
    """A version of a registered model."""

    current: bool = Field(description="whether it is its model's champion")


class ModelList(Result):
    """The versions of the registered models, the newest first within a name."""

    models: list[ListedModel]
    foreign: list[str] = Field(
        description="models of other tools, NAME, and their versions of models of dml, NAME/VERSION"
    )


class Preset(Result):
    """An experiment to start from."""

    name: str
    description: str


class PresetList(Result):
    """The experiments to start from."""

    presets: list[Preset]


class Neighbor(Result):
    """An image, and the image most similar to it."""

    id: str
    label: str | None
    nearest: str = Field(description="id of the other")
    nearest_label: str | None
    similarity: float = Field(description="cosine")


class ModelImportReport(Result):
    """What is known of a network from elsewhere, how it was tried, and the model it became."""

    source: str
    dim: int = Field(description="length of one embedding")
    license: str = Field(description="of its weights; empty: not said")
    notes: list[str] = Field(description="what was concluded of it, and what you must see to")
    preprocessing: dict[str, str | int | list[float] | None] = Field(
        description="what an image becomes before it"
    )
    picture: str | None = Field(None, description="path of an image as the network sees it; null: none")
    neighbors: list[Neighbor] = Field([], description="of ten images, in the first 200 of the dataset")
    model: ModelRef | None = Field(None, description="null: it was only tried")
