"""Micro-batches: many callers, few calls, and every caller gets its own result or error."""

import anyio
import pytest

from dml.serving.app.batcher import MicroBatcher


def answers_of(values, function, *, max_size=8, wait_s=0.0):
    """What each of several concurrent callers gets."""

    async def run():
        batcher = MicroBatcher(function, max_size=max_size, wait_s=wait_s)
        answers = {}

        async def call(value):
            try:
                answers[value] = await batcher(value)
            except ValueError as error:
                answers[value] = str(error)

        async with anyio.create_task_group() as group:
            for value in values:
                group.start_soon(call, value)
        return answers

    return anyio.run(run)


def squares(sizes):
    async def function(values):
        sizes.append(len(values))
        await anyio.sleep(0.001)
        if 13 in values:
            raise ValueError(f"13 of {len(values)}")
        return [value**2 for value in values]

    return function


@pytest.mark.parametrize("wait_s", [0.0, 0.01])
def test_callers_that_come_together_are_answered_together(wait_s):
    sizes = []
    assert answers_of(range(20, 40), squares(sizes), wait_s=wait_s) == {n: n**2 for n in range(20, 40)}
    assert max(sizes) == 8
    assert sum(sizes) == 20


def test_an_error_is_that_of_the_input_that_made_it():
    answers = answers_of(range(10, 16), squares([]))
    assert answers == {n: "13 of 1" if n == 13 else n**2 for n in range(10, 16)}


def test_a_caller_that_gave_up_is_not_computed():
    sizes = []

    async def run():
        batcher = MicroBatcher(squares(sizes), max_size=8, wait_s=0.05)
        with anyio.move_on_after(0.01):
            await batcher(1)
        return await batcher(2)

    assert anyio.run(run) == 4
    assert sizes == [1]


def test_what_is_on_its_way_is_waited_for():
    sizes, late = [], 3

    async def run():
        nonlocal late
        batcher = MicroBatcher(squares(sizes), max_size=8, wait_s=10, coming=lambda: late)

        async with anyio.create_task_group() as group:
            group.start_soon(batcher, 1)
            while late:
                await anyio.sleep(0.005)
                late -= 1
                group.start_soon(batcher, late)

    anyio.run(run)
    assert sizes == [4]


def test_an_input_alone_is_not_kept_waiting():
    async def run():
        with anyio.fail_after(5):
            return await MicroBatcher(squares([]), max_size=8, wait_s=60, coming=lambda: 0)(3)

    assert anyio.run(run) == 9
