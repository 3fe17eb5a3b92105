"""The settings that live in the environment: `DML_STORE` (default `./dml-store`) and `MLFLOW_TRACKING_URI`
(default a SQLite file inside a local store). `DML_CACHE` is read by `storage.cache_dir`, `DML_CLUSTER_GPUS`
and `DML_CLUSTER_CPUS` by `cluster`; Prefect's, Ray's and AWS's own variables are read by those libraries.
"""

import hashlib
import os
from pathlib import Path

from dml.errors import InvalidSetting
from dml.storage import cache_dir, is_remote, join, mark_store, resolve


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
    return configured or f"sqlite:///{local_folder(store) / 'mlflow.db'}"


def local_folder(store: str) -> Path:
    """What must lie on a local disk, such as databases: in the store, or for a remote one in the cache."""
    if is_remote(store):
        folder = cache_dir() / "stores" / hashlib.sha256(store.encode()).hexdigest()[:12]
    else:
        mark_store(store)
        folder = Path(store)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def artifact_root(store: str) -> str:
    """Where MLflow puts artefacts when no tracking server decides it."""
    return join(store, "mlflow-artifacts")
