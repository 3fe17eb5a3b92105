"""`dml ingest` and `dml datasets`."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from dml.cli.app import (
    Json,
    Settings,
    Store,
    Workers,
    app,
    json_of,
    marks_of,
    print_json,
    print_json_with_error,
    print_table,
    store_to_list,
    store_uri,
    visible,
    what_is_damaged,
)
from dml.errors import DmlError, InvalidSetting, without_password

# As config.SourceLayout, which would import the whole configuration only to print a help text.
Layout = Literal[
    "auto", "folder", "omniglot", "cars196", "cub200", "sop", "mnist", "tiny-imagenet", "manifest", "glyphs"
]


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="folder, zip, manifest (.csv, .parquet), or `glyphs:`")],
    name: Annotated[str | None, typer.Option(help="the dataset's name; default: from the source")] = None,
    layout: Annotated[Layout, typer.Option(help="how the source is laid out")] = "auto",
    split: Annotated[
        str | None,
        typer.Option(
            help="official | classes:0.5 (share held out) | none | ATTRIBUTE:a,b (these values held out) | "
            "ATTRIBUTE:10 (the last ten, if 10 is no value); label:a,b holds out these classes. "
            "Default: as before, else as the layout's field does"
        ),
    ] = None,
    settings: Settings = None,
    workers: Workers = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
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
    report = run(ingest_flow, config, store_uri(store))
    ref = report.dataset
    splits = {key: size.model_dump() for key, size in ref.splits.items()}
    refused = [refusal.model_dump() for refusal in report.refused]
    if as_json:
        print_json(
            {
                "dataset": str(ref),
                "outcome": report.outcome,
                "rows": ref.rows,
                "classes": ref.classes,
                "splits": splits,
                "quarantined": ref.quarantined,
                "refused": refused,
                "quarantine": report.quarantine,
                "notes": report.notes,
                "fingerprint": ref.fingerprint,
                "attributes": ref.attributes,
                "uri": ref.uri,
            }
        )
        return
    print_table(str(ref), [{"split": key, **size} for key, size in splits.items()])
    for note in report.notes:
        print(visible(note))
    if refused:
        print_table(f"in quarantine, all listed in {report.quarantine}", refused)
    print(f"{ref.rows} rows, {ref.classes} classes, {ref.quarantined} in quarantine: {ref.uri}")
    if report.outcome == "current":
        print(f"nothing to do: the source gives {ref}, which is the current version already")
    elif report.outcome == "found":
        print(f"{ref} was there before, and is the current version again")
    elif report.outcome == "repaired":
        print(f"{ref} was damaged, and was made again")


@app.command()
def datasets(store: Store = None, as_json: Json = False) -> None:
    """List the store's dataset versions; `*` marks the one that a name alone stands for."""
    from dml.data.dataset import list_versions

    damaged: list[DmlError] = []
    versions = list_versions(store_to_list(store), damaged)
    error = what_is_damaged(damaged)
    if as_json:
        listed = [json_of(version) for version in versions]
        if error is not None:
            print_json_with_error({"datasets": listed}, error)
        print_json({"datasets": listed})
        return
    rows = [
        {
            "dataset": str(v.ref),
            **marks_of(v),
            "rows": v.ref.rows,
            "classes": v.ref.classes,
            **{
                split: f"{size.rows} rows, {size.classes} classes"
                for split, size in sorted(v.ref.splits.items(), reverse=True)
            },
            "quarantined": v.ref.quarantined,
            "attributes": ", ".join(v.ref.attributes),
        }
        for v in versions
    ]
    print_table("datasets", rows)
    if error is not None:
        raise error


def name_of(source: str) -> str:
    """A dataset name from a source: `images/Omniglot_v1.zip` gives `omniglot_v1`, `glyphs:...` `glyphs`."""
    from dml.names import suggest_name

    stem = source.split(":")[0] if source.startswith("glyphs:") else Path(source.rstrip("/")).stem
    name = suggest_name(stem)
    if name is None:
        raise InvalidSetting(f"The dataset needs a name, and {source!r} suggests none. Give one with --name.")
    return name
