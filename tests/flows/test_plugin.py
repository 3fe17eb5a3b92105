"""A flow's bare name, on a client that only remembers what it was asked."""

import asyncio
import logging
from types import SimpleNamespace

import pytest

from flows import plugin


class Client:
    def __init__(self, *deployments: str) -> None:
        self.deployments = [SimpleNamespace(name=name) for name in deployments]
        self.asked: list[str] = []

    async def read_deployments(self, *, flow_filter: object) -> list[SimpleNamespace]:
        self.filter = flow_filter
        return self.deployments


async def read(client: Client, name: str) -> str:
    client.asked.append(name)
    return name


def resolve(client: Client, name: str) -> str:
    return asyncio.run(plugin.taking_bare_names(read)(client, name))


@pytest.mark.parametrize(
    ("deployments", "expected"),
    [
        (["nightly"], "train-flow/nightly"),
        (["nightly", "default"], "train-flow/default"),
        (["nightly", "weekly"], "train-flow/default"),  # which Prefect then does not find, and says so
        ([], "train-flow/default"),
    ],
)
def test_a_bare_name_is_the_only_deployment_else_default(deployments: list[str], expected: str):
    client = Client(*deployments)
    assert resolve(client, "train-flow") == expected
    assert client.filter.name.any_ == ["train-flow"]


def test_a_full_name_goes_through_untouched():
    client = Client("default")
    assert resolve(client, "train-flow/nightly") == "train-flow/nightly"
    assert not hasattr(client, "filter")


def test_prefect_is_changed_once_and_only_where_the_hook_is_called(monkeypatch: pytest.MonkeyPatch):
    from prefect.client.orchestration import PrefectClient
    from prefect.client.orchestration._deployments.client import DeploymentAsyncClient

    stock = getattr(DeploymentAsyncClient.read_deployment_by_name, "__wrapped__", None)
    stock = stock or DeploymentAsyncClient.read_deployment_by_name
    monkeypatch.setattr(DeploymentAsyncClient, "read_deployment_by_name", stock)
    context = SimpleNamespace(prefect_version="3", logger_factory=logging.getLogger)
    plugin.setup_environment(ctx=context)
    once = PrefectClient.read_deployment_by_name
    plugin.setup_environment(ctx=context)
    assert PrefectClient.read_deployment_by_name is once
    assert once.__wrapped__ is stock


def test_another_prefect_gives_a_warning_that_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from prefect.client.orchestration._deployments import client

    monkeypatch.delattr(client, "DeploymentAsyncClient")
    plugin.setup_environment(ctx=SimpleNamespace(prefect_version="9", logger_factory=logging.getLogger))
    assert "Name deployments in full: FLOW/default" in caplog.text
