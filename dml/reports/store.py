"""Results about the store: what was verified, removed, rolled back."""

from pydantic import Field

from dml.reports.result import PartialResult, Result


class VerifiedArtifact(Result):
    """An artefact whose bytes were compared with its manifest."""

    kind: str = Field(description="as `dataset`, `index`, `package`, `checkpoint`, `log` of a gallery")
    artifact: str = Field(description="NAME@VERSION, or the version alone; of a log, NAME")
    damaged: list[str] = Field(description="files")
    state: str = Field(description='"ok", "made again", or what begins with "damaged" or "removed"')
    uri: str


class VerifyReport(PartialResult):
    """Every artefact that was compared with what was published."""

    artifacts: list[VerifiedArtifact]

    @property
    def damaged(self) -> list[VerifiedArtifact]:
        """What is damaged still."""
        return [artifact for artifact in self.artifacts if artifact.state.startswith("damaged")]


class UnneededArtifact(Result):
    """Something in the store that nothing needs."""

    uri: str
    kind: str
    why: str
    size_bytes: int


class CleanupReport(Result):
    """What `dml gc` removed."""

    removed: list[UnneededArtifact]
    size_bytes: int = Field(description="of them all")
    dry_run: bool = Field(description="whether they were only listed")


class RemovalReport(Result):
    """What `dml rm` removed."""

    kind: str = Field(description="`dataset`, `index`, `thresholds`, `model`, `run` or `vectors`")
    removed: list[str] = Field(description="versions, as they are typed")


class RollbackReport(Result):
    """What `dml rollback` made current again."""

    kind: str = Field(description="`index`, `vectors` or `model`")
    current: str = Field(description="NAME@VERSION, or NAME/VERSION of a model")
