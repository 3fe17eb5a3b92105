"""`dml`: one command per verb, one file per noun.

It parses, calls a flow or a room, and prints a table, or one JSON object.

Exit status: 0 done, 2 the user's mistake (one message, no traceback), 130 Ctrl-C, 1 ours, the machine's, or
too many bad rows in a source. What a verb does not need is not imported: searching must not wait for Ray,
MLflow or Prefect. Nothing at all is imported here before Ctrl-C is heeded.
"""

import atexit
import os
import signal
import sys
from types import FrameType

INTERRUPTED = 130
_interrupts: list[int] = []


class Interrupted(KeyboardInterrupt):
    """Ctrl-C.

    A class of its own, since Python ends a process by the signal, without an exit status, where a plain
    KeyboardInterrupt once passed through code that C runs, as the import of torch does.
    """


def program() -> None:
    """The process `dml`: `main`, with its exit status also where a library's C++ threads outlive Python.

    Such a thread (Arrow's, gRPC's, torch's) that is destroyed while it runs ends the process by
    `std::terminate`: status 134 after the right message. So the process ends before C++ is torn down, and
    after Python is: threads are joined and all that libraries registered with `atexit` has run.
    """
    process = os.getpid()
    status = 1  # of an exception that `main` lets through, whose traceback Python prints

    def end() -> None:
        if os.getpid() != process:
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):
            return  # Python says so as it ends
        os._exit(status)

    atexit.register(end)  # what is registered first is called last
    try:
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
        raise


def main() -> None:
    """Run the command line and end the process; Ctrl-C at any moment is one line and exit status 130."""
    _fill_closed_streams()
    heeded = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # `nohup` and `&` ignore it
    if heeded:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        from dml.cli.command import run

        status = run()
    except KeyboardInterrupt:
        status = INTERRUPTED
    except ModuleNotFoundError as error:  # of an extra, of the command line's own too
        status = _refuse_to_go_without(error)
    if heeded:
        signal.signal(signal.SIGINT, _leave)  # what ends with the process may wait for others
    if status == INTERRUPTED:
        _say_interrupted()
    sys.exit(status)


def _fill_closed_streams() -> None:
    """Point descriptors 0 to 2 that are closed to nowhere: the next file to be opened would take them."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest that is free: this one
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _refuse_to_go_without(error: ModuleNotFoundError) -> int:
    import json

    from dml.extras import what_to_install

    message = what_to_install(error)
    if message is None:
        raise error
    print(f"error: {message}", file=sys.stderr)
    if "--json" in sys.argv:
        print(json.dumps({"error": message}))
    return 2


def was_interrupted() -> bool:
    return bool(_interrupts)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _interrupts.append(number)
    if _is_importing(frame):  # nothing has begun, and C++ that is being imported would abort at an exception
        _say_interrupted()
        os._exit(INTERRUPTED)
    raise Interrupted


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _leave(_number: int, _frame: object) -> None:
    os._exit(INTERRUPTED)


def _say_interrupted() -> None:
    """Past the streams of Python, which may be at work on another line."""
    os.write(2, b"error: Interrupted.\n")
    if "--json" in sys.argv:
        os.write(1, b'{"error": "Interrupted."}\n')
