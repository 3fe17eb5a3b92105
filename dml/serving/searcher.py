"""A searcher that keeps an index and its model open: image files in, most similar items out.

Opening costs seconds (libraries, the package's weights, the index); a query in an open searcher milliseconds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from os import PathLike, fspath
from typing import Any, Generic, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from dml.errors import InvalidSetting, MissingArtifact
from dml.models.package import Package
from dml.refs import IndexRef, ThresholdsRef, require_package
from dml.reports import Identification, Verification
from dml.retrieval.filters import Where
from dml.retrieval.gallery import Gallery
from dml.retrieval.identifier import Identifier
from dml.retrieval.identities import search_identities
from dml.retrieval.index import published_names
from dml.retrieval.rerank import Rerank, reranked_search
from dml.retrieval.search import Index
from dml.retrieval.shards import open_in_cluster, open_index
from dml.retrieval.thresholds import Thresholds, find_thresholds, find_thresholds_ref
from dml.serving.query_result import QueryResult


class _Version:
    """What belongs to a version of an index beside its items."""

    def __init__(self, store: str, ref: IndexRef) -> None:
        self.store, self.ref = store, ref

    @cached_property
    def thresholds_ref(self) -> ThresholdsRef | None:
        """Read when somebody is identified, since a search needs none."""
        return find_thresholds_ref(self.store, self.ref)

    @cached_property
    def thresholds(self) -> Thresholds | None:
        return None if self.thresholds_ref is None else find_thresholds(self.store, self.ref)


@dataclass(frozen=True)
class _Opened:
    """A revision of a gallery with what embeds its queries; replaced whole."""

    index: Index
    package: Package | None
    """None: the model that embedded the items is not in the store."""
    version: _Version

    @cached_property
    def identifier(self) -> Identifier:
        return Identifier(self.index, self.version.thresholds)


A = TypeVar("A")


@dataclass(frozen=True)
class FaceAnswer(Generic[A]):
    """A face of a picture, and the answer to it."""

    box: tuple[float, float, float, float]
    """Left, top, width and height, pixels of the picture upright."""
    score: float
    """Of the detector, [0, 1]."""
    answer: A


class Searcher:
    """An open index with the model package that embedded its items; can be shared between threads.

    What is enrolled and forgotten, here or by another process of this machine, is seen by the searches after
    it; see `gallery`.

    Example:
        searcher = Searcher.open("dml-store", "shop")
        for result in searcher.search([image], k=3, where="script = 'Greek'"):
            print(result.answers[0].label, result.answers[0].similarity)
    """

    def __init__(self, store: str, gallery: Gallery) -> None:
        self._store, self._gallery = store, gallery
        self._last = self._open()

    @classmethod
    def open(cls, store: str | PathLike[str], index: str | None = None, *, in_cluster: bool = False) -> Self:
        """Open an index of a store.

        Args:
            store: the store's folder or s3:// URI.
            index: NAME (the version in use) or NAME@VERSION; None: the store's only index.
            in_cluster: hold the shards of an index in processes of the open Ray session, see
                `dml.retrieval.shards.open_in_cluster`; what reads the items, as `identify`, is then refused.

        Raises:
            MissingArtifact: no such index, or several and none was named.
            CorruptArtifact: the package's files are not those that were published.
            InvalidSetting: `in_cluster`, and the index has no shards.
        """
        store = fspath(store)
        name = only_index(store) if index is None else index
        return cls(store, Gallery.open(store, name, open_base=open_in_cluster if in_cluster else open_index))

    @property
    def gallery(self) -> Gallery:
        """Enrols, changes and forgets items."""
        return self._gallery

    @property
    def _opened(self) -> _Opened:
        """What a search begins with; the next one may find more."""
        last = self._last
        if self._gallery.live is not last.index:
            self._last = last = self._open(last)
        return last

    def _open(self, last: _Opened | None = None) -> _Opened:
        index = self._gallery.live
        if last is not None and index.ref.fingerprint == last.index.ref.fingerprint:
            return _Opened(index, last.package, last.version)
        return _Opened(index, self._gallery.package_of(index.ref), _Version(self._store, index.ref))

    @property
    def index(self) -> IndexRef:
        """The current version."""
        return self._opened.index.ref

    @property
    def package(self) -> Package:
        """The package that embeds the queries, which is the package that embedded the items.

        Raises:
            IncompatibleArtifact: the items were embedded by a model that is not in the store.
        """
        return _require_package(self._opened)

    def search(
        self, images: Sequence[bytes], *, k: int = 10, where: Where = None, rerank: Rerank | None = None
    ) -> list[QueryResult]:
        """Embed images and find the most similar items of each.

        Args:
            images: Q files' bytes, in any format Pillow reads.
            k: number of answers per query.
            where: a filter of items by their attributes, as text, a filter, JSON, or several of these, which
                must all hold; see `dml.retrieval.filters`.
            rerank: puts the 100 most similar items in another order: "query-expansion", "k-reciprocal", or a
                function of a query (D,) and `dml.retrieval.rerank.Candidates` that returns a score for each.

        Returns:
            Q results in the order of the images, all of the same index version.

        Raises:
            IncompatibleArtifact: a model that is not in the store embedded the items.
            InvalidData: a file that is not an image.
            InvalidSetting: k below 1, or a filter (InvalidFilter) that cannot be read or does not fit.
        """
        opened = self._opened  # `refresh` can replace it during the search
        vectors = _require_package(opened).embed(images)
        return self._answers(opened.index, vectors, k, where, rerank)

    def search_vectors(
        self,
        vectors: NDArray[np.float32],
        *,
        k: int = 10,
        where: Where = None,
        rerank: Rerank | None = None,
    ) -> list[QueryResult]:
        """Find the items most similar to vectors that the items' embedder computed outside this process.

        Args:
            vectors: (Q, D) float32 of unit length.
            k: number of answers per query.
            where: as of `search`.
            rerank: as of `search`.

        Raises:
            InvalidData: vectors of another dimension or not of unit length.
            InvalidSetting: k below 1, or a filter (InvalidFilter) that cannot be read or does not fit.
        """
        return self._answers(self._opened.index, vectors, k, where, rerank)

    def search_ids(
        self, ids: Sequence[str], *, k: int = 10, where: Where = None, rerank: Rerank | None = None
    ) -> list[QueryResult]:
        """Find the items most similar to items of the index; an item is never its own answer.

        Args:
            ids: Q ids of items.
            k: number of answers per query.
            where: as of `search`; the items of `ids` need not satisfy it.
            rerank: as of `search`.

        Raises:
            MissingArtifact: an id that is not in the index.
            InvalidSetting: k below 1, or a filter (InvalidFilter) that cannot be read or does not fit.
        """
        index = self._opened.index
        return self._answers(index, index.vectors_of(ids), k, where, rerank, exclude_ids=ids)

    def _answers(
        self,
        index: Index,
        vectors: NDArray[np.float32],
        k: int,
        where: Where,
        rerank: Rerank | None = None,
        *,
        exclude_ids: Sequence[str] | None = None,
    ) -> list[QueryResult]:
        embedder = index.ref.embeddings.embedder.fingerprint
        if rerank is None:
            result = index.search(vectors, k, where=where, embedder=embedder, exclude_ids=exclude_ids)
        else:
            result = reranked_search(
                index, vectors, k, by=rerank, where=where, embedder=embedder, exclude_ids=exclude_ids
            )
        return [QueryResult(index.ref, answers, result.plan) for answers in result.answers]

    def identify(
        self,
        probe: bytes | NDArray[np.float32],
        *,
        scopes: Sequence[Where] = ("",),
        hint: Mapping[str, Any] | None = None,
        fpir: float | None = None,
        threshold: float | None = None,
        never_ask: Sequence[str] = (),
        margin: float = math.inf,
    ) -> Identification:
        """Find out whose image this is, of those enrolled; "unknown" is an answer.

        Args:
            probe: an image file's bytes, or (D,) float32 of unit length.
            scopes: filters, tried in order, such as `["device = '17'", "region = 'east'", ""]`; an empty text
                is the whole gallery. Each accepts only above its own calibrated threshold.
            hint: attribute to value, known of the probe; resolves `needs_hint`.
            fpir: false-positive identification rate over all scopes; None: what was calibrated.
            threshold: similarity for every scope, instead of calibrated ones.
            never_ask: attributes that the answer must not ask for.
            margin: an identity further below the best one than this is no candidate; by default every one
                above the threshold is.

        Raises:
            MissingArtifact: the index was not calibrated (`dml calibrate`), and there is no threshold.
            InvalidSetting: a scope that is not calibrated, or for which nothing can be promised.

        Example:
            answer = searcher.identify(image, scopes=["region = 'east'", ""], fpir=0.01)
            if answer.status == "needs_hint":
                answer = searcher.identify(image, scopes=["region = 'east'", ""], hint={answer.ask: asked})
        """
        opened = self._opened
        (vector,) = _embed(opened, [probe])
        return opened.identifier.identify(
            vector,
            embedder=opened.index.ref.embeddings.embedder.fingerprint,
            scopes=scopes,
            hint=hint,
            fpir=fpir,
            threshold=threshold,
            never_ask=never_ask,
            margin=margin,
        )

    def search_faces(
        self,
        image: bytes,
        *,
        k: int = 10,
        where: Where = None,
        rerank: Rerank | None = None,
        grouping: str | None = None,
    ) -> list[FaceAnswer[QueryResult]]:
        """Find the items, or identities, that are the most similar to each face of a picture.

        Args:
            image: an image file's bytes.
            k: number of answers per face.
            where, rerank: as of `search`.
            grouping: identities instead of items, as of `search_identities`; not with `rerank`.

        Returns:
            One result for each face, the largest first, all of the same index version; none for no face.

        Raises:
            IncompatibleArtifact: the model of the index detects no faces.
            InvalidSetting: as `search` and `search_identities`, or both rerank and grouping.
        """
        if rerank is not None and grouping is not None:
            raise InvalidSetting(
                f"Answers must be reranked items or identities; got rerank {rerank!r} and grouping "
                f"{grouping!r}. Leave one out."
            )
        opened = self._opened
        faces = _require_package(opened).embed_faces(image)
        if not faces:
            return []
        if grouping is None:
            vectors = np.stack([vector for _, vector in faces])
            results = self._answers(opened.index, vectors, k, where, rerank)
        else:
            results = [_identities(opened.index, vector, k, where, grouping) for _, vector in faces]
        return [
            FaceAnswer(region.box, region.score, result)
            for (region, _), result in zip(faces, results, strict=True)
        ]

    def identify_faces(self, image: bytes, **options: Any) -> list[FaceAnswer[Identification]]:
        """Find out who each face of a picture is.

        Args:
            image: an image file's bytes.
            options: of `identify`: scopes, hint, fpir, threshold, never_ask, margin.

        Returns:
            One answer for each face, the largest first, all of the same index version; none for no face.

        Raises:
            IncompatibleArtifact: the model of the index detects no faces.
            MissingArtifact, InvalidSetting: as `identify`.

        Example:
            for face in searcher.identify_faces(Path("party.jpg").read_bytes(), threshold=0.5):
                print(face.box, face.answer.identity)
        """
        opened = self._opened
        embedder = opened.index.ref.embeddings.embedder.fingerprint
        return [
            FaceAnswer(
                region.box, region.score, opened.identifier.identify(vector, embedder=embedder, **options)
            )
            for region, vector in _require_package(opened).embed_faces(image)
        ]

    def verify(
        self,
        probe: bytes | NDArray[np.float32],
        other: bytes | NDArray[np.float32] | str,
        *,
        fmr: float | None = None,
        threshold: float | None = None,
    ) -> Verification:
        """Decide whether two images show the same identity, or one image an enrolled identity.

        Args:
            probe: an image file's bytes, or (D,) float32 of unit length.
            other: another such, or an identity, a label: then the most similar of all its images counts.
            fmr: false-match rate: the share of impostors who are taken for the other; None: 0.001.
            threshold: similarity instead of a calibrated one.

        Raises:
            MissingArtifact: no such identity; or the index was not calibrated, and there is no threshold.
            InvalidSetting: too few pairs to promise this rate.
        """
        opened = self._opened
        embedder = opened.index.ref.embeddings.embedder.fingerprint
        known = [probe] if isinstance(other, str) else [probe, other]
        first, *second = _embed(opened, known)
        return opened.identifier.verify(
            first, second[0] if second else str(other), embedder=embedder, fmr=fmr, threshold=threshold
        )

    def verify_faces(
        self, image: bytes, other: bytes | NDArray[np.float32] | str, **options: Any
    ) -> list[FaceAnswer[Verification]]:
        """Decide of each face of a picture whether it is the other image's, or an enrolled identity's.

        Args:
            image: an image file's bytes.
            other: as of `verify`; of an image its largest face.
            options: of `verify`: fmr or threshold.

        Returns:
            One answer for each face, the largest first, all of the same index version; none for no face.

        Raises:
            IncompatibleArtifact: the model of the index detects no faces.
            MissingArtifact, InvalidSetting: as `verify`.
        """
        opened = self._opened
        embedder = opened.index.ref.embeddings.embedder.fingerprint
        faces = _require_package(opened).embed_faces(image)
        known = other if isinstance(other, str) else _embed(opened, [other])[0]
        return [
            FaceAnswer(
                region.box,
                region.score,
                opened.identifier.verify(vector, known, embedder=embedder, **options),
            )
            for region, vector in faces
        ]

    def search_identities(
        self,
        probe: bytes | NDArray[np.float32] | str,
        *,
        k: int = 10,
        where: Where = None,
        grouping: str = "best",
    ) -> QueryResult:
        """Find the most similar identities: the answers of a search, grouped by label.

        Args:
            probe: an image file's bytes, (D,) float32 of unit length, or the id of an item, which is then no
                answer.
            k: number of identities.
            where: as of `search`.
            grouping: "best": as similar as its most similar image; "mean": as the mean of its images; "all":
                as its most similar image, with all its images.

        Raises:
            InvalidSetting: k below 1, another grouping, or a filter that does not fit.
        """
        opened = self._opened
        index, excluded = opened.index, probe if isinstance(probe, str) else None
        (vector,) = index.vectors_of([probe]) if isinstance(probe, str) else _embed(opened, [probe])
        return _identities(index, vector, k, where, grouping, exclude_id=excluded)

    def refresh(self) -> bool:
        """Switch to the current version of the index, and to its latest thresholds; returns whether the
        version changed.

        Running searches finish on the version they started with. A searcher of NAME@VERSION does not change.
        """
        former = self._last
        changed = self._gallery.refresh()
        version = former.version
        if not changed and "thresholds_ref" in vars(version):
            ref = former.index.ref
            if find_thresholds_ref(self._store, ref) != version.thresholds_ref:
                self._last = _Opened(self._gallery.live, former.package, _Version(self._store, ref))
        return changed


def _identities(
    index: Index,
    vector: NDArray[np.float32],
    k: int,
    where: Where,
    grouping: str,
    *,
    exclude_id: str | None = None,
) -> QueryResult:
    hits = search_identities(
        index,
        vector,
        k,
        embedder=index.ref.embeddings.embedder.fingerprint,
        where=where,
        grouping=grouping,
        exclude_id=exclude_id,
    )
    return QueryResult(index.ref, [], f"{len(hits)} identities, by {grouping}", hits)


def _embed(opened: _Opened, probes: Sequence[bytes | NDArray[np.float32] | str]) -> list[NDArray[np.float32]]:
    """(D,) of each image or vector.

    Raises:
        InvalidSetting: what is neither.
    """
    dim = opened.index.ref.embeddings.dim
    for probe in probes:
        if not isinstance(probe, bytes) and np.shape(probe) != (dim,):
            is_vector = isinstance(probe, np.ndarray)
            got = f"shape {np.shape(probe)}" if is_vector else type(probe).__name__
            do = "Embed it as the items were." if is_vector else "Pass Path(file).read_bytes()."
            raise InvalidSetting(
                f"A probe must be an image file's bytes, or a vector ({dim},); got {got}. {do}"
            )
    images = [probe for probe in probes if isinstance(probe, bytes)]
    embedded = iter(_require_package(opened).embed(images) if images else ())
    return [next(embedded) if isinstance(probe, bytes) else np.asarray(probe) for probe in probes]


def _require_package(opened: _Opened) -> Package:
    if opened.package is None:
        require_package(opened.index.ref.embeddings.embedder, "A search by image")
    assert opened.package is not None
    return opened.package


def only_index(store: str) -> str:
    """The name of a store's only index; raises MissingArtifact where it has none or several."""
    names = published_names(store)
    if not names:
        raise MissingArtifact(
            f"A search needs an index; the store {store} has none. Make one: "
            "dml index NAME --model MODEL --dataset DATASET."
        )
    if len(names) > 1:
        raise MissingArtifact(f"--index must name one of the store's indexes {names}; none was given.")
    return names[0]
