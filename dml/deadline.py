"""A function call with a time limit, for requests whose client cannot guarantee one."""

import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from typing import TypeVar

R = TypeVar("R")

WORD_EVERY_S = 10.0


def call_within(
    timeout_s: float,
    function: Callable[[], R],
    *,
    waiting: Callable[[float], None] | None = None,
    every_s: float = WORD_EVERY_S,
) -> R:
    """Call a function and return its result, or raise after a time limit.

    A client's timeout applies to each read: a server that sends a byte now and then never exceeds it, and DNS
    lookups are not covered. A function that exceeds the limit keeps running in a daemon thread.

    Args:
        timeout_s: limit of the whole call, in seconds.
        function: called with the caller's context variables.
        waiting: called every `every_s` while it waits, with the seconds so far; None: it waits in silence.
        every_s: seconds between two calls of `waiting`.

    Raises:
        TimeoutError: the function did not return in time.
    """
    results: list[R] = []
    errors: list[BaseException] = []
    context = copy_context()

    def call() -> None:
        try:
            results.append(context.run(function))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    start = time.monotonic()
    while waiting is not None and (waited_s := time.monotonic() - start) + every_s < timeout_s:
        thread.join(every_s)
        if not thread.is_alive():
            break
        waiting(waited_s + every_s)
    thread.join(max(0.0, timeout_s - (time.monotonic() - start)))
    if errors:
        raise errors[0]
    if not results:
        raise TimeoutError(f"no complete answer within {timeout_s:g} s")
    return results[0]
