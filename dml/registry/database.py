"""MLflow's SQLite database: made whole by one process, and right about where its store lies.

MLflow makes its tables step by step and writes artefacts' absolute addresses into them. So the file is made
aside and appears when it is finished, and in a store that was copied or moved the addresses are changed to
where the store lies now, before anything reads them.
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
"""Held in a store's local folder while a run or a version is looked for and made where it is missing."""
_ADDRESSES = [
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
]


def sqlite_file(tracking_uri: str) -> Path | None:
    """The file of a `sqlite:` URI; None of another, or of a database in memory."""
    if not tracking_uri.startswith("sqlite"):
        return None
    from sqlalchemy.engine import make_url

    url = make_url(tracking_uri)
    name = url.database
    if not name or name == ":memory:":
        return None
    return Path(unquote(name.removeprefix("file:")) if "uri" in url.query else name).absolute()


@contextmanager
def first_contact(file: Path) -> Iterator[None]:
    """Meanwhile nobody else makes or changes the database; it is there, and its addresses are right.

    Args:
        file: the database; a store's own is called `mlflow.db`.

    Raises:
        CorruptArtifact: it is no SQLite database.
    """
    can_write = os.access(file.parent, os.W_OK) or not file.exists()  # a store may be there to be read alone
    with storage.exclusive(file.with_name(f"{file.name}.lock")) if can_write else nullcontext():
        if not file.exists():
            _make(file)
        try:
            with closing(sqlite3.connect(file)) as database:
                database.execute("SELECT count(*) FROM sqlite_master")
        except sqlite3.Error as error:
            raise CorruptArtifact(
                f"MLflow's database must be a readable SQLite file; {file}: {error}. Put a copy of it in its "
                "place, or move it away to begin with an empty one."
            ) from error
        if file.name == DATABASE and can_write:
            _move_addresses(file)
        yield


def _make(file: Path) -> None:
    from mlflow.store.db.utils import _initialize_tables, create_sqlalchemy_engine

    for abandoned in file.parent.glob(f".{file.name}.*"):
        if storage.is_temporary(abandoned.name):
            abandoned.unlink()
    aside = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    engine = create_sqlalchemy_engine(sqlite_uri(aside))
    _initialize_tables(engine)
    engine.dispose()
    aside.replace(file)


def _move_addresses(file: Path) -> None:
    """Change the addresses below the former place of the store's artefacts into those below the present."""
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
        logger.info("The store lies elsewhere than before; MLflow's artefacts are now those in %s.", root)
    storage.write_json(record, {"artifacts": root})
