"""`dml reindex` and `dml schedule`."""

from typing import Annotated

import typer

from dml.cli.app import Json, Store, Workers, app, print_json, print_table, store_uri
from dml.errors import InvalidSetting, without_password


@app.command()
def reindex(
    name: Annotated[str | None, typer.Argument(help="the index; default: all that are scheduled")] = None,
    workers: Workers = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Refresh an index now: ingest and embed what is new with the champion, build, publish."""
    from flows.policy import run
    from flows.refresh import RefreshFailed, refresh_flow
    from flows.reindex import reindex_flow

    root = store_uri(store)
    failed: dict[str, Exception] = {}
    try:
        if name is not None:
            refreshed = [run(reindex_flow, name, store=root, num_workers=workers)]
        else:
            refreshed = run(refresh_flow, None, root, workers)
    except RefreshFailed as error:
        refreshed, failed = error.refreshed, error.failed
    if as_json:
        print_json(
            {
                "refreshed": [ref.model_dump(mode="json") for ref in refreshed],
                "failed": {other: str(reason) for other, reason in failed.items()},
            }
        )
    else:
        for ref in refreshed:
            print(f"{ref}: {ref.rows} rows, recall@10 {ref.recall:.3f}")
        for other, reason in failed.items():
            typer.echo(f"error: index {other}: {reason}", err=True)
        if not refreshed and not failed:
            print("no index is scheduled; `dml schedule NAME --cron ...` schedules one")
    if failed:
        raise typer.Exit(1)


@app.command()
def schedule(
    name: Annotated[str | None, typer.Argument(help="the index; default: list the scheduled ones")] = None,
    cron: Annotated[
        str | None, typer.Option(help='when: minute hour day month weekday, as "0 3 * * *"')
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="leave the index as it is from now on")] = False,
    timezone: Annotated[str, typer.Option(help="that of --cron, as Europe/Rome")] = "UTC",
    model: Annotated[str | None, typer.Option(help="default: the champion of the index's model")] = None,
    dataset: Annotated[str | None, typer.Option(help="default: the name of the index's dataset")] = None,
    store: Store = None,
    as_json: Json = False,
) -> None:
    """Schedule the refresh of an index, or list the schedules; a running Prefect follows."""
    from dml.retrieval.refresh import ask_refresh, end_refresh
    from dml.up import running_stack
    from flows.schedules import follow_store, next_refresh, prefect_of, schedules_of

    root = store_uri(store)
    if name is None and (cron or off):
        raise InvalidSetting(
            "--cron and --off need the name of an index; got none. Say dml schedule NAME --cron ..."
        )
    if name is not None and (cron is None) != off:
        raise InvalidSetting(f"Say when, dml schedule {name} --cron ..., or --off, and not both.")
    stack = running_stack(root)
    prefect = prefect_of(stack.addresses["PREFECT_API_URL"] if stack else None)
    if name is not None and cron is not None:
        next_refresh(cron, timezone)
        ask_refresh(root, name, cron=cron, timezone=timezone, model=model, dataset=dataset)
    elif name is not None:
        end_refresh(root, name)
    if prefect is not None:
        follow_store(root, prefect)
    shown = None if prefect is None else without_password(prefect)
    scheduled, damaged = schedules_of(root)
    rows = [
        {
            "index": each,
            **config.model_dump(),
            "next": next_refresh(config.cron, config.timezone).isoformat(timespec="minutes"),
        }
        for each, config in scheduled.items()
    ]
    if as_json:
        print_json({"schedules": rows, "prefect": shown, "damaged": damaged})
    elif rows:
        print_table("scheduled indexes", rows)
    elif not damaged:
        print("no index is scheduled")
    if not as_json and shown is not None:
        print(f"Prefect at {shown} follows.")
    elif not as_json and rows:
        print("No Prefect runs for this store here: `dml up` starts one, which follows.")
    for each, why in damaged.items():
        typer.echo(f"error: index {each}: {why}", err=True)
    if damaged:
        raise typer.Exit(2)
