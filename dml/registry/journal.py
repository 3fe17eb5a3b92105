"""A run's metrics on their way to MLflow: written to a local file, sent by a thread that can wait.

A training step waits for no server. What MLflow has not taken while it was away, or before the process was
killed, is in the file and is sent later; a metric of a step is kept once, however often the step is done.
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
_LONGEST_PAUSE_S = 30.0
_LAST_WAIT_S = 5.0


@dataclass(frozen=True)
class _Entry:
    """What was reported of one step, and where its line ends in the file, in bytes."""

    step: int
    timestamp_ms: int
    metrics: Mapping[str, float]
    end: int


class Journal:
    """The metrics of a run of training in a file, one line a report, and how far MLflow has them.

    Args:
        file: of the run's identity: a run that goes on, or goes to another MLflow, finds what was reported.
        tracking_uri: of the MLflow they go to.
        run_id: MLflow's name of the run.
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
        self._news, self._sending = threading.Event(), threading.Lock()
        self._thread = threading.Thread(target=self._send_for_ever, daemon=True)
        self._away = self._waits = self._closed = False
        self._begins = True

    def append(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write a step's metrics down; returns at once, whatever state MLflow is in."""
        new = {key: float(value) for key, value in metrics.items() if (key, step) not in self._known}
        if not new:
            return
        self._known |= {(key, step) for key in new}
        line = json.dumps({"step": step, "timestamp_ms": time.time_ns() // 1_000_000, "metrics": new})
        try:
            with self.file.open("ab") as stream:
                # One write, which a kill does not divide; it begins a line also after one that a crash left.
                stream.write(f"{chr(10) if self._begins else ''}{line}\n".encode())
                self._begins = False
        except OSError as error:  # a full disk: the checkpoint will say so, which needs more of it
            logger.error("The metrics of step %d cannot be written to %s: %s", step, self.file, error)
            return
        if not self._thread.is_alive():
            self._thread.start()
            atexit.register(self._last_flush)
        self._waits = True
        self._news.set()

    def flush(self, wait_s: float) -> bool:
        """Send what is left, trying for so long; whether MLflow has all of it."""
        deadline = time.monotonic() + wait_s
        self._waits = False
        while not (done := self._send()) and time.monotonic() < deadline:
            time.sleep(min(1.0, wait_s))
        return done

    def close(self, wait_s: float) -> bool:
        """`flush`, and end the thread."""
        done, self._closed = self.flush(wait_s), True
        self._news.set()
        return done

    def _last_flush(self) -> None:
        """Where a process ends that nobody has told to flush, as a worker of several."""
        if self._waits:
            self.flush(_LAST_WAIT_S)

    def _send_for_ever(self) -> None:
        while not self._closed:
            self._news.wait()
            self._news.clear()
            pause_s = 1.0
            while not self._closed and not self._send():
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _send(self) -> bool:
        with self._sending:
            left = _entries(self.file, self._sent)
            try:
                if left:
                    require_answer(self._tracking_uri)
                while left:
                    taken = _first_batch(left)
                    self._send_batch(left[:taken])
                    left = left[taken:]
            except DmlError as error:
                if not self._away:
                    logger.warning("Metrics wait in %s: %s", self.file, error)
                self._away = True
                return False
            if self._away:
                logger.info("MLflow answers again; it has all metrics.")
            self._away = False
            return True

    def _send_batch(self, entries: list[_Entry]) -> None:
        from mlflow.entities import Metric
        from mlflow.exceptions import MlflowException

        # With their own time: what MLflow has already is the same metric, and stays one.
        metrics = [Metric(k, v, e.timestamp_ms, e.step) for e in entries for k, v in e.metrics.items()]
        try:
            connect(self._tracking_uri).log_batch(self._run_id, metrics=metrics)
        except MlflowException as error:  # such as a run that was deleted in MLflow's pages
            logger.warning(
                "MLflow refuses the metrics of steps %d to %d, which stay in %s: %s",
                *(entries[0].step, entries[-1].step, self.file, error),
            )
        self._sent = entries[-1].end
        self._write_record()

    def _write_record(self) -> None:
        record = {"to": without_password(self._tracking_uri), "run_id": self._run_id, "bytes": self._sent}
        try:
            storage.write_json(str(_record_of(self.file)), record)
        except OSError as error:
            logger.error("How far MLflow has %s cannot be written down: %s", self.file, error)


def send_leftovers(folder: Path, tracking_uri: str, *, wait_s: float) -> None:
    """Send what runs that have ended could not send to this MLflow.

    Args:
        folder: of the journals.
        tracking_uri: of an MLflow that has just answered.
        wait_s: for each of them.
    """
    for file in sorted(folder.glob("*.jsonl")):
        record = _read_record(file)
        left = record is not None and int(record["bytes"]) < file.stat().st_size
        if record is not None and left and record["to"] == without_password(tracking_uri):
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
    """How many of the first entries one request takes, at least one."""
    count, metrics = 0, 0
    for entry in entries:
        metrics += len(entry.metrics)
        if count and metrics > MAX_METRICS_PER_BATCH:
            break
        count += 1
    return count


def _record_of(file: Path) -> Path:
    return file.with_suffix(".sent.json")


def _read_record(file: Path) -> dict[str, str | int] | None:
    try:
        return storage.read_json(str(_record_of(file)))
    except (MissingArtifact, ValueError):
        return None
