"""Prefect plugin: in `prefect deployment run train-flow`, a name without slash is the name of a flow.

Prefect itself accepts only `FLOW/DEPLOYMENT`. The plugin uses Prefect's documented start-up hook to wrap one
undocumented method of its client. So it is active only if a project enables it (`[tool.prefect.plugins]` in
pyproject.toml), does not change names with a slash, and, if Prefect changes, only warns that the long form is
needed.
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
    """Called by Prefect when it is imported; sets no environment variable."""
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

        if not getattr(Client.read_deployment_by_name, "accepts_bare_names", False):
            setattr(Client, "read_deployment_by_name", with_bare_names(Client.read_deployment_by_name))  # noqa: B010
    except Exception as error:
        ctx.logger_factory("dml").warning(
            "Bare flow names are off, because Prefect %s is not as expected (%s: %s). Name deployments in "
            "full: FLOW/%s.",
            ctx.prefect_version,
            type(error).__name__,
            error,
            PREFERRED,
        )


def with_bare_names(read: "Read") -> "Read":
    """Wrap `read` so that a name without a slash is the name of a flow."""

    @functools.wraps(read)
    async def read_deployment_by_name(client: Any, name: str) -> "DeploymentResponse":
        if "/" in name:
            return await read(client, name)
        return await read(client, f"{name}/{await _find_deployment(client, name)}")

    setattr(read_deployment_by_name, "accepts_bare_names", True)  # noqa: B010
    return read_deployment_by_name


async def _find_deployment(client: Any, flow: str) -> str:
    """The name of a flow's only deployment, else `default`; if there is none, Prefect raises the error."""
    from prefect.client.schemas.filters import FlowFilter, FlowFilterName

    deployments = await client.read_deployments(flow_filter=FlowFilter(name=FlowFilterName(any_=[flow])))
    return str(deployments[0].name) if len(deployments) == 1 else PREFERRED
