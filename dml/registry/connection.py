"""MLflow client for a tracking URI, checked on first use; its errors name the server that does not answer."""

import functools
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, cast

from dml.deadline import call_within
from dml.errors import InvalidSetting, Unreachable, without_password
from dml.registry.database import prepared_database, sqlite_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from requests import Response

CONTACT_TIMEOUT_S = 8
_HTTP = ("http://", "https://")
_CHECKED: set[tuple[int, str]] = set()  # process and URI
_HTTP_RETRY_SETTINGS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
"""Enough for a server that restarts. MLflow's defaults, 7 and 120, wait four minutes for a stopped server."""


def connect(tracking_uri: str, *, timeout_s: float = CONTACT_TIMEOUT_S) -> "MlflowClient":
    """An MLflow client. From this call on, MLflow refuses models that need unpickling.

    Args:
        tracking_uri: of a server or a database.
        timeout_s: for the first contact with a server.

    Raises:
        Unreachable: no server answers at the address, or the server is not MLflow.
        InvalidSetting: MLflow does not support this kind of address.
        CorruptArtifact: the store's database is damaged.
    """
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    for name, value in _HTTP_RETRY_SETTINGS.items():
        os.environ.setdefault(name, value)
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for name in ("urllib3.connectionpool", "mlflow.utils.environment", "mlflow.utils.git_utils"):
        logging.getLogger(name).setLevel(logging.ERROR)
    import mlflow

    if (os.getpid(), tracking_uri) not in _CHECKED:
        _check_connection(tracking_uri, timeout_s)
        _CHECKED.add((os.getpid(), tracking_uri))
    client = mlflow.MlflowClient(tracking_uri, registry_uri=tracking_uri)
    return cast("MlflowClient", _Client(client, tracking_uri))


@contextmanager
def as_default(tracking_uri: str) -> Iterator[None]:
    """Set the default URI for MLflow functions that take none; restores the environment afterwards.

    MLflow also writes the URI to `MLFLOW_TRACKING_URI`, which would redirect other stores of this process.
    """
    import mlflow

    before = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    mlflow.set_tracking_uri(tracking_uri)
    mlflow.set_registry_uri(tracking_uri)
    try:
        with translated_errors(tracking_uri):
            yield
    finally:
        mlflow.set_tracking_uri(before["MLFLOW_TRACKING_URI"])
        mlflow.set_registry_uri(before["MLFLOW_REGISTRY_URI"] or "")
        if before["MLFLOW_REGISTRY_URI"] is None:
            os.environ.pop("MLFLOW_REGISTRY_URI", None)


def require_answer(tracking_uri: str) -> None:
    """Check again, briefly, that a server answers; raises Unreachable. A database is not checked."""
    if tracking_uri.startswith(_HTTP):
        _check_server(tracking_uri, CONTACT_TIMEOUT_S)


@contextmanager
def translated_errors(tracking_uri: str) -> Iterator[None]:
    """Translate MLflow's errors about a server or database that does not answer to Unreachable."""
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
    """An MLflow client that calls every method within `translated_errors`."""

    def __init__(self, client: "MlflowClient", tracking_uri: str) -> None:
        self._client, self._tracking_uri = client, tracking_uri

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)
        if not callable(method):
            return method

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            with translated_errors(self._tracking_uri):
                return method(*args, **kwargs)

        return call


def _check_connection(tracking_uri: str, timeout_s: float) -> None:
    """Check a tracking URI on first use, with a short timeout, since retries do not fix a wrong address."""
    import mlflow
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    if tracking_uri.startswith(_HTTP):
        _check_server(tracking_uri, timeout_s)
        return
    file = sqlite_file(tracking_uri)
    try:
        if file is None:
            _check_database(tracking_uri)
        with prepared_database(file) if file is not None else nullcontext():
            client = mlflow.MlflowClient(tracking_uri, registry_uri=tracking_uri)
            client.search_experiments(max_results=1)  # creates the default experiment if it is missing
            client.search_registered_models(max_results=1)
    except (MlflowException, SQLAlchemyError, ImportError) as error:
        raise InvalidSetting(
            "MLFLOW_TRACKING_URI must be a server, http(s)://HOST:PORT, or a database, sqlite:///FILE; got "
            f"{without_password(tracking_uri)!r}: {_first_line(error)}."
        ) from error


def _check_server(tracking_uri: str, timeout_s: float) -> None:
    import mlflow.utils.rest_utils  # noqa: F401  # the import takes seconds, which must not count

    try:
        call_within(timeout_s, lambda: _require_mlflow(tracking_uri, timeout_s))
    except TimeoutError as error:
        raise _unreachable(tracking_uri, error) from error


def _require_mlflow(tracking_uri: str, timeout_s: float) -> None:
    response = _get(tracking_uri, "experiments/search", timeout_s, max_results=1)
    if response.status_code != 200:
        raise Unreachable(
            f"MLflow must answer at {without_password(tracking_uri)}; it refuses with status "
            f"{response.status_code}: {response.text.strip()[:200]!r}. Check MLFLOW_TRACKING_URI, and "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD if it requires them."
        )
    content = _json(response)
    if content == {}:  # all experiments were deleted; or a different server that always returns {}
        content = _json(_get(tracking_uri, "experiments/get", timeout_s, experiment_id="0"))
    is_mlflow = isinstance(content, dict) and bool(
        {"experiments", "experiment", "error_code"} & content.keys()
    )
    if not is_mlflow:
        raise Unreachable(
            f"MLflow must answer at {without_password(tracking_uri)}; the response is from another server: "
            f"{response.text.strip()[:60]!r}. Check MLFLOW_TRACKING_URI."
        )


def _get(tracking_uri: str, route: str, timeout_s: float, **params: Any) -> "Response":
    from mlflow.exceptions import MlflowException
    from mlflow.utils.credentials import get_default_host_creds
    from mlflow.utils.rest_utils import http_request

    try:
        response = http_request(
            get_default_host_creds(tracking_uri),
            f"/api/2.0/mlflow/{route}",
            "GET",
            params=params,
            max_retries=0,
            raise_on_status=False,
            timeout=timeout_s,
        )
    except MlflowException as error:
        raise _unreachable(tracking_uri, error.__cause__ or error.__context__ or error) from error
    return cast("Response", response)


def _json(response: "Response") -> Any:
    """The response's JSON; None if it is not JSON."""
    try:
        return response.json()
    except ValueError:
        return None


def _check_database(tracking_uri: str) -> None:
    """Try one connection to a database; MLflow would retry ten times, for 100 s."""
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
        reason = "it does not answer in time"
    elif isinstance(cause, ConnectionError):
        reason = "no connection"
    else:
        reason = _first_line(cause)
    return Unreachable(
        f"MLflow must answer at {without_password(tracking_uri)}; {reason}. Start it, for example with "
        "`dml up`, or set MLFLOW_TRACKING_URI to its address. Finished work is kept: run the same command "
        "to continue."
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200].rstrip(".")
