"""Synchronization of Prefect's schedules with the refresh settings in a store."""

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
    """The time of the next run of a schedule, computed by Prefect.

    Raises:
        InvalidSetting: the cron does not have five fields or never occurs, or the time zone is unknown.
    """
    from prefect.server.schemas.schedules import CronSchedule as ServerSchedule  # takes 2 s to import

    try:
        if len(cron.split()) != 5:
            raise ValueError("not five fields")
        (next_time,) = asyncio.run(ServerSchedule(cron=cron, timezone=timezone).get_dates(1))
    except Exception as error:  # the cron parser's error classes are private
        raise InvalidSetting(
            '--cron must have five fields, minute hour day month weekday, as "0 3 * * *", that come true on '
            f"some day, and --timezone must be a name as Europe/Rome; got {cron!r} and {timezone!r}."
        ) from error
    return datetime.fromisoformat(next_time.isoformat())


def prefect_api_url(stack: str | None) -> str | None:
    """URL of the Prefect API to update: the configured one, else that of the store's `dml up`, else None.

    Args:
        stack: URL of the API of the store's `dml up`.

    Raises:
        Unreachable: it does not answer, for example because `dml up` is still starting.
    """
    configured = prefect_url()
    if configured is not None or stack is not None:
        require_answer(None if configured is not None else stack)
    return configured or stack


def read_schedules(store: str) -> tuple[dict[str, RefreshConfig], dict[str, str]]:
    """The refresh settings by index name, and the errors of invalid ones by index name."""
    valid, damaged = read_refreshes(store)
    for name, config in list(valid.items()):
        try:
            next_refresh(config.cron, config.timezone)
        except InvalidSetting as error:
            damaged[name] = f"{error} Set it again: dml schedule {name} --cron ..., or --off."
            del valid[name]
    return valid, damaged


def follow_store(store: str, prefect: str) -> None:
    """Make Prefect's schedules equal to the refresh settings of a store; schedules of other stores are kept.

    The schedule of an index whose settings are invalid or damaged is not changed.

    Args:
        store: the store's URI.
        prefect: URL of Prefect's API.

    Raises:
        MissingArtifact: Prefect has no deployment of `refresh-flow`.
    """
    configs, damaged = read_schedules(store)
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
            if name in configs and former.schedule == _schedule(configs[name]):
                del configs[name]
            else:
                client.delete_deployment_schedule(deployment, former.id)
        if configs:
            client.create_deployment_schedules(
                deployment,
                [
                    DeploymentScheduleCreate(
                        schedule=_schedule(config),
                        parameters={"names": [name], "store": store},
                        slug=f"{name}-{hashlib.sha256(store.encode()).hexdigest()[:8]}",
                    )
                    for name, config in configs.items()
                ],
            )


def _schedule(config: RefreshConfig) -> CronSchedule:
    return CronSchedule(cron=config.cron, timezone=config.timezone)
