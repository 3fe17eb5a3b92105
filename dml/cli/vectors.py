"""`dml import`, `dml vectors` and `dml export`: vectors that something else made or wants."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from dml.cli.app import Json, Store, store_to_list, store_uri, verb
from dml.cli.output import columns_of, emit, listed, print_table, visible, what_is_damaged
from dml.errors import DmlError

if TYPE_CHECKING:
    from dml.reports import ExportReport, ImportReport, ListedVectors, VectorsList


@verb(name="import")
def import_(
    vectors: Annotated[Path, typer.Argument(help=".npy, .parquet or .h5 file of N vectors")],
    name: Annotated[str | None, typer.Option(help="name of what is made; default: from the file")] = None,
    ids: Annotated[
        Path | None,
        typer.Option(
            help="N ids: column `id` of a .csv or .parquet, or a .txt of one a line; default: column `id` of "
            "the vectors' or the attributes' file, else the rows' numbers"
        ),
    ] = None,
    attributes: Annotated[
        Path | None,
        typer.Option(
            help=".csv or .parquet with `id`, or N rows; `label` says what is alike; default: the "
            "vectors' file"
        ),
    ] = None,
    embedder: Annotated[
        str | None, typer.Option(help="what embeds; for the reader; default: vectors:NAME")
    ] = None,
    license: Annotated[str | None, typer.Option(help="license of what embeds; for the reader")] = None,
    max_quarantined: Annotated[
        float, typer.Option(min=0, max=1, help="largest share of vectors that may be refused")
    ] = 0.05,
    store: Store = None,
    as_json: Json = False,
) -> "ImportReport":
    """Take in ready vectors, to be indexed, searched and evaluated without images."""
    from dml.cli.datasets import name_of
    from dml.embedding.external import import_vectors

    report = import_vectors(
        store_uri(store),
        name_of(str(vectors)) if name is None else name,
        vectors,
        ids=ids,
        attributes=attributes,
        embedder=embedder,
        license=license,
        max_quarantined=max_quarantined,
    )
    return emit(report, as_json, _show_import)


def _show_import(report: "ImportReport") -> None:
    ref = report.embeddings
    for note in report.notes:
        print(visible(note))
    if report.normalized:
        print(f"{report.normalized} vectors were not of unit length, and are now")
    if report.refused:
        refused = [refusal.model_dump() for refusal in report.refused]
        print_table(f"in quarantine, all listed in {report.quarantine}", refused)
    labels = f"{ref.items.classes} classes" if ref.items.classes else "no labels"
    print(f"{ref.source}: {ref.rows} vectors of {ref.dim} dimensions, {labels}: {ref.uri}")
    if report.outcome == "current":
        print("nothing to do: that is the current version already")


@verb()
def vectors(store: Store = None, as_json: Json = False) -> "VectorsList":
    """List the versions of imported vectors; `*` marks the one that the name alone means."""
    from dml.embedding.imported import list_vectors
    from dml.reports import ListedVectors, VectorsList

    damaged: list[DmlError] = []
    versions = list_vectors(store_to_list(store), damaged)
    answer = VectorsList(vectors=[listed(ListedVectors, version) for version in versions])
    return emit(answer, as_json, _show_vectors, error=what_is_damaged(damaged))


def _show_vectors(answer: "VectorsList") -> None:
    print_table("vectors", [_row_of(table) for table in answer.vectors])


def _row_of(ref: "ListedVectors") -> dict[str, str | int]:
    return {
        "vectors": ref.source,
        **columns_of(ref.current, ref.created),
        "rows": ref.rows,
        "dimensions": ref.dim,
        "classes": ref.items.classes,
        "embedder": str(ref.embedder),
        "attributes": ", ".join(ref.items.attributes),
    }


@verb()
def export(
    index: Annotated[str, typer.Argument(help="NAME (the version in use) or NAME@VERSION")],
    to: Annotated[Literal["parquet", "npy", "faiss"], typer.Option("--to", help="the files' format")],
    out: Annotated[
        Path | None, typer.Option(help="a folder that is not there yet; default: ./NAME-VERSION-FORMAT")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> "ExportReport":
    """Write an index's vectors and items as files that other programs read."""
    from dml.retrieval.export import export_index
    from dml.retrieval.gallery import Gallery, require_nothing_forgotten
    from dml.retrieval.index import find_index

    root = store_uri(store)
    ref = find_index(root, index)
    require_nothing_forgotten(root, ref, "An export")
    report = export_index(ref, to, out or Path(f"{ref.name}-{ref.version}-{to}"))
    since = Gallery.open(root, index, readonly=True).size.delta
    return emit(report.model_copy(update={"enrolled_since": since}), as_json, _show_export)


def _show_export(report: "ExportReport") -> None:
    print(f"{report.index}: {report.rows} vectors of {report.dim} dimensions: {report.folder}")
    print(f"files: {', '.join(report.files)}")
    if report.enrolled_since:
        print(
            f"not in them: {report.enrolled_since} items that were enrolled or changed since the index was "
            f"built; `dml reindex {report.index.partition('@')[0]}` builds them in"
        )
