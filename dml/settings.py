"""Settings from environment variables: `DML_STORE` (default `./dml-store`) and `MLFLOW_TRACKING_URI`
(default: a SQLite file in a local store), `DML_MILVUS_TOKEN`. `DML_CACHE` is read by `storage.cache_dir`,
`DML_CLUSTER_GPUS` and `DML_CLUSTER_CPUS` by `cluster`, `DML_S3_TIMEOUT_S` and AWS's by
`storage.s3_settings`; the variables of Prefect and Ray are read by those libraries.
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
    """The store's absolute URI: `explicit`, else `DML_STORE`, else `./dml-store`.

    Raises:
        InvalidSetting: the path is a file.
    """
    uri = resolve(explicit or os.environ.get("DML_STORE") or "dml-store")
    if not is_remote(uri) and Path(uri).is_file():
        raise InvalidSetting(f"A store must be a folder or an s3:// URI; {uri} is a file. Name another.")
    return uri


def tracking_uri(store: str) -> str:
    """`MLFLOW_TRACKING_URI`, else a SQLite database in the store (in the cache for a remote store)."""
    configured = os.environ.get("MLFLOW_TRACKING_URI")
    return configured or store_tracking_uri(store)


def milvus_token() -> str:
    """`DML_MILVUS_TOKEN`: USER:PASSWORD or an API key of a Milvus server; "" for one that asks for none."""
    return os.environ.get("DML_MILVUS_TOKEN", "")


def prefect_pages() -> str:
    """The address of Prefect's pages, by `PREFECT_API_URL`; empty: it is not set."""
    return os.environ.get("PREFECT_API_URL", "").rstrip("/").removesuffix("/api")


def has_registry(store: str) -> bool:
    """Whether a model registry can exist; checked first, so that a lookup never creates a store."""
    configured = bool(os.environ.get("MLFLOW_TRACKING_URI"))
    return configured or is_remote(store) or (Path(store) / DATABASE).exists()


def store_tracking_uri(store: str) -> str:
    """The URI of the store's SQLite database, also if another tracking server is configured."""
    return sqlite_uri(local_folder(store) / DATABASE)


def sqlite_uri(file: Path) -> str:
    """The URI of a SQLite file, for any characters in its path."""
    if "?" in str(file):  # it would end the URL's path; with the driver name, MLflow does not create a folder
        return f"sqlite+pysqlite:///file:{quote(str(file))}?uri=true"
    return f"sqlite:///{file}"


def local_folder(store: str) -> Path:
    """The folder for files that need a local disk, such as databases: the store, or a cache folder."""
    if is_remote(store):
        folder = _cache_folder("stores", store)
    else:
        mark_store(store)
        folder = Path(store)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def service_folder(store: str) -> Path:
    """The folder of a service's API keys and audit log; what writes there makes it, for its owner alone."""
    return (local_folder(store) if is_remote(store) else Path(store)) / "service"


def artifact_root(store: str) -> str:
    """The folder of MLflow's artefacts when no tracking server decides it.

    MLflow decodes `%41` in a path to `A`, so a store with such a path is accessed through a link in the
    cache.
    """
    if not is_remote(store) and _ESCAPE.search(store):
        link = _cache_folder("links", store)
        link.parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileExistsError):
            link.symlink_to(store, target_is_directory=True)
        store = str(link)
    return join(store, "mlflow-artifacts")


def _cache_folder(kind: str, store: str) -> Path:
    return cache_dir() / kind / hashlib.sha256(store.encode()).hexdigest()[:12]
