"""Make Prefect's schedules those of a store's indexes: the store holds them, Prefect follows."""

import asyncio
import hashlib
from datetime import datetime

from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_API_URL, temporary_settings

from dml.config import RefreshConfig
from dml.errors import InvalidSetting, MissingArtifact, without_password
from dml.retrieval.refresh import read_refreshes
from flows.policy import prefect_url, require_answer

DEPLOYMENT = "refresh-flow/default"


def next_refresh(cron: str, timezone: str) -> datetime:
    """When Prefect would next run what is scheduled so.

    Raises:
        InvalidSetting: it is no cron of five fields, never comes, or its time zone is unknown.
    """
    from prefect.server.schemas.schedules import CronSchedule as ServerSchedule  # takes 2 s to import

    try:
        if len(cron.split()) != 5:
            raise ValueError("not five fields")
        (coming,) = asyncio.run(ServerSchedule(cron=cron, timezone=timezone).get_dates(1))
    except Exception as error:  # the cron parser's own classes lie in a private place
        raise InvalidSetting(
            '--cron must have five fields, minute hour day month weekday, as "0 3 * * *", that come true on '
            f"some day, and --timezone must be a name as Europe/Rome; got {cron!r} and {timezone!r}."
        ) from error
    return datetime.fromisoformat(coming.isoformat())


def prefect_of(stack: str | None) -> str | None:
    """Address of the Prefect API to update: the configured one, else that of the store's `dml up`, else None.

    Args:
        stack: address of the latter's API.

    Raises:
        Unreachable: it does not answer, as a `dml up` that has only begun.
    """
    configured = prefect_url()
    if configured is not None or stack is not None:
        require_answer(None if configured is not None else stack)
    return configured or stack


def schedules_of(store: str) -> tuple[dict[str, RefreshConfig], dict[str, str]]:
    """How every index asks to be refreshed; and of those that say no time that comes, by name, why."""
    asking, damaged = read_refreshes(store)
    for name, config in list(asking.items()):
        try:
            next_refresh(config.cron, config.timezone)
        except InvalidSetting as error:
            damaged[name] = f"{error} Ask again: dml schedule {name} --cron ..., or --off."
            del asking[name]
    return asking, damaged


def follow_store(store: str, prefect: str) -> None:
    """Make Prefect's schedules of a store those of its indexes; other stores' schedules stay as they are.

    One whose index says no time that comes, or whose file is damaged, stays as it was.

    Args:
        store: the store's URI.
        prefect: address of Prefect's API.

    Raises:
        MissingArtifact: Prefect has no deployment of `refresh-flow`.
    """
    wanted, damaged = schedules_of(store)
    with temporary_settings({PREFECT_API_URL: prefect}), get_client(sync_client=True) as client:
        try:
            deployment = client.read_deployment_by_name(DEPLOYMENT).id
        except ObjectNotFound as error:
            raise MissingArtifact(
                f"Prefect must have the deployment {DEPLOYMENT} to schedule; {without_password(prefect)} has "
                "none. Run `dml up`, or `prefect deploy --all` in the project's folder."
            ) from error
        for former in client.read_deployment_schedules(deployment):
            if former.parameters.get("store") != store:
                continue
            name = next(iter(former.parameters.get("names", [])), "")
            if name in damaged:
                continue
            if name in wanted and former.schedule == _schedule(wanted[name]):
                del wanted[name]
            else:
                client.delete_deployment_schedule(deployment, former.id)
        if wanted:
            client.create_deployment_schedules(
                deployment,
                [
                    DeploymentScheduleCreate(
                        schedule=_schedule(config),
                        parameters={"names": [name], "store": store},
                        slug=f"{name}-{hashlib.sha256(store.encode()).hexdigest()[:8]}",
                    )
                    for name, config in wanted.items()
                ],
            )


def _schedule(config: RefreshConfig) -> CronSchedule:
    return CronSchedule(cron=config.cron, timezone=config.timezone)
