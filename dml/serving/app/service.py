"""What all routes share: open indexes, the encoder's micro-batches, threads, metrics.

The event loop only waits: images are decoded, encoded and searched for in threads.
"""

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from dml.errors import DmlError, MissingArtifact
from dml.faces import Region
from dml.models.package import Package
from dml.preprocessing import image_size
from dml.retrieval.gallery import Gallery
from dml.serving.app import messages
from dml.serving.app.audit import AuditLog
from dml.serving.app.batcher import ManyAtOnce, MicroBatcher, OneByOne
from dml.serving.app.indexes import OpenIndexes
from dml.serving.app.keys import Keys
from dml.serving.app.metrics import STAGES, Metrics
from dml.serving.app.opened import OpenIndex, require_store
from dml.serving.app.packages import Packages
from dml.serving.app.problems import Refused, refusal_of
from dml.serving.app.recall import RecallSampler
from dml.serving.app.settings import ServiceSettings
from dml.serving.app.telemetry import Tracing, tracing_for
from dml.serving.app.writes import Audited, Done, logged_write
from dml.settings import service_folder

logger = logging.getLogger(__name__)

_WRITERS = 32

T = TypeVar("T")
W = TypeVar("W", bound="_Written")
Vector = NDArray[np.float32]
Encode = OneByOne[Tensor, Vector]
Batched = Callable[[ManyAtOnce[Tensor, Vector]], Encode]
"""Makes a function of one prepared image of a function of many, such as `@serve.batch`."""


class _Written(Protocol):
    """What a write to a gallery returns."""

    @property
    def revision(self) -> int: ...

    @property
    def ids(self) -> list[str]: ...


@dataclass
class Stages:
    """Seconds of the stages of one request; of parallel ones the longest."""

    metrics: Metrics
    tracing: Tracing
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            with self.tracing.stage(stage):
                yield
        finally:
            spent = time.perf_counter() - start
            self.seconds[stage] = max(self.seconds[stage], spent)
            self.metrics.stage.labels(stage).observe(spent)

    def milliseconds(self) -> messages.StageTimes:
        return messages.StageTimes(**{stage: round(1000 * self.seconds[stage], 3) for stage in STAGES})


class Service:
    """Everything that requests share, in one process.

    Args:
        settings: of the service.
        keys: read again when their file changes.
        batched: makes the encoder of one image of that of many; None: micro-batches in this process.
        tracing: makes spans; None: as the settings say.
    """

    def __init__(
        self,
        settings: ServiceSettings,
        *,
        keys: Keys | None = None,
        batched: Batched | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        self.settings, self.metrics, self._keys = settings, Metrics(), keys
        self.tracing = tracing or tracing_for(settings.telemetry)
        self.indexes = OpenIndexes(settings.store, settings.indexes, packages=Packages(settings.encoder))
        self.audit = AuditLog(settings.audit or service_folder(settings.store) / "audit.jsonl")
        self.recall = RecallSampler(settings.recall_share, self.metrics)
        threads = settings.threads or os.cpu_count() or 1
        self._decoding = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._encoding = ThreadPoolExecutor(1, thread_name_prefix="encode")
        self._searching = ThreadPoolExecutor(threads, thread_name_prefix="search")
        # Writers wait for each other's transaction, which they then share: so there are more than cores.
        self._writing = ThreadPoolExecutor(_WRITERS, thread_name_prefix="write")
        self._batched = batched or self._micro_batched
        self._encoders: dict[Package, Encode] = {}
        self._being_decoded = 0
        self._refreshing: asyncio.Task[None] | None = None
        self._said_of_keys = ""
        self.is_ready = False

    async def start(self) -> None:
        """Open the indexes, and look for new versions from then on.

        Raises:
            MissingArtifact: none of them can be opened.
        """
        await self.refresh()
        if not self.indexes.opened:
            why = "; ".join(self.indexes.unavailable.values()) or "the store has none"
            raise MissingArtifact(f"A service must have an index to search; {why.rstrip('.')}.")
        self._refreshing = asyncio.create_task(self._refresh_for_ever())

    async def close(self) -> None:
        """End the threads, after what they are at."""
        if self._refreshing is not None:
            self._refreshing.cancel()
            with suppress(asyncio.CancelledError):
                await self._refreshing
        for pool in (self._decoding, self._encoding, self._searching, self._writing):
            pool.shutdown(wait=True, cancel_futures=True)
        self.recall.close()
        self.tracing.close()
        self.indexes.close()

    async def refresh(self) -> None:
        """Take what was published since into use."""
        self._refresh_keys()
        changed = await asyncio.to_thread(self.indexes.refresh)
        for name in changed:
            self.metrics.swaps.labels(name).inc()
        if changed or not self.is_ready:
            self._measure()
        self._drop_encoders()
        self.is_ready = True

    def _refresh_keys(self) -> None:
        """A file that cannot be read leaves the keys as they are, and indexes are looked for all the same."""
        try:
            if self._keys is not None:
                self._keys.refresh()
            self._said_of_keys = ""
        except (DmlError, OSError) as error:
            if str(error) != self._said_of_keys:
                logger.error("the keys that were read before stay in use: %s", error)
            self._said_of_keys = str(error)

    async def _refresh_for_ever(self) -> None:
        said = ""
        while True:
            await asyncio.sleep(self.settings.refresh_seconds)
            try:
                await self.refresh()
                said = ""
            except Exception as error:
                if repr(error) != said:  # not every second
                    logger.exception("looking for new versions failed; it is tried again")
                said = repr(error)

    def _measure(self) -> None:
        for gauge in self.metrics.of_indexes:
            gauge.clear()  # of those that are no longer served
        self.recall.follow({name: opened.ref.version for name, opened in self.indexes.opened.items()})
        for name, opened in self.indexes.opened.items():
            self.metrics.version.labels(name, opened.ref.version, opened.embedder[:12]).set(1)
            self._measure_gallery(name, opened)
        self.metrics.packages.set(self.indexes.packages.num_loaded)

    def _measure_gallery(self, name: str, opened: OpenIndex) -> None:
        self.metrics.rows.labels(name).set(opened.ref.rows)
        self.metrics.enrolled.labels(name).set(opened.index.num_enrolled)
        self.metrics.forgotten.labels(name).set(opened.index.num_deleted)
        self.metrics.revision.labels(name).set(opened.revision)

    def _drop_encoders(self) -> None:
        """Of models that no index uses; requests that use one of them still have it."""
        used = {opened.package for opened in self.indexes.opened.values()}
        for package in [package for package in self._encoders if package not in used]:
            del self._encoders[package]

    def stages(self) -> Stages:
        """The stages of a request that begins."""
        return Stages(self.metrics, self.tracing)

    async def write(
        self, name: str, audited: Audited, function: Callable[[Gallery], W]
    ) -> tuple[W, OpenIndex]:
        """Call a function that writes to a gallery in a thread, and log who did it.

        Returns:
            What it returned, and the index with what was written: every later search has it.

        Raises:
            Refused: the audit log cannot be written; `write_committed` says whether the gallery was.
        """

        def write() -> tuple[W, OpenIndex]:
            require_store(self.settings.store)
            with logged_write(self.audit, audited) as done:
                result = function(opened.gallery)
                done(Done(result.ids, revision=result.revision))
                return result, self.indexes.take(name)

        with self.indexes.hold(name) as opened:
            result, written = await self._in_thread(self._writing, opened, write)
        self._measure_gallery(name, written)
        return result, written

    async def search(self, opened: OpenIndex, stages: Stages, function: Callable[[], T]) -> T:
        """Call a function that reads an open index in a thread; the index stays open until it ends."""
        with stages.time("search"):
            return await self._in_thread(self._searching, opened, function)

    async def run(self, opened: OpenIndex, function: Callable[[], T]) -> T:
        """As `search`, of what is no search."""
        return await self._in_thread(self._searching, opened, function)

    async def embed(
        self, opened: OpenIndex, stages: Stages, images: Sequence[messages.Image]
    ) -> list[Vector]:
        """(D,) of each image, by the model of the index.

        Raises:
            Refused: an image that cannot be read, by its number.
            IncompatibleArtifact: the model is not in the store.
        """
        if not images:
            return []
        package = opened.required_package
        prepared = await self._prepare_all(opened, stages, package.prepare, images)
        encode = self._encoder(package)
        with stages.time("encode"):
            return list(await asyncio.gather(*map(encode, prepared)))

    async def faces(
        self, opened: OpenIndex, stages: Stages, images: Sequence[messages.Image]
    ) -> list[list[tuple[Region, Vector]]]:
        """Each face of each image and its (D,), the largest first, by the model of the index.

        Raises:
            Refused: an image that cannot be read, by its number; or more faces than `messages.MAX_BATCH`.
            IncompatibleArtifact: the model is not in the store, or detects no faces.
        """
        package, most = opened.required_package, messages.MAX_BATCH
        assert package.required_detector
        find = partial(package.prepare_faces, at_most=most)
        found = await self._prepare_all(opened, stages, find, images)
        count = sum(map(len, found))
        if count > most:
            must = f"The pictures of a request must show at most {most} faces together"
            raise Refused(422, "invalid_request", must, f"got {count}", "Send fewer at once.")
        encode = self._encoder(package)
        with stages.time("encode"):
            vectors = iter(await asyncio.gather(*(encode(crop) for faces in found for _, crop in faces)))
        return [[(region, next(vectors)) for region, _ in faces] for faces in found]

    async def vectors(self, opened: OpenIndex, stages: Stages, queries: Sequence[Any]) -> list[Vector]:
        """(D,) of each query.

        Raises:
            MissingArtifact: an id that is not in the index.
        """
        images = [query.image for query in queries if isinstance(query, messages.ImageQuery)]
        ids = [query.id for query in queries if isinstance(query, messages.IdQuery)]
        embedded = iter(await self.embed(opened, stages, images))
        stored = iter(await self.run(opened, lambda: opened.index.vectors_of(ids)) if ids else ())
        return [
            next(embedded)
            if isinstance(query, messages.ImageQuery)
            else next(stored)
            if isinstance(query, messages.IdQuery)
            else self._given(opened, query.vector)
            for query in queries
        ]

    def _given(self, opened: OpenIndex, vector: Sequence[float]) -> Vector:
        dim = opened.ref.embeddings.dim
        if len(vector) != dim:
            raise Refused(
                422,
                "invalid_request",
                f"A vector must have the {dim} dimensions of index {opened.ref}",
                f"got {len(vector)}",
                f"Embed it with {opened.ref.embeddings.embedder}.",
            )
        return np.asarray(vector, dtype=np.float32)

    async def _prepare_all(
        self,
        opened: OpenIndex,
        stages: Stages,
        function: Callable[[bytes], T],
        images: Sequence[messages.Image],
    ) -> list[T]:
        """The function's result for each image; the encoder waits for them, to take them in one batch."""
        self._being_decoded += len(images)
        try:
            with stages.time("decode"):
                return await asyncio.gather(
                    *(self._prepare(opened, function, number, image) for number, image in enumerate(images))
                )
        finally:
            self._being_decoded -= len(images)

    async def _prepare(
        self, opened: OpenIndex, function: Callable[[bytes], T], number: int, image: messages.Image
    ) -> T:
        def prepare() -> T:
            content = image.content()
            image_size(content, self.settings.limits.pixels)
            return function(content)

        try:
            return await self._in_thread(self._decoding, opened, prepare)
        except (DmlError, Refused) as error:
            refused = refusal_of(error, hide=self.settings.store)
            refused.got = f"image {number}: {refused.got}"
            raise refused from None

    def _encoder(self, package: Package) -> Encode:
        if package not in self._encoders:
            loop = asyncio.get_running_loop()

            def embed(prepared: Sequence[Tensor]) -> list[Vector]:
                return list(package.runtime.embed(prepared).cpu().numpy())

            async def encode(prepared: list[Tensor]) -> list[Vector]:
                self.metrics.batch.observe(len(prepared))
                return await loop.run_in_executor(self._encoding, embed, prepared)

            self._encoders[package] = self._batched(encode)
        return self._encoders[package]

    def _micro_batched(self, encode: ManyAtOnce[Tensor, Vector]) -> Encode:
        batching = self.settings.batching
        return MicroBatcher(
            encode,
            max_size=batching.images,
            wait_s=batching.wait_ms / 1000,
            coming=lambda: self._being_decoded,
        )

    async def _in_thread(self, pool: ThreadPoolExecutor, opened: OpenIndex, function: Callable[[], T]) -> T:
        opened.uses.begin()  # it is open: the request holds it
        try:
            future = pool.submit(function)
        except BaseException:
            opened.uses.end()
            raise
        future.add_done_callback(lambda _: opened.uses.end())
        return await asyncio.wrap_future(future)


def answered(opened: OpenIndex) -> dict[str, Any]:
    """The fields of `messages.Answered`."""
    return {
        "index": str(opened.ref),
        "revision": opened.revision,
        "model": opened.ref.model,
        "embedder": opened.embedder,
        "dim": opened.ref.embeddings.dim,
    }
