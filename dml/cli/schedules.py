"""`dml reindex` and `dml schedule`."""

from typing import TYPE_CHECKING, Annotated

import typer

from dml.cli.app import Json, Store, Workers, store_uri, verb
from dml.cli.output import emit, print_table
from dml.errors import InvalidData, InvalidSetting, without_password

if TYPE_CHECKING:
    from dml.config import RefreshConfig
    from dml.reports import RefreshReport, Schedule, ScheduleList


@verb()
def reindex(
    name: Annotated[str | None, typer.Argument(help="the index; default: all that are scheduled")] = None,
    workers: Workers = None,
    store: Store = None,
    as_json: Json = False,
) -> "RefreshReport":
    """Refresh an index now: ingest and embed what is new with the champion, build in its gallery, publish."""
    from dml.reports import RefreshReport
    from flows.policy import run
    from flows.refresh import RefreshFailed, refresh_flow
    from flows.reindex import reindex_flow

    root = store_uri(store)
    try:
        if name is not None:
            refreshed = [run(reindex_flow, name, store=root, num_workers=workers)]
        else:
            refreshed = run(refresh_flow, None, root, workers)
    except RefreshFailed as error:
        failed = {other: str(reason) for other, reason in error.failed.items()}
        report = RefreshReport(refreshed=error.refreshed, failed=failed)
        return emit(report, as_json, _show_refresh, error=error)
    return emit(RefreshReport(refreshed=refreshed), as_json, _show_refresh)


def _show_refresh(report: "RefreshReport") -> None:
    for ref in report.refreshed:
        print(f"{ref}: {ref.rows} rows, recall@10 {ref.recall:.3f}")
        if ref.ingested is not None:
            print(f"  source: {ref.ingested}")
        if ref.changes is not None:
            made = ref.changes
            print(f"  gallery: {made.enrolled} enrolled, {made.updated} changed, {made.removed} left out")
    if not report.refreshed and not report.failed:
        print("no index is scheduled; `dml schedule NAME --cron ...` schedules one")


@verb()
def schedule(
    name: Annotated[str | None, typer.Argument(help="the index; default: list the scheduled ones")] = None,
    cron: Annotated[
        str | None, typer.Option(help='when: minute hour day month weekday, as "0 3 * * *"')
    ] = None,
    off: Annotated[bool, typer.Option("--off", help="leave the index as it is from now on")] = False,
    timezone: Annotated[str, typer.Option(help="that of --cron, as Europe/Rome")] = "UTC",
    model: Annotated[
        str | None,
        typer.Option(
            help="NAME (its champion), NAME@ALIAS or NAME/VERSION; default: the champion of the index's model"
        ),
    ] = None,
    dataset: Annotated[
        str | None, typer.Option(help="NAME or NAME@VERSION; default: the name of the index's dataset")
    ] = None,
    store: Store = None,
    as_json: Json = False,
) -> "ScheduleList":
    """Schedule the refresh of an index, or list the schedules; a running Prefect follows."""
    from dml.reports import ScheduleList
    from dml.up import running_stack
    from flows.schedules import follow_store, prefect_api_url, read_schedules

    root = store_uri(store)
    _require_all_or_none(name, cron, off)
    stack = running_stack(root)
    prefect = prefect_api_url(stack.addresses.PREFECT_API_URL if stack else None)
    if name is not None:
        _change(root, name, cron, timezone, model, dataset)
    if prefect is not None:
        follow_store(root, prefect)
    scheduled, damaged = read_schedules(root)
    answer = ScheduleList(
        schedules=[_schedule(index, config) for index, config in scheduled.items()],
        prefect=None if prefect is None else without_password(prefect),
        damaged=damaged,
    )
    said = "; ".join(f"index {index}: {why}" for index, why in damaged.items())
    return emit(answer, as_json, _show_schedules, error=InvalidData(said) if damaged else None)


def _require_all_or_none(name: str | None, cron: str | None, off: bool) -> None:
    if name is None and (cron or off):
        raise InvalidSetting(
            "--cron and --off need the name of an index; got none. Say dml schedule NAME --cron ..."
        )
    if name is not None and (cron is None) != off:
        raise InvalidSetting(f"Say when, dml schedule {name} --cron ..., or --off, and not both.")


def _change(
    store: str, name: str, cron: str | None, timezone: str, model: str | None, dataset: str | None
) -> None:
    from dml.retrieval.refresh import ask_refresh, end_refresh
    from flows.schedules import next_refresh

    if cron is None:
        end_refresh(store, name)
        return
    next_refresh(cron, timezone)  # there is one
    ask_refresh(store, name, cron=cron, timezone=timezone, model=model, dataset=dataset)


def _schedule(index: str, config: "RefreshConfig") -> "Schedule":
    from dml.reports import Schedule
    from flows.schedules import next_refresh

    return Schedule(index=index, **config.model_dump(), next=next_refresh(config.cron, config.timezone))


def _show_schedules(answer: "ScheduleList") -> None:
    rows = [
        {"index": each.index, **each.model_dump(), "next": each.next.isoformat(timespec="minutes")}
        for each in answer.schedules
    ]
    if rows:
        print_table("scheduled indexes", rows)
    elif not answer.damaged:
        print("no index is scheduled")
    if answer.prefect is not None:
        print(f"Prefect at {answer.prefect} follows.")
    elif rows:
        print("No Prefect runs for this store here: `dml up` starts one, which follows.")
