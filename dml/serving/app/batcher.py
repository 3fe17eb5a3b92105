"""Micro-batches: single inputs of many requests in, calls of one function with many at once.

The function takes a list and returns a list of as many results, which is also what Ray Serve's `@serve.batch`
wants, so either can call it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Generic, TypeVar

X = TypeVar("X")
Y = TypeVar("Y")

ManyAtOnce = Callable[[list[X]], Awaitable[Sequence[Y]]]
OneByOne = Callable[[X], Awaitable[Y]]


class MicroBatcher(Generic[X, Y]):
    """Calls a function with what waits for it, while it is busy with what came before.

    Args:
        function: N inputs in, N results out.
        max_size: inputs of one call.
        wait_s: for more inputs, once one is there and the function is idle.
        coming: how many inputs are on their way; while there is none, nothing is waited for.
    """

    def __init__(
        self,
        function: ManyAtOnce[X, Y],
        *,
        max_size: int,
        wait_s: float,
        coming: Callable[[], int] = lambda: 1,
    ) -> None:
        self._function, self._max_size, self._wait_s, self._coming = function, max_size, wait_s, coming
        self._waiting: asyncio.Queue[tuple[X, asyncio.Future[Y]]] = asyncio.Queue()
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, value: X) -> Y:
        """The function's result for one input; raises what the function raised for it."""
        future: asyncio.Future[Y] = asyncio.get_running_loop().create_future()
        self._waiting.put_nowait((value, future))
        self._arrived.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        """Until nothing waits: so a batcher that nobody calls any more is freed."""
        while not self._waiting.empty():
            await self._collect()
            batch = [self._waiting.get_nowait() for _ in range(min(self._max_size, self._waiting.qsize()))]
            batch = [(value, future) for value, future in batch if not future.done()]  # its request has ended
            if batch:
                await self._answer(batch)

    async def _collect(self) -> None:
        """Wait for a whole batch, but not longer than `wait_s`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._wait_s):
                while self._waiting.qsize() < self._max_size and self._coming():
                    self._arrived.clear()
                    await self._arrived.wait()

    async def _answer(self, batch: list[tuple[X, asyncio.Future[Y]]]) -> None:
        try:
            results = await self._function([value for value, _ in batch])
            for (_, future), result in zip(batch, results, strict=True):
                if not future.done():
                    future.set_result(result)
        except Exception as error:
            if len(batch) > 1:  # whose input it was is known only of one alone
                for each in batch:
                    await self._answer([each])
            elif not batch[0][1].done():
                batch[0][1].set_exception(error)
