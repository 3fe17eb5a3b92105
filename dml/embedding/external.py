"""Imports the vectors of another program: a file in, a published table of items without images out."""

from collections.abc import Collection, Sequence
from pathlib import Path

from dml import storage
from dml.data.dataset import has_dataset
from dml.data.forgotten import forgotten_ids
from dml.data.quarantine import count_refusals, latest_quarantine, summarize_problems, write_quarantine
from dml.data.sources.sample import Problem
from dml.embedding.imported import FOLDER, find_vectors
from dml.embedding.imported_table import ImportedTable
from dml.embedding.usable_rows import UsableRows
from dml.embedding.vector_files import Unchanged, VectorFile, open_vectors
from dml.embedding.vector_items import read_items
from dml.errors import ForgottenMeanwhile, InvalidData, InvalidSetting, TooManyRefused
from dml.names import versioned
from dml.progress import Ticker
from dml.refs import EmbeddingsRef, ExternalModelRef
from dml.reports import ImportReport

_BLOCK_BYTES = 64 << 20
"""Of float32 vectors that are held at a time; a part of the table."""


def import_vectors(
    store: str,
    name: str,
    vectors: Path,
    *,
    ids: Path | None = None,
    attributes: Path | None = None,
    embedder: str | None = None,
    license: str | None = None,
    max_quarantined: float = 0.05,
    block_bytes: int = _BLOCK_BYTES,
) -> ImportReport:
    """Publish vectors from a file under a name, to be indexed, searched and evaluated without images.

    The vectors are streamed; ids, labels and attributes are held in memory. The same content gives the same
    version, published once.

    Args:
        store: the store's URI.
        name: what `dml index` and the like will call them.
        vectors: (N, D) numbers of any type, in a .npy, .parquet or .h5 file.
        ids: N ids: the column `id` of a .csv, .tsv or .parquet table, or a .txt file of one id a line. None:
            the column `id` of the vectors' own table, else that of `attributes`, else the rows' numbers.
        attributes: a .csv, .tsv or .parquet table with a column `id`, or N rows in the vectors' order; a
            column `label` says which items are alike. None: the other columns of the vectors' own table.
        embedder: what made the vectors; None: "vectors:NAME".
        license: the text of its license.
        max_quarantined: the largest share of the N vectors that may be refused.
        block_bytes: of vectors that are held at a time.

    Returns:
        The table, and what was refused, normalised and left out.

    Raises:
        MissingArtifact: a file is not there.
        InvalidSetting: a name that a dataset has, or a file of another kind.
        InvalidData: a file is damaged, holds something else, is changed while it is read, or there are other
            than N ids.
        TooManyRefused: more than `max_quarantined` of the vectors; nothing is published.
        ForgottenMeanwhile: items were forgotten meanwhile; nothing is published.
    """
    if not 0 <= max_quarantined <= 1:
        raise InvalidSetting(f"max_quarantined must be a share, [0, 1]; got {max_quarantined}.")
    folder, quarantine = _free_folder(store, name), latest_quarantine(store, name)
    files = Unchanged([path for path in (vectors, ids, attributes) if path is not None])
    forgotten = forgotten_ids(store, name, folder=FOLDER)
    with Ticker("import") as ticker:
        ticker.begin("reading ids and attributes")
        file = open_vectors(vectors)
        items, notes = read_items(file, ids, attributes)
        rows = UsableRows(items, str(vectors), forgotten)
        model = _external_model(embedder or f"vectors:{name}", file.dim, license)
        storage.mark_store(store)
        with storage.staged(storage.join(folder, "import")) as staged:
            ticker.begin("vectors", "rows", file.num_rows)
            table = ImportedTable(staged, str(vectors), model)
            most_refused = int(max_quarantined * file.num_rows)
            for block in file.blocks(max(1, block_bytes // (4 * file.dim))):
                table.write(*rows.of_block(block))
                ticker.count(len(block.vectors))
                if len(rows.problems) > most_refused:
                    break
            files.require()
            write_quarantine(quarantine, rows.problems)
            _require_few_refused(rows.problems, file, max_quarantined, quarantine)
            _require_a_row(table, file, rows.problems)
            ticker.begin("publishing", "files")
            former = storage.list_versions(folder)
            ref = table.publish(folder, name, rows.problems)
    if forgotten_ids(store, name, folder=FOLDER) != forgotten:  # `dml forget` may not have seen it
        _refuse_forgotten(ref, former)
    was_current = _point(folder, ref)
    if rows.num_forgotten:
        notes = [*notes, f"{rows.num_forgotten} forgotten items are left out"]
    return ImportReport(
        embeddings=find_vectors(store, versioned(name, ref.version)),
        outcome="current" if was_current else "made",
        normalized=rows.num_normalized,
        refused=count_refusals(rows.problems),
        quarantine=quarantine,
        notes=notes,
    )


def _free_folder(store: str, name: str) -> str:
    folder = storage.named_folder(store, FOLDER, name)
    if has_dataset(store, name):
        raise InvalidSetting(
            f"Imported vectors must have a name of their own; {name!r} is a dataset. Give another."
        )
    return folder


def _external_model(spec: str, dim: int, license: str | None) -> ExternalModelRef:
    fingerprint = storage.digest_of("external", spec, dim)
    return ExternalModelRef(fingerprint=fingerprint, spec=spec, dim=dim, license=license)


def _require_few_refused(problems: Sequence[Problem], file: VectorFile, most: float, quarantine: str) -> None:
    if len(problems) > int(most * file.num_rows):
        raise TooManyRefused(
            f"At most {most:.4g} of the vectors may be refused; {len(problems)} or more of the "
            f"{file.num_rows} of {file.path} are: {summarize_problems(problems)}. They are listed in "
            f"{quarantine}. Mend the file, or allow it: --max-quarantined 1."
        )


def _require_a_row(table: ImportedTable, file: VectorFile, problems: Sequence[Problem]) -> None:
    if not table.num_rows:
        raise InvalidData(
            f"{file.path} must hold a vector that can be used; none of {file.num_rows} can: "
            f"{summarize_problems(problems)}."
        )


def _refuse_forgotten(ref: EmbeddingsRef, former: Collection[str]) -> None:
    """Take back a version, and raise; one that was there before stays: `dml forget` has seen it."""
    if ref.version not in former:
        storage.remove(ref.uri)
    raise ForgottenMeanwhile(
        f"Imported vectors must not hold what is forgotten; items of {ref.items.name} were forgotten while "
        "they were imported. Nothing was published; import them again."
    )


def _point(folder: str, ref: EmbeddingsRef) -> bool:
    """Make it the current version; whether it was so before."""
    if storage.current(folder) == ref.version:
        return True
    storage.point(folder, ref.version)
    return False
