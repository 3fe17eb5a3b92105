"""One small store for the verbs: a dataset with hostile labels, a package, and the index of both."""

import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from pyarrow import parquet

from dml.cli.command import run
from dml.config import IndexConfig, IngestConfig
from dml.data.ingest import ingest
from dml.embedding.embed import embed
from dml.refs import DatasetRef
from dml.retrieval.build import build_index
from dml.retrieval.index import publish_index
from tests.answers import require_declared_type
from tests.embedding.parts import make_package, png

LABELS = [
    "plain",
    "a [final] one",
    "[/b]",
    "[bold]x",
    "red \u202e[31m",
    "two words",
    "<script>alert(1)</script>",
]
BRANDS = ["Nike", "red \x1b[31m", "Acme | Sons", "two\nlines"]


@dataclass(frozen=True)
class Done:
    """What a verb left on the screen."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        return json.loads(self.out)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> DatasetRef:
    """Two images of each of the labels, in a store of its own."""
    folder = tmp_path_factory.mktemp("cli")
    images = folder / "images"
    images.mkdir()
    rows = []
    for number in range(2 * len(LABELS)):
        (images / f"{number}.png").write_bytes(png(number))
        rows.append(
            {
                "image": f"images/{number}.png",
                "id": f"[{number}]" + ("-very-long" * 30 if number == 3 else ""),
                "label": LABELS[number // 2],
                "split": "train" if number < 6 else "test",
                "brand": BRANDS[number % len(BRANDS)],
                "day": f"2024-0{1 + number % 9}-15",
                "price": None if number % 4 == 0 else float(number),
            }
        )
    parquet.write_table(pa.Table.from_pylist(rows), folder / "manifest.parquet")
    config = IngestConfig(name="labels", source=str(folder / "manifest.parquet"), num_workers=1)
    return ingest(config, str(folder / "store"))


@pytest.fixture(scope="session")
def store(dataset: DatasetRef) -> str:
    """That store, with an index `labels` in use."""
    store = str(Path(dataset.uri).parents[2])
    table = embed(store, make_package(store), dataset)
    publish_index(store, build_index(store, "labels", table, IndexConfig(), model="labels/1"))
    return store


@pytest.fixture
def query(tmp_path: Path) -> str:
    """An image file: that of the first row."""
    (tmp_path / "query.png").write_bytes(png(0))
    return str(tmp_path / "query.png")


@pytest.fixture
def dml(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., Done]:
    """A verb as typed in an empty folder; with its exit status, and what it printed.

    But for lines that say that it is at work: a slow machine has them where another has none.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DML_STORE", raising=False)

    def call(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["dml", *arguments])
        capsys.readouterr()
        status = run()
        printed = capsys.readouterr()
        done = Done(status, printed.out, re.sub(r"^dml .*: at work.*\n", "", printed.err, flags=re.MULTILINE))
        if "--json" in arguments and printed.out:
            require_declared_type(arguments, done.json)
        return done

    return call
