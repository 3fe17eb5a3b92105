"""The settings that live in the environment: `DML_STORE` (default `./dml-store`) and `MLFLOW_TRACKING_URI`
(default a SQLite file inside a local store). `DML_CACHE` is read by `storage.cache_dir`, `DML_CLUSTER_GPUS`
and `DML_CLUSTER_CPUS` by `cluster`; Prefect's, Ray's and AWS's own variables are read by those libraries.
"""

import hashlib
import os
import re
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

from dml.errors import InvalidSetting
from dml.storage import cache_dir, is_remote, join, mark_store, resolve

DATABASE = "mlflow.db"
_ESCAPE = re.compile("%[0-9a-fA-F]{2}")


def store_uri(explicit: str | None = None) -> str:
    """The store's absolute URI: the given one, else `DML_STORE`, else `./dml-store`.

    Raises:
        InvalidSetting: it is a file.
    """
    uri = resolve(explicit or os.environ.get("DML_STORE") or "dml-store")
    if not is_remote(uri) and Path(uri).is_file():
        raise InvalidSetting(f"A store must be a folder or an s3:// URI; {uri} is a file. Name another.")
    return uri


def tracking_uri(store: str) -> str:
    """`MLFLOW_TRACKING_URI`, else a SQLite database in the store (in the cache for a remote one)."""
    configured = os.environ.get("MLFLOW_TRACKING_URI")
    return configured or own_tracking_uri(store)


def has_registry(store: str) -> bool:
    """Whether there can be models: to look for some must not make a store of somebody's folder."""
    configured = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    return configured or is_remote(store) or (Path(store) / DATABASE).exists()


def own_tracking_uri(store: str) -> str:
    """The SQLite database that the store has of its own, also where another MLflow is configured."""
    return sqlite_uri(local_folder(store) / DATABASE)


def sqlite_uri(file: Path) -> str:
    """The URI of a SQLite file, whatever its path holds."""
    if "?" in str(file):  # ends the path of a URL; the driver's name keeps MLflow from making a folder of it
        return f"sqlite+pysqlite:///file:{quote(str(file))}?uri=true"
    return f"sqlite:///{file}"


def local_folder(store: str) -> Path:
    """What must lie on a local disk, such as databases: in the store, or for a remote one in the cache."""
    if is_remote(store):
        folder = _cached("stores", store)
    else:
        mark_store(store)
        folder = Path(store)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def artifact_root(store: str) -> str:
    """Where MLflow puts artefacts when no tracking server decides it.

    MLflow reads `%41` in a path as `A`, so a store with such a path is reached by a link in the cache.
    """
    if not is_remote(store) and _ESCAPE.search(store):
        link = _cached("links", store)
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(store, target_is_directory=True)
        store = str(link)
    return join(store, "mlflow-artifacts")


def _cached(kind: str, store: str) -> Path:
    return cache_dir() / kind / hashlib.sha256(store.encode()).hexdigest()[:12]
