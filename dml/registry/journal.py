"""Journal of a run's metrics: a local file that a background thread sends to MLflow.

A training step never waits for a server. Metrics that MLflow did not receive, because it was unreachable or
the process was killed, stay in the file and are sent later. A step that is repeated is recorded once.
"""

import atexit
import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dml import storage
from dml.errors import DmlError, MissingArtifact, without_password
from dml.registry.connection import connect, require_answer

logger = logging.getLogger(__name__)

MAX_METRICS_PER_BATCH = 1000  # MLflow refuses more
_MAX_PAUSE_S = 30.0
_EXIT_FLUSH_S = 5.0


@dataclass(frozen=True)
class _Entry:
    """The metrics of one step, and the offset in bytes of the end of its line in the file."""

    step: int
    timestamp_ms: int
    metrics: Mapping[str, float]
    end: int


class Journal:
    """The metrics of a training run in a file, one line per step, and how much of it MLflow has received.

    Args:
        file: named by the run's identity, so that a continued run, or one sent to another MLflow, reuses it.
        tracking_uri: the MLflow to send to.
        run_id: MLflow's id of the run.
    """

    def __init__(self, file: Path, tracking_uri: str, run_id: str) -> None:
        self.file, self._tracking_uri, self._run_id = file, tracking_uri, run_id
        self._known = {(key, entry.step) for entry in _entries(file, 0) for key in entry.metrics}
        record = _read_record(file)
        same = record is not None and (record["to"], record["run_id"]) == (
            without_password(tracking_uri),
            run_id,
        )
        self._sent = int(record["bytes"]) if record is not None and same else 0
        if not same:
            self._write_record()
        self._new_entries, self._sending = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._send_continuously, daemon=True)
        self._is_unreachable = self._has_pending = self._closed = False
        self._starts_line = True

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a step's metrics to the file; does not wait for MLflow."""
        new = {key: float(value) for key, value in metrics.items() if (key, step) not in self._known}
        if not new:
            return
        self._known |= {(key, step) for key in new}
        line = json.dumps({"step": step, "timestamp_ms": time.time_ns() // 1_000_000, "metrics": new})
        try:
            with self.file.open("ab") as stream:
                # One write, which a kill does not split. It starts a new line after one that a crash cut off.
                stream.write(f"{chr(10) if self._starts_line else ''}{line}\n".encode())
                self._starts_line = False
        except OSError as error:  # a full disk: the larger checkpoint will fail with the error
            logger.error("The metrics of step %d cannot be written to %s: %s", step, self.file, error)
            return
        if not self._thread.is_alive():
            self._thread.start()
            atexit.register(self._last_flush)
        self._has_pending = True
        self._new_entries.set()

    def flush(self, wait_s: float) -> bool:
        """Send pending metrics, with retries for `wait_s` seconds; returns whether MLflow has all of them."""
        deadline = time.monotonic() + wait_s
        self._has_pending = False
        while not (done := self._send()) and time.monotonic() < deadline:
            time.sleep(min(1.0, wait_s))
        return done

    def close(self, wait_s: float) -> bool:
        """`flush`, and end the thread."""
        done, self._closed = self.flush(wait_s), True
        self._new_entries.set()
        return done

    def _last_flush(self) -> None:
        """Flush at exit in a process that did not call `flush`, such as one of several workers."""
        if self._has_pending:
            self.flush(_EXIT_FLUSH_S)

    def _send_continuously(self) -> None:
        while not self._closed:
            self._new_entries.wait()
            self._new_entries.clear()
            pause_s = 1.0
            while not self._closed and not self._send():
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _MAX_PAUSE_S)

    def _send(self) -> bool:
        with self._sending:
            pending = _entries(self.file, self._sent)
            try:
                if pending:
                    require_answer(self._tracking_uri)
                while pending:
                    batch_size = _first_batch(pending)
                    self._send_batch(pending[:batch_size])
                    pending = pending[batch_size:]
            except DmlError as error:
                if not self._is_unreachable:
                    logger.warning("Metrics wait in %s: %s", self.file, error)
                self._is_unreachable = True
                return False
            if self._is_unreachable:
                logger.info("MLflow answers again; it has all metrics.")
            self._is_unreachable = False
            return True

    def _send_batch(self, entries: list[_Entry]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        # With their original time, so that MLflow recognizes a metric it already has as a duplicate.
        metrics = [Metric(k, v, e.timestamp_ms, e.step) for e in entries for k, v in e.metrics.items()]
        try:
            connect(self._tracking_uri).log_batch(self._run_id, metrics=metrics)
        except MlflowException as error:  # such as a run that was deleted in MLflow's pages
            logger.warning(
                "MLflow refuses the metrics of steps %d to %d, which remain in %s: %s",
                *(entries[0].step, entries[-1].step, self.file, error),
            )
        self._sent = entries[-1].end
        self._write_record()

    def _write_record(self) -> None:
        record = {"to": without_password(self._tracking_uri), "run_id": self._run_id, "bytes": self._sent}
        try:
            storage.write_json(str(_record_file(self.file)), record)
        except OSError as error:
            logger.error("The record of what MLflow received of %s cannot be written: %s", self.file, error)


def send_leftovers(folder: Path, tracking_uri: str, *, wait_s: float) -> None:
    """Send the metrics that earlier runs could not send to this MLflow.

    Args:
        folder: the folder of the journals.
        tracking_uri: an MLflow that has just answered.
        wait_s: retry time per journal, in seconds.
    """
    for file in sorted(folder.glob("*.jsonl")):
        record = _read_record(file)
        is_pending = record is not None and int(record["bytes"]) < file.stat().st_size
        if record is not None and is_pending and record["to"] == without_password(tracking_uri):
            Journal(file, tracking_uri, str(record["run_id"])).flush(wait_s)


def _entries(file: Path, start: int) -> list[_Entry]:
    """The reports from a byte of the file on; a line that a crash left unfinished is none."""
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            lines = stream.read().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    entries, end = [], start
    for line in lines:
        end += len(line)
        try:
            content = json.loads(line)
            entries.append(_Entry(content["step"], content["timestamp_ms"], content["metrics"], end))
        except (ValueError, KeyError, TypeError):
            continue
    return entries


def _first_batch(entries: list[_Entry]) -> int:
    """The number of leading entries that fit into one request, at least one."""
    count, metrics = 0, 0
    for entry in entries:
        metrics += len(entry.metrics)
        if count and metrics > MAX_METRICS_PER_BATCH:
            break
        count += 1
    return count


def _record_file(file: Path) -> Path:
    return file.with_suffix(".sent.json")


def _read_record(file: Path) -> dict[str, str | int] | None:
    try:
        return storage.read_json(str(_record_file(file)))
    except (MissingArtifact, ValueError):
        return None
