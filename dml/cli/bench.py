"""`dml bench`."""

from typing import TYPE_CHECKING, Annotated

import typer

from dml.cli.app import Json, SeveralWords, Store, store_uri, verb
from dml.cli.output import emit, print_table
from dml.errors import InvalidSetting

if TYPE_CHECKING:
    from dml.reports import BenchReport


@verb(cls=SeveralWords)
def bench(
    datasets: Annotated[list[str] | None, typer.Option(help="several NAME or NAME@VERSION")] = None,
    losses: Annotated[
        list[str] | None, typer.Option(help="several; LOSS or LOSS/MINING; default: each preset is a row")
    ] = None,
    minings: Annotated[
        list[str] | None, typer.Option(help="several; for losses that take one and name none")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="runs of each row; default 3")] = None,
    chosen: Annotated[
        list[str] | None,
        typer.Option(
            "--presets", help="several, where rows start from; NAME, or DATASET=NAME for one dataset"
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="change a setting, path.to.key=value; or WHERE:path.to.key=value, for one dataset or loss; "
            "several",
        ),
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
) -> "BenchReport":
    """Run a grid of losses, datasets and seeds, and print one table; a killed run can be resumed."""
    from dml.bench.reproduce import reproduction
    from dml.config import parse_bench
    from flows.bench import bench_flow
    from flows.policy import run

    options = {
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
    given = {name: value for name, value in options.items() if value not in (None, [])}
    if not baselines:
        given["baselines"] = []
    config = parse_bench(given) if reproduce is None else reproduction(reproduce, given)
    report = run(bench_flow, config, store=store_uri(store))
    return emit(report, as_json, _show)


def _show(report: "BenchReport") -> None:
    from dml.bench.layout import columns_of

    for name, rows in report.tables.items():
        columns = columns_of(rows)
        print_table(name, [{column: row.get(column, "") for column in columns} for row in rows])
        for note in report.notes[name]:
            print(f"published, {note}")
    if report.comparisons:
        tests = [{key: value for key, value in row.items() if key != "page"} for row in report.comparisons]
        print_table("paired tests on the same queries", tests)
        for row in report.comparisons:
            print(f"open {row['page']}")
    print(f"{len(report.cells)} cells: {report.uri}/table.md, table.csv")


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    if len(words) % 2:
        raise InvalidSetting(f"--compare takes two rows, the first against the second; got {words}.")
    return list(zip(words[::2], words[1::2], strict=True))
