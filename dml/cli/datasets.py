"""`dml ingest` and `dml datasets`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dml.cli.app import Json, Settings, Store, Who, Workers, store_to_list, store_uri, verb, who_or_user
from dml.cli.output import columns_of, emit, listed, print_table, visible, what_is_damaged
from dml.errors import DmlError, InvalidSetting, MissingArtifact, without_password
from dml.names import SourceLayout

if TYPE_CHECKING:
    from dml.reports import CorrectionList, DatasetList, IngestReport, ListedDataset


@verb()
def ingest(
    source: Annotated[str, typer.Argument(help="folder, zip, manifest (.csv, .parquet), or `glyphs:`")],
    name: Annotated[str | None, typer.Option(help="name of what is made; default: from the source")] = None,
    layout: Annotated[SourceLayout, typer.Option(help="how the source is laid out")] = "auto",
    split: Annotated[
        str | None,
        typer.Option(
            help="official | classes:0.5 (share held out) | none | ATTRIBUTE:a,b (these values held out) | "
            "ATTRIBUTE:10 (the last ten, if 10 is no value); label:a,b holds out these classes. "
            "Default: as before, else as the layout's field does"
        ),
    ] = None,
    reread: Annotated[
        bool,
        typer.Option(
            "--reread", help="read every image, also those whose size, times or ETag have not changed"
        ),
    ] = False,
    settings: Settings = None,
    workers: Workers = None,
    store: Store = None,
    as_json: Json = False,
) -> "IngestReport":
    """Make a validated dataset version from labelled images; a class keeps its side in every version."""
    shown = without_password(source)
    if "://" in source and "?" in shown:
        shown = f"{shown.partition('?')[0]}?***"  # a query may be a signature
    print(f"listing {shown}", file=sys.stderr, flush=True)
    from dml.config import parse_ingest
    from flows.ingest import ingest_flow
    from flows.policy import run

    config = parse_ingest(
        {
            "name": name_of(source) if name is None else name,
            "source": source,
            "layout": layout,
            "split": split,
            "num_workers": workers,
        }
    ).overridden(settings or [])
    report = run(ingest_flow, config, store_uri(store), reread=reread)
    return emit(report, as_json, _show_ingest)


def _show_ingest(report: "IngestReport") -> None:
    ref = report.dataset
    print_table(str(ref), [{"split": key, **size.model_dump()} for key, size in ref.splits.items()])
    for note in report.notes:
        print(visible(note))
    if report.refused:
        refused = [refusal.model_dump() for refusal in report.refused]
        print_table(f"in quarantine, all listed in {report.quarantine}", refused)
    print(report.changes)
    print(f"{ref.rows} rows, {ref.classes} classes, {ref.quarantined} in quarantine: {ref.uri}")
    if report.outcome == "current":
        print(f"nothing to do: the source gives {ref}, which is the current version already")
    elif report.outcome == "found":
        print(f"{ref} was there before, and is the current version again")
    elif report.outcome == "repaired":
        print(f"{ref} was damaged, and was made again")


@verb()
def datasets(store: Store = None, as_json: Json = False) -> "DatasetList":
    """List the store's dataset versions; `*` marks the one that the name alone means."""
    from dml.data.dataset import list_versions
    from dml.reports import DatasetList, ListedDataset

    damaged: list[DmlError] = []
    versions = list_versions(store_to_list(store), damaged)
    answer = DatasetList(datasets=[listed(ListedDataset, version) for version in versions])
    return emit(answer, as_json, _show_datasets, error=what_is_damaged(damaged))


def _show_datasets(answer: "DatasetList") -> None:
    print_table("datasets", [_row_of(dataset) for dataset in answer.datasets])


def _row_of(dataset: "ListedDataset") -> dict[str, str | int]:
    splits = sorted(dataset.splits.items(), reverse=True)
    return {
        "dataset": str(dataset),
        **columns_of(dataset.current, dataset.created),
        "rows": dataset.rows,
        "classes": dataset.classes,
        **{split: f"{size.rows} rows, {size.classes} classes" for split, size in splits},
        "quarantined": dataset.quarantined,
        "attributes": ", ".join(dataset.attributes),
    }


@verb()
def correct(
    dataset: Annotated[str, typer.Argument(help="dataset NAME")],
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="items, as `dml search` shows them")],
    label: Annotated[str | None, typer.Option(help="the class that they belong to")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="leave them out")] = False,
    revoke: Annotated[bool, typer.Option("--revoke", help="take their corrections back")] = False,
    who: Who = None,
    store: Store = None,
    as_json: Json = False,
) -> "CorrectionList":
    """Correct items' labels or leave items out, in a new version; later ingests of the source keep it."""
    from dml.data.corrections import correct_labels, list_corrections, remove_items, revoke_correction
    from dml.reports import CorrectionList

    if (label is not None) + remove + revoke != 1:
        raise InvalidSetting("Say what is right: one of --label LABEL, --remove and --revoke.")
    if revoke and who is not None:
        raise InvalidSetting("--who says who corrects; what is taken back is no longer listed. Leave it out.")
    root, by = store_to_list(store), who_or_user(who)
    if label is not None:
        ref = correct_labels(root, dataset, dict.fromkeys(ids, label), who=by)
    elif remove:
        ref = remove_items(root, dataset, ids, who=by)
    else:
        for id_ in ids:
            ref = revoke_correction(root, dataset, id_)
    answer = CorrectionList(dataset=ref, corrections=list_corrections(root, dataset))
    return emit(answer, as_json, _show_corrections)


@verb()
def corrections(
    dataset: Annotated[str, typer.Argument(help="dataset NAME")], store: Store = None, as_json: Json = False
) -> "CorrectionList":
    """List the corrections of a dataset by people: who, when, and what was there before."""
    from dml.data.corrections import list_corrections
    from dml.data.dataset import find_dataset
    from dml.reports import CorrectionList

    root = store_to_list(store)
    answer = CorrectionList(dataset=find_dataset(root, dataset), corrections=list_corrections(root, dataset))
    return emit(answer, as_json, _show_corrections)


def _show_corrections(answer: "CorrectionList") -> None:
    rows = [
        {
            "item": visible(correction.id),
            "label": "removed" if correction.label is None else visible(correction.label),
            "before": visible(correction.former_label),
            "who": visible(correction.who),
            "when": correction.when,
        }
        for correction in answer.corrections
    ]
    print_table("corrections", rows)
    ref = answer.dataset
    print(f"{ref}: {ref.rows} rows, {ref.classes} classes")


def is_place(store: str, text: str) -> bool:
    """Whether a text names images that lie somewhere, and not a dataset or vectors of the store.

    A name that the store knows is that, also where a folder is called so.
    """
    from dml.names import is_name, split_version

    if not is_name(text.partition("@")[0]):
        return True
    from dml.data.dataset import has_dataset
    from dml.embedding.imported import has_vectors

    known = has_dataset(store, split_version(text)[0]) or has_vectors(store, text)
    if known and Path(text).is_dir():
        print(
            f"{text} is what the store has of that name, and the folder is not read again; dml index "
            f"./{text} reads it",
            file=sys.stderr,
        )
    return not known and Path(text).exists()


def ingest_place(store: str, place: str, *, has_embedder: bool, num_workers: int | None) -> str:
    """Ingest images from where they lie, or take in what is new there; returns the dataset's name.

    Args:
        store: the store's URI.
        place: a folder, a zip or an s3:// folder; the dataset is named after it.
        has_embedder: whether the user says what shall embed them; if not, a model of that name must be there.
        num_workers: of the ingest; None: as the size asks.

    Raises:
        MissingArtifact: there is nothing at the place.
        InvalidSetting: the name is that of a dataset from another source, or nothing is there to embed.
    """
    from dml.config import parse_ingest
    from dml.data.dataset import has_dataset
    from dml.data.last_ingest import last_ingest
    from dml.data.sources.detect import absolute
    from flows.ingest import ingest_flow
    from flows.policy import run

    source = str(Path(place).expanduser()) if "://" not in place else place
    if "://" not in place and not Path(source).exists():
        raise MissingArtifact(
            f"What is indexed must be a name of the store, or a folder or zip of images; there is no {place}."
            " `dml datasets` lists the names."
        )
    name = name_of(source, remedy=f"Give one: dml ingest {place} --name NAME, then dml index NAME.")
    is_known = has_dataset(store, name)
    if is_known:
        config = last_ingest(store, name)
        if config.source != absolute(source):
            raise InvalidSetting(
                f"{place} would be the dataset {name}, which is of another source, {config.source}. Index "
                f"that by its name, dml index {name}, or give this one another: dml ingest {place} --name "
                "OTHER, then dml index OTHER."
            )
    elif not has_embedder:
        raise InvalidSetting(
            f"Images that no model was trained on need something that embeds them; got only {place}. Name a "
            f"network: dml index {place} --embedder timm:resnet50; or train one: dml ingest {place}, then "
            f"dml train {name}."
        )
    else:
        config = parse_ingest({"name": name, "source": source, "num_workers": num_workers})
    print(f"ingesting {place} as the dataset {name}", file=sys.stderr, flush=True)
    report = run(ingest_flow, config, store)
    for note in report.notes:
        print(visible(note), file=sys.stderr)
    if report.refused:
        print(f"{report.dataset.quarantined} in quarantine, listed in {report.quarantine}", file=sys.stderr)
    return name


def name_of(source: str, *, remedy: str = "Give one with --name.") -> str:
    """A dataset name from a source: `images/Omniglot_v1.zip` gives `omniglot_v1`, `glyphs:...` `glyphs`."""
    from dml.names import suggest_name

    stem = source.split(":")[0] if source.startswith("glyphs:") else Path(source.rstrip("/")).stem
    name = suggest_name(stem)
    if name is None:
        raise InvalidSetting(f"The dataset needs a name, and {source!r} suggests none. {remedy}")
    return name
