"""A flow's bare name, on a client that only remembers what it was asked."""

import asyncio
import logging
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows import plugin

ROOT = str(Path(__file__).parents[2])


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
    return asyncio.run(plugin.with_bare_names(read)(client, name))


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


def test_the_client_is_changed_once(monkeypatch: pytest.MonkeyPatch):
    from prefect.client.orchestration import PrefectClient
    from prefect.client.orchestration._deployments.client import DeploymentAsyncClient

    stock = getattr(DeploymentAsyncClient.read_deployment_by_name, "__wrapped__", None)
    stock = stock or DeploymentAsyncClient.read_deployment_by_name
    monkeypatch.setattr(DeploymentAsyncClient, "read_deployment_by_name", stock)
    context = SimpleNamespace(prefect_version="3", logger_factory=logging.getLogger)
    plugin.let_client_take_bare_names(context)
    once = PrefectClient.read_deployment_by_name
    plugin.let_client_take_bare_names(context)
    assert PrefectClient.read_deployment_by_name is once
    assert once.__wrapped__ is stock


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("python /opt/bin/prefect deployment run train-flow", True),
        ("python -m prefect --profile other deployment run train-flow", True),
        ("python /opt/bin/prefect server start", False),
        ("python -m prefect.engine deployment", False),
        ("python /opt/bin/dml train deployment", False),
    ],
)
def test_only_prefects_own_command_for_deployments_takes_bare_names(words: str, expected: bool):
    assert plugin.is_deployment_command(words.split()) == expected


@pytest.mark.slow
@pytest.mark.parametrize(("command", "expected"), [("deployment", True), ("worker", False)])
def test_a_process_of_prefect_is_changed_for_that_command_alone(tmp_path: Path, command: str, expected: bool):
    program = tmp_path / "prefect"
    program.write_text(
        "from prefect.client.orchestration import PrefectClient as Client\n"
        "print(hasattr(Client.read_deployment_by_name, 'accepts_bare_names'))\n"
    )
    run = subprocess.run(
        [sys.executable, program, command],
        env={**os.environ, "PREFECT_PLUGINS_ENABLED": "1", "PREFECT_HOME": str(tmp_path), "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout.strip() == str(expected)


def test_another_prefect_gives_a_warning_that_says_what_to_type(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    from prefect.client.orchestration._deployments import client

    monkeypatch.delattr(client, "DeploymentAsyncClient")
    plugin.let_client_take_bare_names(SimpleNamespace(prefect_version="9", logger_factory=logging.getLogger))
    assert "Name deployments in full: FLOW/default" in caplog.text
