"""What an ingest and a re-index cost when a source has grown by 1 %: `python -m benchmarks.ingest_delta`.

Drawn characters, written as files. Files that are opened below the source are counted, and their bytes. The
encoder is small and untrained, so that the times are those of reading and writing.
"""

import argparse
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dml.config import EncoderConfig, IndexConfig, IngestConfig, NoSplit, PreprocessingConfig
from dml.data.dataset import find_dataset, fragments
from dml.data.ingest import ingest_source
from dml.data.sources.glyphs import open_glyphs
from dml.embedding.embed import embed
from dml.embedding.table import part_uris
from dml.models.encoder import Encoder
from dml.models.package import save_package
from dml.refs import DatasetRef, EmbeddingsRef
from dml.retrieval.build import build_index

T = TypeVar("T")
PER_CLASS = 50
_SETTLED_S = 0.2
_opened: list[str] = []


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open" and isinstance(arguments[0], str) and arguments[0].endswith(".png"):
        _opened.append(arguments[0])


def write_files(folder: Path, numbers: range) -> None:
    """Drawn characters as class folders: first one of each class, then a second one of each, and so on."""
    source = open_glyphs(f"glyphs:classes=400,per_class={PER_CLASS * 2}")
    samples = sorted(source.list().samples, key=lambda sample: (sample.id.split("/")[1], sample.id))
    for number in numbers:
        sample = samples[number]
        path = folder / sample.id.replace("/", "/image-")
        path.with_suffix(".png").parent.mkdir(parents=True, exist_ok=True)
        path.with_suffix(".png").write_bytes(source.read(sample.locator))


def files_of(dataset: DatasetRef) -> set[str]:
    return {fragment.name for fragment in fragments(dataset)}


def parts_of(table: EmbeddingsRef) -> set[bytes]:
    return {Path(uri).read_bytes() for uri in part_uris(table.uri)}


def timed(what: str, run: Callable[[], T]) -> T:
    """Run, and print what was read and how long it took."""
    _opened.clear()
    began, cpu_began = time.perf_counter(), time.process_time()
    result = run()
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu_began
    size = sum(os.stat(path).st_size for path in _opened)
    print(f"{what:<44} {len(_opened):>7} {size / 1e6:>8.1f} {seconds:>8.1f} {cpu_s:>8.1f}", flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20_000, help="files of the source, at most 40,000")
    parser.add_argument("--ingest-only", action="store_true", help="embed and index nothing")
    arguments = parser.parse_args()
    sys.addaudithook(_note)
    with tempfile.TemporaryDirectory() as folder:
        source, store = Path(folder, "images"), f"{folder}/store"
        write_files(source, range(arguments.images))
        time.sleep(_SETTLED_S)  # else the files last written would be read again
        config = IngestConfig(name="glyphs", source=str(source), split=NoSplit())
        print(f"{'':<44} {'files':>7} {'MB read':>8} {'seconds':>8} {'CPU s':>8}")

        def ingested(*, reread: bool = False) -> DatasetRef:
            return ingest_source(config, store, reread=reread).dataset

        first = timed(f"ingest of {arguments.images} images, first", ingested)
        timed("ingest, unchanged", ingested)
        tables = [] if arguments.ingest_only else [_embedded(store, first, None, "first")]
        write_files(source, range(arguments.images, arguments.images + arguments.images // 100))
        grown = timed("ingest, 1 % more", ingested)
        print(f"  {len(files_of(grown) & files_of(first))} of {len(files_of(first))} files are shared")
        if tables:
            table = _embedded(store, grown, tables[0], "1 % more")
            same = len(parts_of(table) & parts_of(tables[0]))
            print(f"  {same} of {len(part_uris(tables[0].uri))} parts are copied as they are")
        timed("ingest, everything read again", lambda: ingested(reread=True))
        shutil.rmtree(f"{store}/datasets")
        full = timed("ingest of all in a new store", ingested)
        assert full.fingerprint == grown.fingerprint
        assert find_dataset(store, "glyphs") == full


def _embedded(store: str, dataset: DatasetRef, previous: EmbeddingsRef | None, what: str) -> EmbeddingsRef:
    encoder = Encoder(EncoderConfig(dim=64), channels=1, seed=0)
    preprocessing = PreprocessingConfig(color="L", resize=28, crop=28, mean=(0.5,), std=(0.5,))
    package = save_package(store, encoder, preprocessing)
    table = timed(f"embed, {what}", lambda: embed(store, package, dataset, previous=previous, num_workers=1))
    timed(f"index, {what}", lambda: build_index(store, "glyphs", table, IndexConfig(), model="glyphs/1"))
    return table


if __name__ == "__main__":
    main()
