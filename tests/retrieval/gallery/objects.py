"""Folders of objects for tests: in memory, and such that something happens before a certain request."""

import hashlib
import threading
import time
from collections.abc import Callable

from dml import storage


class MemoryBucket:
    """Objects by URI; opens folders that answer as `ObjectFolder` does."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        self.lock = threading.Lock()

    def open_folder(self, uri: str) -> "MemoryFolder":
        return MemoryFolder(self, uri)


class MemoryFolder:
    def __init__(self, bucket: MemoryBucket, uri: str) -> None:
        self._bucket, self.uri = bucket, uri

    def list_from(self, name: str = "", *, most: int | None = None) -> list[storage.ListedObject]:
        with self._bucket.lock:
            objects = sorted((uri, *value) for uri, value in self._bucket.objects.items())
        below = [(uri.rpartition("/")[2], *rest) for uri, *rest in objects if uri.startswith(f"{self.uri}/")]
        return [
            storage.ListedObject(each, _etag(content), time.time() - written, len(content))
            for each, content, written in below
            if each > name
        ][:most]

    def read(self, name: str) -> storage.StoredObject:
        with self._bucket.lock:
            content, _ = self._bucket.objects.get(f"{self.uri}/{name}", (None, 0.0))
        return storage.StoredObject(content, None if content is None else _etag(content))

    def write_if_unchanged(self, name: str, content: bytes, read_before: storage.StoredObject) -> str:
        uri = f"{self.uri}/{name}"
        with self._bucket.lock:
            there = self._bucket.objects.get(uri)
            if (None if there is None else _etag(there[0])) != read_before.etag:
                raise storage.WriteConflict(f"{uri} has changed.")
            self._bucket.objects[uri] = content, time.time()
        return _etag(content)


def _etag(content: bytes) -> str:
    return f'"{hashlib.md5(content).hexdigest()}"'


class SteppedFolder:
    """A folder that calls `step` before each request."""

    def __init__(self, folder, step: Callable[[], None]) -> None:
        self._folder, self._step, self.uri = folder, step, folder.uri

    def __getattr__(self, name):
        method = getattr(self._folder, name)

        def request(*arguments, **options):
            self._step()
            return method(*arguments, **options)

        return request


class At:
    """A step: the nth request calls something first; the others only count."""

    def __init__(self, number: int, action: Callable[[], None] = lambda: None) -> None:
        self._number, self._action, self.count = number, action, 0
        self._lock = threading.Lock()

    def __call__(self) -> None:
        with self._lock:
            self.count += 1
            is_now = self.count == self._number
        if is_now:
            self._action()


class Killed(BaseException):
    """What a process that is killed at a request does next: nothing."""


def kill() -> None:
    raise Killed


class Paused:
    """Runs something in a thread up to its nth request, and on when it is told to."""

    def __init__(self, number: int, action: Callable[[Callable[[], None]], object]) -> None:
        self._stopped, self._goes_on = threading.Event(), threading.Event()
        self._errors: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(action, At(number, self._stop)))

    def _stop(self) -> None:
        self._stopped.set()
        assert self._goes_on.wait(60)

    def _run(self, action, step) -> None:
        try:
            action(step)
        except BaseException as error:
            self._errors.append(error)
        finally:
            self._stopped.set()

    def start(self) -> None:
        """Until it stops, or has ended."""
        self._thread.start()
        assert self._stopped.wait(60)

    def finish(self) -> None:
        self._goes_on.set()
        if self._thread.ident is not None:
            self._thread.join(60)
        if self._errors:
            raise self._errors[0]
