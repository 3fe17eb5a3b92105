"""`prefect deployment run train-flow`: a flow's bare name means its only deployment, or `default`.

Stock Prefect takes `FLOW/DEPLOYMENT` alone: its client splits the name at the slash, so that no name of a
deployment, profile or alias can stand for it. Its documented start-up hook is the door; what is replaced
behind it is one method of the client, which is not. So this is on only in a process of `prefect deployment`,
and only where a project asks for it (`[tool.prefect.plugins]` in pyproject.toml), does nothing to a name with
a slash, and stays out of the way when Prefect changes: then a warning says that the long form is needed. How
to switch it off: docs/commands.md.
"""

import functools
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefect.plugins import register_hook

if TYPE_CHECKING:
    from prefect.client.schemas.responses import DeploymentResponse
    from prefect.plugins import HookContext

    Read = Callable[[Any, str], Awaitable[DeploymentResponse]]

PREFERRED = "default"


@register_hook
def setup_environment(*, ctx: "HookContext") -> None:
    """Called by Prefect when it is imported; sets no variable."""
    if is_deployment_command(sys.orig_argv):
        let_client_take_bare_names(ctx)


def is_deployment_command(arguments: Sequence[str]) -> bool:
    """Whether a process begun so is `prefect deployment ...`, or the same as `python -m prefect`.

    Example:
        >>> is_deployment_command(["python", "/usr/bin/prefect", "deployment", "run", "train-flow"])
        True
        >>> is_deployment_command(["python", "/usr/bin/prefect", "worker", "start"])
        False
    """
    names = [Path(argument).name for argument in arguments]
    return "prefect" in names and "deployment" in names[names.index("prefect") :]


def let_client_take_bare_names(ctx: "HookContext") -> None:
    """Replace the one method of Prefect's client by which its command line finds a deployment."""
    try:
        from prefect.client.orchestration._deployments.client import DeploymentAsyncClient as Client

        if not getattr(Client.read_deployment_by_name, "takes_bare_names", False):
            setattr(Client, "read_deployment_by_name", taking_bare_names(Client.read_deployment_by_name))  # noqa: B010
    except Exception as error:
        ctx.logger_factory("dml").warning(
            "Bare flow names are off, because Prefect %s is not as expected (%s: %s). Name deployments in "
            "full: FLOW/%s.",
            ctx.prefect_version,
            type(error).__name__,
            error,
            PREFERRED,
        )


def taking_bare_names(read: "Read") -> "Read":
    """`read`, for which a name without slash is the name of a flow."""

    @functools.wraps(read)
    async def read_deployment_by_name(client: Any, name: str) -> "DeploymentResponse":
        if "/" in name:
            return await read(client, name)
        return await read(client, f"{name}/{await _deployment_of(client, name)}")

    setattr(read_deployment_by_name, "takes_bare_names", True)  # noqa: B010
    return read_deployment_by_name


async def _deployment_of(client: Any, flow: str) -> str:
    """The name of a flow's only deployment, else `default`; Prefect itself says so when there is none."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    found = await client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])))
    return str(found[0].name) if len(found) == 1 else PREFERRED
