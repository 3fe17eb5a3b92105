"""A slow function that many ask for: one thread runs it, and each waits as long as it likes."""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

T = TypeVar("T")


class SharedCall(Generic[T]):
    """Calls a function once for all who wait, in a thread that delays no end of the process.

    Args:
        function: slow.
        keeps: give its result to later callers, too; False: these call it again. An error is never kept.

    Example:
        pairs = SharedCall(compare_all_images, keeps=True)
        pairs(wait_s=15)  # TimeoutError; later it is there
    """

    def __init__(self, function: Callable[[], T], *, keeps: bool) -> None:
        self._function, self._keeps = function, keeps
        self._call: Future[T] | None = None
        self._lock = threading.Lock()

    def __call__(self, wait_s: float | None = None) -> T:
        """The result; raises what the function raises.

        Args:
            wait_s: None: until it is there.

        Raises:
            TimeoutError: it is not there yet; it goes on.
        """
        with self._lock:
            call = self._call
            if call is None:
                call = self._call = Future()
                threading.Thread(target=self._run, args=(call,), daemon=True).start()
        return call.result(wait_s)

    def _run(self, call: "Future[T]") -> None:
        try:
            result = self._function()
        except BaseException as error:
            self._end()
            call.set_exception(error)
        else:
            if not self._keeps:
                self._end()
            call.set_result(result)

    def _end(self) -> None:
        with self._lock:
            self._call = None
