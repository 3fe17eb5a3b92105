"""MLflow's SQLite database: created atomically, with artefact addresses that follow a moved store.

MLflow creates its tables one by one and stores absolute artefact addresses in them. So the database is
created under a temporary name and renamed when complete. In a store that was copied or moved, the addresses
are updated to the store's new location before anything reads them.
"""

import logging
import os
import sqlite3
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from urllib.parse import unquote

from dml import storage
from dml.errors import CorruptArtifact
from dml.settings import DATABASE, artifact_root, sqlite_uri

logger = logging.getLogger(__name__)

ROOT = "mlflow-root.json"
REGISTRY_LOCK = "mlflow.lock"
"""Lock file in a store's local folder, held while a run or a version is looked up and created if missing."""
_ADDRESSES = [
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
]


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of a `sqlite:` URI; None for other URIs and in-memory databases."""
    if not tracking_uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    url = make_url(tracking_uri)
    name = url.database
    if not name or name == ":memory:":
        return None
    return Path(unquote(name.removeprefix("file:")) if "uri" in url.query else name).absolute()


@contextmanager
def prepared_database(file: Path) -> Iterator[None]:
    """Lock the database, create it if it is missing, and update its artefact addresses.

    Args:
        file: the database; a store's database is called `mlflow.db`.

    Raises:
        CorruptArtifact: the file is not a SQLite database.
    """
    can_write = os.access(file.parent, os.W_OK) or not file.exists()  # a store may be read-only
    with storage.exclusive(file.with_name(f"{file.name}.lock")) if can_write else nullcontext():
        if not file.exists():
            _create(file)
        try:
            with closing(sqlite3.connect(file)) as database:
                database.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.Error as error:
            raise CorruptArtifact(
                f"MLflow's database must be a readable SQLite file; {file}: {error}. Restore it from a "
                "copy, or move it away to start with an empty database."
            ) from error
        if file.name == DATABASE and can_write:
            _update_addresses(file)
        yield


def _create(file: Path) -> None:
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    for abandoned in file.parent.glob(f".{file.name}.*"):
        if storage.is_temporary(abandoned.name):
            abandoned.unlink()
    temporary = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    engine = create_sqlalchemy_engine(sqlite_uri(temporary))
    _initialize_tables(engine)
    engine.dispose()
    temporary.replace(file)


def _update_addresses(file: Path) -> None:
    """Replace the former root of the store's artefacts by the present root in every address."""
    record, root = str(file.with_name(ROOT)), artifact_root(str(file.parent))
    former = storage.read_json(record)["artifacts"] if storage.exists(record) else None
    if former == root:
        return
    if former is not None:
        with closing(sqlite3.connect(file)) as database, database:
            for table, column in _ADDRESSES:
                database.execute(
                    f"UPDATE {table} SET {column} = ?1 || substr({column}, length(?2) + 1) "
                    f"WHERE ({column} = ?2 OR substr({column}, 1, length(?2) + 1) = ?2 || '/') "
                    f"AND substr({column}, 1, length(?1) + 1) != ?1 || '/' AND {column} != ?1",
                    (root, former),
                )
        logger.info("The store was moved; MLflow's artefact addresses now start with %s.", root)
    storage.write_json(record, {"artifacts": root})
