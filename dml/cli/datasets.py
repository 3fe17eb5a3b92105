"""`dml ingest` and `dml datasets`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from dml.cli.app import Json, Store, Workers, app, print_json, print_table
from dml.errors import InvalidSetting
from dml.names import suggest_name
from dml.settings import store_uri


@app.command()
def ingest(
    source: Annotated[str, typer.Argument(help="folder, zip, manifest (.csv, .parquet), or `glyphs:`")],
    name: Annotated[str | None, typer.Option(help="the dataset's name; default: from the source")] = None,
    layout: Annotated[str, typer.Option(help="how the source is laid out")] = "auto",
    split: Annotated[
        str | None,
        typer.Option(help="official | classes:0.5 | ATTRIBUTE:10 (last values) | ATTRIBUTE:a,b (these)"),
    ] = None,
    workers: Workers = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Make a validated dataset version from labelled images."""
    from dml.config import parse_ingest
    from flows.ingest import ingest_flow
    from flows.policy import run

    config = parse_ingest(
        {
            "name": name_of(source) if name is None else name,
            "source": source,
            "layout": layout,
            "split": _parse_split(split),
            "num_workers": workers,
        }
    )
    ref = run(ingest_flow, config, store_uri(store))
    splits = {key: size.model_dump() for key, size in ref.splits.items()}
    if as_json:
        print_json(
            {
                "dataset": f"{ref.name}@{ref.version}",
                "rows": ref.rows,
                "classes": ref.classes,
                "splits": splits,
                "quarantined": ref.quarantined,
                "fingerprint": ref.fingerprint,
                "attributes": ref.attributes,
                "uri": ref.uri,
            }
        )
        return
    print_table(f"{ref.name}@{ref.version}", [{"split": key, **size} for key, size in splits.items()])
    print(f"{ref.rows} rows, {ref.classes} classes, {ref.quarantined} in quarantine: {ref.uri}")


@app.command()
def datasets(store: Store = None, as_json: Json = False) -> None:
    """List the store's dataset versions."""
    from dml.data.dataset import list_datasets

    refs = list_datasets(store_uri(store))
    if as_json:
        print_json({"datasets": [ref.model_dump(mode="json") for ref in refs]})
        return
    rows = [
        {
            "dataset": f"{ref.name}@{ref.version}",
            "rows": ref.rows,
            "classes": ref.classes,
            "quarantined": ref.quarantined,
            "attributes": ", ".join(ref.attributes),
        }
        for ref in refs
    ]
    print_table("datasets", rows)


def name_of(source: str) -> str:
    """A dataset name from a source: `images/Omniglot_v1.zip` gives `omniglot_v1`, `glyphs:...` `glyphs`."""
    stem = source.split(":")[0] if source.startswith("glyphs:") else Path(source.rstrip("/")).stem
    name = suggest_name(stem)
    if name is None:
        raise InvalidSetting(f"The dataset needs a name, and {source!r} suggests none. Give one with --name.")
    return name


def _parse_split(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    kind, colon, value = text.partition(":")
    if kind == "official" and not colon:
        return {"kind": "official"}
    if kind == "classes":
        return {"kind": "classes", **({"test_fraction": value} if colon else {})}
    if colon and value:
        values = int(value) if value.isdigit() else tuple(value.split(","))
        return {"kind": "attribute", "name": kind, "test_values": values}
    raise InvalidSetting(
        f"--split must be official, classes:FRACTION, ATTRIBUTE:COUNT or ATTRIBUTE:VALUE,VALUE; got {text!r}."
    )
