"""A question to a server that has an end, whatever the server, the network or a name's lookup does."""

import threading
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

R = TypeVar("R")


def within(timeout_s: float, ask: Callable[[], R]) -> R:
    """A function's result, if it is there in time.

    A client's own timeout is of each read: a server that sends a byte now and then is never late, and the
    lookup of a name is not counted. A function that is late goes on alone, and ends with the process.

    Args:
        timeout_s: seconds for all of it.
        ask: the question; sees the caller's context.

    Raises:
        TimeoutError: there is no result in time.
    """
    results: list[R] = []
    errors: list[BaseException] = []
    context = copy_context()

    def answer() -> None:
        try:
            results.append(context.run(ask))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=answer, daemon=True)
    thread.start()
    thread.join(timeout_s)
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no whole answer in {timeout_s:g} s")
    return results[0]
