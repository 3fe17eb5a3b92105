"""The one way to MLflow: a client that was met once, and whose errors say which server does not answer."""

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from dml.deadline import call_within
from dml.errors import InvalidSetting, Unreachable, without_password
from dml.registry.database import first_contact, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from requests import Response

CONTACT_TIMEOUT_S = 8
_HTTP = ("http://", "https://")
_MET: set[tuple[int, str]] = set()  # process and URI
_PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""Some seconds for a server that restarts. MLflow's own, 7 and 120, wait four minutes for one that's down."""


def connect(tracking_uri: str) -> "MlflowClient":
    """An MLflow client; models that would need unpickling are refused from here on.

    Raises:
        Unreachable: nothing answers at the address, or what answers is not MLflow.
        InvalidSetting: an address of a kind that MLflow does not know.
        CorruptArtifact: the store's own database is damaged.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    for name, value in _PATIENCE.items():
        os.environ.setdefault(name, value)
    for talkative in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(talkative).setLevel(logging.WARNING)
    for about_itself in ("urllib3.connectionpool", "mlflow.utils.environment", "mlflow.utils.git_utils"):
        logging.getLogger(about_itself).setLevel(logging.ERROR)
    import mlflow

    if (os.getpid(), tracking_uri) not in _MET:
        _meet(tracking_uri)
        _MET.add((os.getpid(), tracking_uri))
    client = mlflow.MlflowClient(tracking_uri, registry_uri=tracking_uri)
    return cast("MlflowClient", _Client(client, tracking_uri))


@contextmanager
def as_default(tracking_uri: str) -> Iterator[None]:
    """For MLflow's functions that take no URI; afterwards the process and its environment are as before.

    MLflow writes the URI it is given into `MLFLOW_TRACKING_URI`, where another store would find it.
    """
    import mlflow

    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    try:
        with answering(tracking_uri):
            yield
    finally:
        mlflow.set_tracking_uri(before["MLFLOW_TRACKING_URI"])
        mlflow.set_registry_uri(before["MLFLOW_REGISTRY_URI"] or "")
        if before["MLFLOW_REGISTRY_URI"] is None:
            os.environ.pop("MLFLOW_REGISTRY_URI", None)


def require_answer(tracking_uri: str) -> None:
    """Ask a server once more, briefly; raises Unreachable. Nothing to ask of a database."""
    if tracking_uri.startswith(_HTTP):
        _meet_server(tracking_uri)


@contextmanager
def answering(tracking_uri: str) -> Iterator[None]:
    """What MLflow raises where its server or database does not answer becomes Unreachable."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    try:
        yield
    except MlflowException as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, RequestException) or error.error_code == "TEMPORARILY_UNAVAILABLE":
            raise _unreachable(tracking_uri, cause or error) from error
        raise


class _Client:
    """An MLflow client, each call of which is `answering`."""

    def __init__(self, client: "MlflowClient", tracking_uri: str) -> None:
        self._client, self._tracking_uri = client, tracking_uri

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not callable(method):
            return method

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with answering(self._tracking_uri):
                return method(*args, **kwargs)

        return call


def _meet(tracking_uri: str) -> None:
    """The first contact: short, since a wrong address is never right however long one waits."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if tracking_uri.startswith(_HTTP):
        _meet_server(tracking_uri)
        return
    file = sqlite_file(tracking_uri)
    try:
        if file is None:
            _meet_database(tracking_uri)
        with first_contact(file) if file is not None else nullcontext():
            client = mlflow.MlflowClient(tracking_uri, registry_uri=tracking_uri)
            client.search_experiments(max_results=1)  # makes the default experiment where it is missing
            client.search_registered_models(max_results=1)
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        raise InvalidSetting(
            "MLflow keeps its runs on a server, http(s)://HOST:PORT, or in a database, sqlite:///FILE; "
            f"MLFLOW_TRACKING_URI is {without_password(tracking_uri)!r}: {_first_line(error)}."
        ) from error


def _meet_server(tracking_uri: str) -> None:
    import mlflow.utils.rest_utils  # noqa: F401  # importing takes seconds, which are not the server's

    try:
        call_within(CONTACT_TIMEOUT_S, lambda: _require_mlflow(tracking_uri))
    except TimeoutError as error:
        raise _unreachable(tracking_uri, error) from error


def _require_mlflow(tracking_uri: str) -> None:
    answer = _get(tracking_uri, "experiments/search", max_results=1)
    if answer.status_code != 200:
        raise Unreachable(
            f"MLflow must answer at {without_password(tracking_uri)}; it refuses with status "
            f"{answer.status_code}: {answer.text.strip()[:200]!r}. Check MLFLOW_TRACKING_URI, and "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD where it asks for them."
        )
    content = _json(answer)
    if content == {}:  # all experiments were deleted; or any server that says {} to everything
        content = _json(_get(tracking_uri, "experiments/get", experiment_id="0"))
    known = isinstance(content, dict) and bool({"experiments", "experiment", "error_code"} & content.keys())
    if not known:
        raise Unreachable(
            f"MLflow must answer at {without_password(tracking_uri)}; what answers there is another server: "
            f"{answer.text.strip()[:60]!r}. Check MLFLOW_TRACKING_URI."
        )


def _get(tracking_uri: str, route: str, **params: Any) -> "Response":
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        answer = http_request(
            get_default_host_creds(tracking_uri),
            f"/api/2.0/mlflow/{route}",
            "GET",
            params=params,
            max_retries=0,
            raise_on_status=False,
            timeout=CONTACT_TIMEOUT_S,
        )
    except MlflowException as error:
        raise _unreachable(tracking_uri, error.__cause__ or error.__context__ or error) from error
    return cast("Response", answer)


def _json(answer: "Response") -> Any:
    """What an answer says; None where it is no JSON."""
    try:
        return answer.json()
    except ValueError:
        return None


def _meet_database(tracking_uri: str) -> None:
    """Ask a database once: MLflow itself would ask ten times, for 100 s."""
    import sqlalchemy
    from mlflow.store.db.db_types import DATABASE_ENGINES

    if tracking_uri.partition(":")[0].partition("+")[0] in DATABASE_ENGINES:
        engine = sqlalchemy.create_engine(tracking_uri)
        try:
            engine.connect().close()
        except sqlalchemy.exc.OperationalError as error:
            raise _unreachable(tracking_uri, error.orig or error) from error
        finally:
            engine.dispose()


def _unreachable(tracking_uri: str, cause: BaseException) -> Unreachable:
    from requests.exceptions import ConnectionError, Timeout

    if isinstance(cause, Timeout | TimeoutError) or "timed out" in str(cause):
        why = "it does not answer in time"
    elif isinstance(cause, ConnectionError):
        why = "no connection"
    else:
        why = _first_line(cause)
    return Unreachable(
        f"MLflow must answer at {without_password(tracking_uri)}; {why}. Start it, as `dml up` does, or set "
        "MLFLOW_TRACKING_URI to where it is. What was finished is kept: the same command goes on from there."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
