"""A picture of a flow run is one artefact, replaced while the run goes on; without Prefect none is drawn."""

import base64
import time
from collections.abc import Callable

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.testing.utilities import prefect_test_harness

from flows.policy import live_picture


def shown() -> list[tuple[str, str]]:
    with get_client(sync_client=True) as client:
        actual = client.read_artifacts()
    return [(str(artifact.description), str(artifact.data)) for artifact in actual]


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_picture_is_replaced_while_the_run_continues_and_errors_end_nothing():
    steps: list[int] = []
    tried: list[int] = []
    seen: list[list[tuple[str, str]]] = []

    def draw() -> tuple[bytes, str] | None:
        if not steps:
            return None
        tried.append(steps[-1])
        if steps[-1] == 2:
            raise ConnectionError("MLflow is away")
        return f"png {steps[-1]}".encode(), f"step {steps[-1]}"

    @flow
    def training() -> None:
        with live_picture("curves", draw, first_s=0.05, most_s=0.05):
            for step in (1, 2, 3):
                steps.append(step)
                if step == 2:
                    until(lambda: tried.count(2) > 1)
                else:
                    until(lambda step=step: [each[0] for each in shown()] == [f"step {step}"])
                seen.append(shown())

    with prefect_test_harness(server_startup_timeout=240):
        training()
        last = shown()
    assert [len(each) for each in seen] == [1, 1, 1]
    assert seen[0][0][0] == seen[1][0][0] == "step 1"
    assert last == [("step 3", "data:image/png;base64," + base64.b64encode(b"png 3").decode())]


def test_without_prefect_nothing_is_drawn():
    drawn: list[int] = []

    def draw() -> tuple[bytes, str] | None:
        drawn.append(1)
        return None

    with live_picture("curves", draw, first_s=0.0, most_s=0.0):
        time.sleep(0.05)
    assert drawn == []
