"""Where the stack of `dml up` is reached."""

from pydantic import Field

from dml.reports.result import Result


class StackAddresses(Result):
    """Where the stack of `dml up` is reached: environment variables, and its logs."""

    PREFECT_API_URL: str
    MLFLOW_TRACKING_URI: str
    DML_STORE: str = Field(description="the store's URI")
    logs: str = Field(description="folder of the logs")

    @property
    def variables(self) -> dict[str, str]:
        """What another terminal must know, by name."""
        return self.model_dump(exclude={"logs"})
