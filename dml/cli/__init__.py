"""`dml`: one command per verb, one file per noun.

It parses, calls a flow or a room, and prints a table, or one JSON object.

Exit status: 0 done, 2 the user's mistake (one message, no traceback), 130 Ctrl-C, 1 ours, the machine's, or
too many bad rows in a source. What a verb does not need is not imported: searching must not wait for Ray,
MLflow or Prefect.
"""

import errno
import io
import logging
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout

import typer

from dml.cli import bench, datasets, indexes, models, presets, reports, schedules, stack, store
from dml.cli.app import app, output, print_json, visible
from dml.errors import DmlError

__all__ = [
    "app",
    "bench",
    "datasets",
    "indexes",
    "main",
    "models",
    "presets",
    "reports",
    "schedules",
    "stack",
    "store",
]

_USERS_MISTAKE, _OURS, _INTERRUPTED = 2, 1, 130
_QUIET_S = 1.5  # importing torch alone takes as long
_OF_THE_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
}
"""What a disk, a folder or a limit of the system refuses with; other system errors are our mistakes."""


def main() -> None:
    """Run the command line; every error becomes the exit status that says whose it is."""
    for stream in (sys.stdout, sys.stderr):  # a label that the terminal's encoding lacks must not end a verb
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_VisibleFormatter("%(asctime)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("dml").setLevel(logging.INFO)
    as_json = "--json" in sys.argv
    output.set(sys.stdout)
    # Stdout is for the answer alone: what libraries and Ray's workers print goes where the logs go.
    with redirect_stdout(sys.stderr) if as_json else nullcontext(), _sign_of_life():
        sys.exit(_run(as_json))


def _run(as_json: bool) -> int:
    try:
        status = app(prog_name="dml", standalone_mode=False)
    except DmlError as error:
        return _refused(str(error), as_json, error.exit_status)
    except typer.TyperException as error:  # what is wrong with the words of the command
        context = getattr(error, "ctx", None)
        hint = f" `{context.command_path} --help` lists what there is." if context is not None else ""
        message = error.format_message()  # empty where the help was just printed
        return (
            _refused(f"{message.rstrip('.')}.{hint}", as_json, _USERS_MISTAKE) if message else _USERS_MISTAKE
        )
    except typer.Abort:
        return _refused("Interrupted.", as_json, _INTERRUPTED)
    except KeyboardInterrupt:
        return _refused("Interrupted.", as_json, _INTERRUPTED)
    except OSError as error:
        if error.errno is None and "AWS Error" in str(error):
            return _refused(
                f"S3 must answer; it does not, or refuses: {str(error).splitlines()[0]} Check the bucket, "
                "AWS_ENDPOINT_URL and the credentials.",
                as_json,
                _OURS,
            )
        if error.errno not in _OF_THE_MACHINE:
            return _unexpected(error, as_json)
        where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        message = f"{error.strerror}: {where}" if where else str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message += ". Make room on the disks of the store, of DML_CACHE and of TMPDIR; the same goes on"
        return _refused(f"The system refused: {message}.", as_json, _OURS)
    except Exception as error:
        return _unexpected(error, as_json)
    if status == _INTERRUPTED:
        return _refused("Interrupted.", as_json, _INTERRUPTED)
    return status or 0


def _refused(message: str, as_json: bool, status: int) -> int:
    print(f"error: {visible(message, keep=chr(10))}", file=sys.stderr)
    if as_json:
        print_json({"error": message})
    return status


def _unexpected(error: Exception, as_json: bool) -> int:
    """A mistake of ours keeps its traceback."""
    traceback.print_exception(error)
    if as_json:
        print_json({"error": f"{type(error).__name__}: {error}"})
    return _OURS


@contextmanager
def _sign_of_life() -> Iterator[None]:
    """A line for a verb that has not ended after `_QUIET_S`: its libraries take seconds to import."""
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    timer = threading.Timer(
        _QUIET_S, lambda: print(f"dml {visible(verb)}: at work", file=sys.stderr, flush=True)
    )
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _VisibleFormatter(logging.Formatter):
    """Labels and file names in a log are shown, not obeyed."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return visible(super().formatMessage(record), keep="\n\t")
