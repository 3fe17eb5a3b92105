"""From the words of a command line to an exit status; errors are reported as the user's or as ours."""

import errno
import io
import logging
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout, suppress
from typing import TextIO

import typer

from dml.cli import (  # noqa: F401 - each adds its verbs to the app
    INTERRUPTED,
    bench,
    datasets,
    galleries,
    identities,
    imports,
    indexes,
    models,
    plans,
    presets,
    reports,
    schedules,
    searches,
    serve,
    stack,
    store,
    vectors,
    was_interrupted,
)
from dml.cli.app import app
from dml.cli.output import print_error, print_json, stdout, visible
from dml.errors import DmlError, InvalidFilter, StackFailed
from dml.extras import what_to_install

_USERS_MISTAKE, _OURS = 2, 1
_HELP = frozenset(["--help", "--version"])
_QUIET_S, _EVERY_S = 1.5, 10.0  # importing torch alone takes as long as the first
_POLL_S = 1.0
_FOREVER = frozenset(["serve", "up"])
"""Verbs that have no end to wait for."""
_OF_THE_MACHINE = {
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO),
    *(errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP),
    errno.EBUSY,
}
"""What a disk, a folder or a limit of the system refuses with; other system errors are our mistakes."""
_UNDECODED = re.compile("[\udc80-\udcff]")
"""What Python makes of an argument's or path's bytes that are not UTF-8."""


def run() -> int:
    """The exit status of the command that `sys.argv` holds; Ctrl-C raises KeyboardInterrupt."""
    for stream in (sys.stdout, sys.stderr):  # a label that the terminal's encoding lacks must not end a verb
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    handler = ScreenLog(sys.stderr)
    handler.setFormatter(_VisibleFormatter("%(asctime)s %(name)s: %(message)s"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("dml").setLevel(logging.INFO)
    as_json = "--json" in sys.argv
    stdout.set(sys.stdout)
    if as_json and _HELP.intersection(sys.argv):
        words = [word for word in sys.argv[1:] if word != "--json"]  # which `dml --help` itself does not know
        with redirect_stdout(io.StringIO()) as text:
            status = _run(as_json, words)
        if not status:
            print_json({"help": text.getvalue()})
        return status
    # Stdout is for the answer alone: what libraries and Ray's workers print goes where the logs go.
    with redirect_stdout(sys.stderr) if as_json else nullcontext(), _signs_of_life(handler):
        return _run(as_json)


def _run(as_json: bool, words: Sequence[str] | None = None) -> int:
    try:
        ended = app(args=words, prog_name="dml", standalone_mode=False)
    except (InvalidFilter, StackFailed) as error:  # with a caret below; with the lines that a log ends with
        return _refused(str(error), as_json, error.exit_status, keep="\n")
    except DmlError as error:
        return _refused(str(error), as_json, error.exit_status)
    except typer.TyperException as error:  # what is wrong with the words of the command
        context = getattr(error, "ctx", None)
        hint = f" `{context.command_path} --help` lists what there is." if context is not None else ""
        message = error.format_message()  # empty where the help was just printed
        return (
            _refused(f"{message.rstrip('.')}.{hint}", as_json, _USERS_MISTAKE) if message else _USERS_MISTAKE
        )
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    except OSError as error:
        if (unavailable := _unavailable(error)) is not None:
            return _refused(str(unavailable), as_json, unavailable.exit_status)
        if error.errno not in _OF_THE_MACHINE:
            return _unexpected(error, as_json)
        where = " -> ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        message = f"{error.strerror}: {where}" if where else str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            message += (
                ". Make room on the disks of the store, of DML_CACHE and of TMPDIR; then repeat the command"
            )
        return _refused(f"The system refused: {message}.", as_json, _OURS)
    except ModuleNotFoundError as error:
        if what_to_install(error) is None or was_interrupted():
            return _unexpected(error, as_json)
        raise
    except UnicodeEncodeError as error:
        if not _UNDECODED.search(str(error.object)):
            return _unexpected(error, as_json)
        return _refused(
            f"Names, ids, conditions and a store's path must be UTF-8; got {str(error.object)[:200]!r}, "
            "which holds other bytes. Write it in UTF-8, or rename it.",
            as_json,
            _USERS_MISTAKE,
        )
    except Exception as error:
        if (unavailable := _unavailable(error)) is not None:  # boto3's, of MLflow's own requests
            return _refused(str(unavailable), as_json, unavailable.exit_status)
        return _unexpected(error, as_json)
    if ended == INTERRUPTED:
        raise KeyboardInterrupt
    return ended if isinstance(ended, int) else 0  # an exit status, or what the verb returns


def _unavailable(error: Exception) -> DmlError | None:
    """The error of a store whose server does not answer; None: it is another one."""
    from dml import storage  # imports pyarrow, which no help needs

    return storage.unavailable(error)


def _refused(message: str, as_json: bool, status: int, *, keep: str = "") -> int:
    print_error(message, keep=keep)
    if as_json:
        with suppress(OSError):  # a full disk, of which the message tells
            print_json({"error": message})
    return status


def _unexpected(error: Exception, as_json: bool) -> int:
    """A mistake of ours keeps its traceback; an import that Ctrl-C broke off fails in many ways."""
    if was_interrupted():
        raise KeyboardInterrupt from error
    traceback.print_exception(error)
    if as_json:
        print_json({"error": f"{type(error).__name__}: {error}"})
    return _OURS


class ScreenLog(logging.StreamHandler[TextIO]):
    """The log on the screen; it knows when it last said something.

    Its name begins with a letter, for Prefect takes away what logs by a class whose name does not.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self.last = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.last = time.monotonic()
        super().emit(record)


@contextmanager
def _signs_of_life(log: ScreenLog) -> Iterator[None]:
    """A line for a verb that has not ended after `_QUIET_S`: its libraries take seconds to import.

    And one whenever it has said nothing for `_EVERY_S`, so that a waiting user sees progress.
    """
    verb = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    ended, start = threading.Event(), time.monotonic()

    def report_progress() -> None:
        if ended.wait(_QUIET_S):
            return
        print(f"dml {visible(verb)}: at work", file=sys.stderr, flush=True)
        reported = time.monotonic()
        while verb not in _FOREVER and not ended.wait(_POLL_S):
            now = time.monotonic()
            if now - max(reported, log.last) >= _EVERY_S:
                print(f"dml {visible(verb)}: at work, {now - start:.0f} s", file=sys.stderr, flush=True)
                reported = now

    threading.Thread(target=report_progress, daemon=True).start()
    try:
        yield
    finally:
        ended.set()


class _VisibleFormatter(logging.Formatter):
    """Labels and file names in a log are shown, not obeyed."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802
        return visible(super().formatMessage(record), keep="\n\t")
