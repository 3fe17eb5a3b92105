"""`dml`: one command per verb. It parses, calls a flow or a room, and prints a table (or one JSON object).

Exit status: 0 done, 2 the user's mistake (one message, no traceback), 1 ours. What a verb does not need is
not imported: searching must not wait for Ray, MLflow or Prefect.
"""

import json
import logging
import re
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any, TextIO

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperCommand, TyperOption

from dml.errors import DmlError, InvalidSetting, MissingArtifact
from dml.settings import store_uri, tracking_uri

_output: ContextVar[TextIO | None] = ContextVar("output", default=None)

app = typer.Typer(
    help="Deep metric learning end to end: labelled images in, a similarity search out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

Store = Annotated[
    str | None, typer.Option("--store", help="local folder or s3:// URI; else DML_STORE, else ./dml-store")
]
Json = Annotated[bool, typer.Option("--json", help="one JSON object on stdout, logs on stderr")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="change a setting: path.to.key=value; repeatable")
]
Preset = Annotated[str, typer.Option(help="experiment to start from; `dml presets` lists them")]
Workers = Annotated[int | None, typer.Option("--workers", min=1, help="default: as the size asks")]


@app.command()
def demo(
    source: Annotated[str, typer.Option(help="any source that `dml ingest` takes")] = "glyphs:",
    preset: Preset = "glyphs",
    settings: Settings = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Run the whole road: ingest, train, evaluate, register, embed, index, search."""
    from dml.config import parse_ingest
    from dml.presets import experiment
    from flows.end_to_end import end_to_end_flow
    from flows.policy import run

    ingest_config = parse_ingest({"name": _name_of(source), "source": source})
    config = experiment(preset).overridden(settings or [])
    report = run(end_to_end_flow, ingest_config, config, store_uri(store))
    if as_json:
        _print_json(report.model_dump(mode="json"))
        return
    evaluation = report.training.evaluation
    _print_table("recall on classes never seen in training", evaluation.table())
    _print_table("seconds", [report.seconds])
    print(f"index {report.index.name}: recall@10 {report.index.recall:.3f} against exact search")
    print(f"model {report.training.model.name}/{report.training.model.version}: ", end="")
    print(f"{report.training.model.alias} ({report.training.model.reason})")
    print(f"gallery of queries and answers: {report.gallery}")
    print("\nnext:")
    print(f"  dml search IMAGE --index {report.index.name}")
    print(f"  dml train {report.dataset.name} --preset {preset} --set training.num_steps=2000")
    print("  dml up    # the same road under Prefect and MLflow, with their pages")


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
            "name": name or _name_of(source),
            "source": source,
            "layout": layout,
            "split": _parse_split(split),
            "num_workers": workers,
        }
    )
    ref = run(ingest_flow, config, store_uri(store))
    splits = {key: size.model_dump() for key, size in ref.splits.items()}
    if as_json:
        _print_json(
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
    _print_table(f"{ref.name}@{ref.version}", [{"split": key, **size} for key, size in splits.items()])
    print(f"{ref.rows} rows, {ref.classes} classes, {ref.quarantined} in quarantine: {ref.uri}")


@app.command()
def train(
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION")],
    preset: Preset = "smoke",
    config: Annotated[Path | None, typer.Option(help="a JSON file with a whole experiment")] = None,
    settings: Settings = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="training workers; default: the preset's")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Train an embedding, evaluate and register it; it becomes champion only if it is better."""
    from dml.config import read_experiment
    from dml.presets import experiment
    from flows.policy import run
    from flows.train import train_flow

    start = read_experiment(config) if config else experiment(preset)
    changes = [*(settings or []), *([f"training.num_workers={workers}"] if workers else [])]
    report = run(train_flow, dataset, config=start.overridden(changes), store=store_uri(store))
    model, trained = report.model, report.trained
    if as_json:
        _print_json(
            {
                "model": model.name,
                "version": model.version,
                "promoted": model.promoted,
                "alias": model.alias,
                "reason": model.reason,
                "metrics": report.evaluation.metrics,
                "baselines": report.evaluation.baselines,
                "images_per_second": trained.images_per_second,
                "data_wait": trained.data_wait,
                "loss": trained.loss,
                "package": trained.package.uri,
            }
        )
        return
    _print_table(f"{dataset}, split test", report.evaluation.table())
    print(f"{trained.images_per_second:.0f} images/s, {trained.data_wait:.0%} of the time waiting for data")
    print(f"model {model.name}/{model.version} is {model.alias}: {model.reason}")


@app.command()
def evaluate(
    model: Annotated[str, typer.Argument(help="NAME (its champion), NAME@ALIAS or NAME/VERSION")],
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, as recall_at=[1,10] or few_shot.ways=5; repeatable"),
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Judge a registered model on a dataset's test split, beside its baselines."""
    from dml.config import EvaluationConfig
    from flows.evaluate import evaluate_flow
    from flows.policy import run

    config = EvaluationConfig().overridden(settings or [])
    report = run(evaluate_flow, model, dataset, config, store=store_uri(store))
    if as_json:
        _print_json({"model": model, "metrics": report.metrics, "baselines": report.baselines})
        return
    _print_table(f"{model} on {dataset}, split test", report.table())
    if report.slices():
        _print_table("by slice of the queries", report.slices())


class SeveralWords(TyperCommand):
    """`--losses margin triplet` means `--losses margin --losses triplet`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        several = {
            name
            for option in self.params
            if isinstance(option, TyperOption) and option.multiple and option.nargs == 1
            for name in option.opts
        }
        spelt: list[str] = []
        current, words = "", 0
        for word in args:
            if word.startswith("--"):
                current, words = (word if word in several else ""), 0
            elif current:
                words += 1
                if words > 1:
                    spelt.append(current)
            spelt.append(word)
        return super().parse_args(ctx, spelt)


@app.command(cls=SeveralWords)
def bench(
    datasets: Annotated[list[str] | None, typer.Option(help="NAME or NAME@VERSION, several")] = None,
    losses: Annotated[
        list[str] | None, typer.Option(help="LOSS or LOSS/MINING, several; none: each preset is a row")
    ] = None,
    minings: Annotated[
        list[str] | None, typer.Option("--mining", help="several; for losses that take one and name none")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="runs of each row; default 3")] = None,
    chosen: Annotated[
        list[str] | None,
        typer.Option("--preset", help="where rows start from: NAME, or DATASET=NAME for one dataset"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="path.to.key=value; WHERE:path.to.key=value for one dataset or loss"),
    ] = None,
    baselines: Annotated[bool, typer.Option(help="rows of raw pixels and softmax")] = True,
    parallel: Annotated[int | None, typer.Option(min=1, help="cells at a time; default: the GPUs")] = None,
    reproduce: Annotated[
        str | None, typer.Option(help="a published table by its own protocol, as confusezius-cub200")
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            help="two rows for the paired test: LOSS, LOSS/MINING, or either with @SEED; repeatable"
        ),
    ] = None,
    compare_metric: Annotated[str | None, typer.Option(help="of single queries; default recall_at_1")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Run a grid of losses, datasets and seeds, and lay it out as one table; killed, it goes on."""
    from dml.bench.layout import columns_of
    from dml.bench.reproduce import reproduction
    from dml.config import parse_bench
    from flows.bench import bench_flow
    from flows.policy import run

    asked = {
        "datasets": datasets,
        "losses": losses,
        "minings": minings,
        "seeds": seeds,
        "presets": chosen,
        "settings": settings,
        "parallel": parallel,
        "compare": _pairs(compare or []),
        "compare_metric": compare_metric,
    }
    given = {name: value for name, value in asked.items() if value not in (None, [])}
    if not baselines:
        given["baselines"] = []
    config = parse_bench(given) if reproduce is None else reproduction(reproduce, given)
    report = run(bench_flow, config, store=store_uri(store))
    if as_json:
        _print_json(report.model_dump(mode="json"))
        return
    for name, rows in report.tables.items():
        columns = columns_of(rows)
        _print_table(name, [{column: row.get(column, "") for column in columns} for row in rows])
        for note in report.notes[name]:
            print(f"published, {note}")
    if report.comparisons:
        tests = [{key: value for key, value in row.items() if key != "page"} for row in report.comparisons]
        _print_table("paired tests on the same queries", tests)
        for row in report.comparisons:
            print(f"open {row['page']}")
    print(f"{len(report.cells)} cells: {report.uri}/table.md, table.csv")


@app.command()
def report(
    model: Annotated[str, typer.Argument(help="NAME (its champion), NAME@ALIAS or NAME/VERSION")],
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION")],
    against: Annotated[
        str | None, typer.Option(help="another model: which is better on the same queries, and where?")
    ] = None,
    split: Annotated[str, typer.Option(help="test, or train to look for wrong labels there")] = "test",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="key=value, as failures=30 or evaluation.role_attribute=role; repeatable"),
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Write a page of pictures: answers, failures, suspected labels, map, thresholds, training.

    With --against it compares two models: the paired tests, and the classes and queries that decide them.
    """
    from dml.config import ReportConfig
    from flows.policy import run
    from flows.report import report_flow

    config = ReportConfig().overridden([f"split={split}", *(settings or [])])
    ref = run(report_flow, model, dataset, config, store=store_uri(store), against=against)
    if as_json:
        _print_json(ref.model_dump(mode="json"))
        return
    if against is not None:
        from dml.report.versus import duel_row, read_duels

        rows = [duel_row(duel, ("first", "second")) for duel in read_duels(ref)]
        _print_table(f"{model} (first) and {against} (second) on the same queries", rows)
    _print_table(ref.title, [{"picture": name, "shows": text} for name, text in ref.pictures.items()])
    print(f"open {ref.page}")


@app.command()
def circles(
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION; its split train is learnt")],
    losses: Annotated[
        list[str] | None,
        typer.Option("--loss", help="repeatable; default: softmax, arcface, triplet, margin"),
    ] = None,
    show: Annotated[str | None, typer.Option(help="draw this dataset's rows; default: the same")] = None,
    settings: Settings = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Train a two-dimensional embedding for each loss, and draw them side by side as circles."""
    from flows.circles import circles_flow
    from flows.policy import run

    ref = run(circles_flow, dataset, losses=losses, settings=settings, show=show, store=store_uri(store))
    if as_json:
        _print_json(ref.model_dump(mode="json"))
        return
    print(f"open {ref.page}")


@app.command()
def embed(
    model: Annotated[str, typer.Argument(help="NAME (its champion), NAME@ALIAS or NAME/VERSION")],
    dataset: Annotated[str, typer.Argument(help="NAME or NAME@VERSION")],
    workers: Workers = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Embed a whole dataset with a registered model."""
    from flows.embed import embed_flow
    from flows.policy import run

    ref = run(embed_flow, model, dataset, store_uri(store), workers)
    if as_json:
        _print_json(ref.model_dump(mode="json"))
        return
    print(f"{ref.rows} embeddings of {ref.dim} dimensions: {ref.uri}")


@app.command()
def index(
    name: Annotated[str, typer.Argument(help="the index's name")],
    model: Annotated[str, typer.Option(help="NAME (its champion), NAME@ALIAS or NAME/VERSION")],
    dataset: Annotated[str, typer.Option(help="NAME or NAME@VERSION")],
    factory: Annotated[str, typer.Option(help="auto, or any Faiss index_factory string")] = "auto",
    workers: Workers = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Build an index over a dataset's embeddings and make it the one that searches use."""
    from dml.config import IndexConfig
    from flows.index import index_flow
    from flows.policy import run

    config = IndexConfig(factory=factory)
    ref = run(index_flow, name, model, dataset, config, store_uri(store), workers)
    if as_json:
        _print_json(ref.model_dump(mode="json"))
        return
    print(f"{ref.name}@{ref.version}: {ref.rows} rows, {ref.factory}, recall@10 {ref.recall:.3f}: {ref.uri}")


@app.command()
def search(
    image: Annotated[Path, typer.Argument(help="the query's image file")],
    name: Annotated[str | None, typer.Option("--index", help="default: the store's only index")] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="how many answers")] = 10,
    where: Annotated[
        list[str] | None,
        typer.Option(help="attribute=value, a=x|y, a!=x, a>=1, a<2; repeatable, all must hold"),
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="where to write the picture of query and answers")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Find the most similar items of an index, embedded by exactly the package that made it."""
    from dml.serving import answers

    try:
        content = image.read_bytes()
    except OSError as error:
        raise MissingArtifact(
            f"The query must be a readable image file; {image}: {error.strerror}."
        ) from error
    found = answers.answer(store_uri(store), name, content, k=k, where=where or [])
    target = picture or Path("dml-search.png")
    try:
        target.write_bytes(answers.draw(found, content))
    except OSError as error:
        raise InvalidSetting(
            f"--picture must be a file that can be written; {target}: {error.strerror}."
        ) from error
    if as_json:
        _print_json({**found.to_json(), "picture": str(target.resolve())})
        return
    _print_table(f"{found.index.name}@{found.index.version}: {found.plan}", found.rows())
    print(f"picture: {target}")


@app.command()
def datasets(store: Store = None, as_json: Json = False) -> None:
    """List the store's dataset versions."""
    from dml.data.dataset import list_datasets

    refs = list_datasets(store_uri(store))
    if as_json:
        _print_json({"datasets": [ref.model_dump(mode="json") for ref in refs]})
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
    _print_table("datasets", rows)


@app.command()
def models(store: Store = None, as_json: Json = False) -> None:
    """List the registry's model versions."""
    from dml.registry.catalog import list_models

    refs = list_models(tracking_uri(store_uri(store)))
    if as_json:
        _print_json({"models": [ref.model_dump(mode="json") for ref in refs]})
        return
    rows = [
        {
            "model": f"{ref.name}/{ref.version}",
            "alias": ref.alias or "",
            **{key: ref.metrics[key] for key in ("recall_at_1", "map_at_r") if key in ref.metrics},
            "reason": ref.reason,
        }
        for ref in refs
    ]
    _print_table("models", rows)


@app.command()
def indexes(store: Store = None, as_json: Json = False) -> None:
    """List the indexes that searches use."""
    from dml.retrieval.index import list_indexes

    refs = list_indexes(store_uri(store))
    if as_json:
        _print_json({"indexes": [ref.model_dump(mode="json") for ref in refs]})
        return
    rows = [
        {
            "index": f"{ref.name}@{ref.version}",
            "rows": ref.rows,
            "factory": ref.factory,
            "recall@10": ref.recall,
            "dataset": f"{ref.embeddings.dataset.name}@{ref.embeddings.dataset.version}",
            "package": ref.embeddings.package.version,
        }
        for ref in refs
    ]
    _print_table("indexes", rows)


@app.command()
def presets(as_json: Json = False) -> None:
    """List the experiments to start from."""
    from dml.presets import names

    if as_json:
        _print_json({"presets": names()})
        return
    _print_table("presets", [{"preset": name, "what for": text} for name, text in names().items()])


@app.command()
def up(
    prefect_port: Annotated[int, typer.Option(help="of Prefect's server")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="of MLflow's server")] = 5000,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Start Prefect (server, worker, deployments) and MLflow here; Ctrl-C stops it all."""
    from dml.up import run_local_stack

    run_local_stack(store_uri(store), prefect_port=prefect_port, mlflow_port=mlflow_port, as_json=as_json)


def _name_of(source: str) -> str:
    """A dataset name from a source: `images/Omniglot_v1.zip` gives `omniglot_v1`, `glyphs:...` `glyphs`."""
    stem = source.split(":")[0] if source.startswith("glyphs:") else Path(source.rstrip("/")).stem
    name = re.sub(r"[^a-z0-9._-]", "-", stem.lower()).strip("._-")
    if not name:
        raise InvalidSetting(f"The dataset needs a name, and {source!r} suggests none. Give one with --name.")
    return name


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    if len(words) % 2:
        raise InvalidSetting(f"--compare takes two rows, the first against the second; got {words}.")
    return list(zip(words[::2], words[1::2], strict=True))


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


def _print_json(content: Mapping[str, Any]) -> None:
    print(json.dumps(content), file=_output.get())


def _print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    table = Table(title=title, title_justify="left")
    columns = list(dict.fromkeys(column for row in rows for column in row))
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float) for row in rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def _cell(value: Any) -> str:
    return f"{value:.4f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def main() -> None:
    """Run the command line; every error becomes the exit status that says whose it is."""
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("dml").setLevel(logging.INFO)
    as_json = "--json" in sys.argv
    _output.set(sys.stdout)
    try:
        # Stdout is for the answer alone: what libraries and Ray's workers print goes where the logs go.
        with redirect_stdout(sys.stderr) if as_json else nullcontext():
            app()
    except DmlError as error:
        print(f"error: {error}", file=sys.stderr)
        if as_json:
            _print_json({"error": str(error)})
        sys.exit(2)


if __name__ == "__main__":
    main()
