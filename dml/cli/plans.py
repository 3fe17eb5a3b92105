"""`dml plan`."""

from typing import TYPE_CHECKING, Annotated

import typer

from dml.cli.app import Json, verb
from dml.cli.output import emit, print_table

if TYPE_CHECKING:
    from dml.reports import IndexOption, SizingReport


@verb()
def plan(
    rows: Annotated[str, typer.Option(help="vectors, as 250000, 1e9 or 100M")],
    dim: Annotated[int, typer.Option(help="dimensions of a vector")],
    recall: Annotated[
        float,
        typer.Option(
            min=0.5, max=1.0, help="recall@10 of searches; the share of the 10 nearest that is found"
        ),
    ] = 0.95,
    latency_ms: Annotated[float, typer.Option(help="of one query on one thread, at most")] = 20.0,
    memory: Annotated[
        str | None, typer.Option(help="of each machine, as 64G; default: this machine's")
    ] = None,
    filters: Annotated[int, typer.Option(help="columns that searches are narrowed by")] = 0,
    gpu_memory: Annotated[
        str | None, typer.Option(help="of each machine's GPU, as 80G; default: no GPU")
    ] = None,
    machines: Annotated[int | None, typer.Option(help="at most; default: as many as it takes")] = None,
    probe: Annotated[
        bool, typer.Option(help="time this machine, a minute once; without, figures for reference")
    ] = True,
    as_json: Json = False,
) -> "SizingReport":
    """Plan an index before it is built: type, memory, disk, machines, time, and why."""
    from dml.retrieval.amounts import machine_memory, parse_bytes, parse_count
    from dml.retrieval.rates import REFERENCE
    from dml.retrieval.sizing import infeasible
    from dml.retrieval.sizing import plan as plan_for
    from dml.retrieval.target import Target

    target = Target(
        rows=parse_count("rows", rows),
        dim=dim,
        recall=recall,
        latency_ms=latency_ms,
        memory_bytes=machine_memory() if memory is None else parse_bytes("memory", memory),
        filters=filters,
        gpu_bytes=0 if gpu_memory is None else parse_bytes("gpu-memory", gpu_memory),
        machines=machines,
    )
    rates = REFERENCE
    if probe:
        from dml.retrieval.probe import read_rates  # takes a second to import, and a minute the first time

        rates = read_rates()
    report = plan_for(target, rates)
    return emit(report, as_json, _show_plan, error=None if report.feasible else infeasible(report))


def _show_plan(report: "SizingReport") -> None:
    if report.chosen is not None:
        print_table(
            f"{report.rows:,} x {report.dim}, recall@10 {report.recall:g}", [_row_of_option(report.chosen)]
        )
    print_table("not chosen", [_row_of_option(option) for option in report.others])
    print_table(
        "before the index",
        [
            {
                "stage": stage.stage,
                "hours": f"{stage.hours:,.1f}",
                "images/s": stage.images_per_s,
                "on": stage.on,
                "by": stage.basis,
            }
            for stage in report.stages
        ],
    )
    print(f"Times: {report.times_of}. The recall is measured when the index is built.")


def _row_of_option(option: "IndexOption") -> dict[str, object]:
    from dml.retrieval.amounts import show_bytes

    return {
        "index": option.factory,
        "parameters": option.parameters,
        "machines": option.machines,
        "memory each": show_bytes(option.memory_bytes),
        "disk": show_bytes(option.disk_bytes),
        "ms": f"{option.latency_ms:.3g}",
        "build h": f"{option.build_hours:.3g}",
        "why": option.why,
    }
