"""The package, a published model: weights in safetensors, configuration and preprocessing in JSON, no pickle.

It loads without training code, and its fingerprint covers all that decides an embedding: the weights, the
network's description, its runtime, the preprocessing and the face detector, if it has one.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save

from dml import storage
from dml.config import PreprocessingConfig
from dml.config.training import Precision
from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidData, MissingArtifact
from dml.faces import Detector, DetectorConfig, NoFace, Region, all_regions, main_region
from dml.models.encoder import Encoder
from dml.models.runtimes import Runtime, StoredNetwork, runtime
from dml.models.runtimes.torch import WEIGHTS, TorchRuntime
from dml.preprocessing import Encoded, decode
from dml.refs import DatasetRef, PackageRef

FORMAT_VERSION = 2
_DECISIVE = ("format_version", "runtime", "encoder", "preprocessing")
"""Of the description, what the fingerprint covers."""
_DECISIVE_IF_PRESENT = ("detector",)
DETECTOR = "detector.onnx"
"""The file of the face detector's model."""
_THREADS_AT_MOST = 16
_DESCRIPTION = "package.json"


class Package:
    """A loaded package: image bytes in, unit-length embeddings out."""

    def __init__(self, ref: PackageRef, runtime: Runtime, detector: Detector | None = None) -> None:
        self.ref = ref
        self.runtime = runtime
        self.detector = detector

    @property
    def preprocessing(self) -> PreprocessingConfig:
        """The preprocessing of images for the network, after a detector's crop."""
        return self.runtime.preprocessing

    @property
    def device(self) -> torch.device:
        return self.runtime.device

    @property
    def precision(self) -> Precision:
        """The precision of the computation; never "auto"."""
        return self.runtime.precision

    @property
    def encoder(self) -> Encoder:
        """The torch module; raises IncompatibleArtifact for a network of another runtime."""
        if not isinstance(self.runtime, TorchRuntime):
            raise IncompatibleArtifact(
                f"This needs a network that torch computes; package {self.ref.version}, of "
                f"{self.ref.source or 'a training'}, has the runtime {type(self.runtime).__name__}. Name "
                "another model."
            )
        return self.runtime.encoder

    def embed(
        self,
        images: Sequence[bytes],
        *,
        batch_size: int = 256,
        num_threads: int | None = None,
        unit_length: bool = True,
    ) -> NDArray[np.float32]:
        """Embed encoded images.

        Args:
            images: N files' bytes, in one of `preprocessing.FORMATS`, of at most MAX_PIXELS each.
            batch_size: images decoded and embedded at a time; bounds the memory.
            num_threads: they decode the next batch while this one is embedded; None: this machine's cores for
                a GPU, at most 16, and 0 for a CPU, whose cores embed.
            unit_length: False: as the network gives them, of any length, to draw them; an index, a search and
                an evaluation take unit length.

        Returns:
            (N, D) float32, unit length unless otherwise asked, in the order of the images.

        Raises:
            UnreadableImage: bytes that are no image, or of more pixels.
            NoFace: this package detects faces, and an image shows none; of several the largest is embedded.
            ValueError: no sequence of bytes, such as one image alone, paths or arrays.
        """
        _require_encoded(images)
        if num_threads is None:
            num_threads = min(os.cpu_count() or 1, _THREADS_AT_MOST) if self.device.type == "cuda" else 0
        batches = _batches(images, batch_size)
        if num_threads:
            prepared = self._prepared_ahead(batches, num_threads)
        else:
            prepared = ([self.prepare(image) for image in batch] for batch in batches)
        # They stay on the device until all are made, so that it never waits for the host.
        parts = [self.runtime.embed(batch, unit_length=unit_length) for batch in prepared]
        if not parts:
            return np.empty((0, self.ref.dim), dtype=np.float32)
        values: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return values

    def prepare(self, content: Encoded) -> Any:
        """Decode an image file, crop its largest face where this package detects faces, and preprocess.

        Called from several threads.

        Raises:
            UnreadableImage, NoFace: as `embed`.
        """
        if self.detector is None:
            return self.runtime.prepare(decode(content, self.preprocessing.color))
        region = main_region(self.detector, np.asarray(decode(content, "RGB")))
        return self._prepare_crop(region.crop)

    def _prepare_crop(self, crop: NDArray[np.uint8]) -> Any:
        return self.runtime.prepare(Image.fromarray(crop).convert(self.preprocessing.color))

    def shows_face(self, content: Encoded) -> bool:
        """Whether an image file can be embedded, by a package that detects faces; raises UnreadableImage."""
        try:
            self.prepare(content)
        except NoFace:
            return False
        return True

    @property
    def required_detector(self) -> Detector:
        """Raises IncompatibleArtifact where this package detects no faces."""
        if self.detector is None:
            raise IncompatibleArtifact(
                f"To find every face of a picture the model must detect faces; package {self.ref.version} "
                "does not. Import it with a detector's file: dml models import FILE --detector yunet.onnx "
                "--yes."
            )
        return self.detector

    def prepare_faces(self, content: Encoded, *, at_most: int | None = None) -> list[tuple[Region, Any]]:
        """Each face of an image file with its prepared crop, the largest first; empty where there is none.

        Raises:
            UnreadableImage: as `embed`.
            IncompatibleArtifact: this package detects no faces.
            InvalidData: there are more than `at_most`.
        """
        regions = all_regions(self.required_detector, np.asarray(decode(content, "RGB")))
        if at_most is not None and len(regions) > at_most:
            raise InvalidData(
                f"A picture must show at most {at_most} faces; got {len(regions)}. Send parts of it."
            )
        return [(region, self._prepare_crop(region.crop)) for region in regions]

    def embed_faces(self, image: bytes, *, batch_size: int = 256) -> list[tuple[Region, NDArray[np.float32]]]:
        """Embed each face of an image.

        Args:
            image: a file's bytes, as of `embed`.
            batch_size: faces embedded at a time.

        Returns:
            Each face and its embedding, (D,) of unit length, the largest first; empty where there is none.

        Raises:
            UnreadableImage, IncompatibleArtifact: as `prepare_faces`.
        """
        faces = self.prepare_faces(image)
        batches = [faces[start : start + batch_size] for start in range(0, len(faces), batch_size)]
        vectors = [
            vector
            for batch in batches
            for vector in self.runtime.embed([each for _, each in batch]).cpu().numpy()
        ]
        return [(region, vector) for (region, _), vector in zip(faces, vectors, strict=True)]

    def _prepared_ahead(self, batches: Iterable[Sequence[bytes]], num_threads: int) -> Iterator[list[Any]]:
        with ThreadPoolExecutor(num_threads, thread_name_prefix="embed") as pool:
            begun = ([pool.submit(self.prepare, image) for image in batch] for batch in batches)
            current = next(begun, None)
            while current is not None:
                following = next(begun, None)
                yield [image.result() for image in current]
                current = following


def _require_encoded(images: object) -> None:
    kinds = bytes | bytearray | memoryview
    if isinstance(images, str | kinds) or not isinstance(images, Sequence):
        raise ValueError(
            f"images must be a list of image files' bytes; got {type(images).__name__}. Pass a list, "
            "also for a single one: [image]."
        )
    for number, image in enumerate(images):
        if not isinstance(image, kinds):
            raise ValueError(
                f"images must be image files' bytes; got {type(image).__name__} as number {number}. Pass "
                "pathlib.Path(FILE).read_bytes()."
            )


def _batches(images: Sequence[bytes], batch_size: int) -> Iterator[Sequence[bytes]]:
    for start in range(0, len(images), batch_size):
        yield images[start : start + batch_size]


@dataclass(frozen=True)
class Contents:
    """The contents of a package: everything that determines an embedding."""

    runtime: str
    """What computes it, by the name of its file in `dml.models.runtimes`."""
    encoder: Mapping[str, Any]
    """The runtime's settings, a JSON tree."""
    preprocessing: PreprocessingConfig
    files: Mapping[str, bytes]
    """Beside the description, by name."""
    dim: int
    """D, the length of an embedding."""
    detector: DetectorConfig | None = None
    """Finds the face of an image before the preprocessing, by the model in `files[DETECTOR]`; None: none."""


def save_package(
    store: str,
    encoder: Encoder,
    preprocessing: PreprocessingConfig,
    *,
    dataset: DatasetRef | None = None,
    initial: PackageRef | None = None,
    experiment: dict[str, Any] | None = None,
) -> PackageRef:
    """Publish an encoder as a package in the store; the same encoder gives the same package.

    Args:
        store: the store's URI.
        encoder: its weights are copied as float32.
        preprocessing: what an image must become before this encoder sees it.
        dataset: what it was trained on; None for an untrained encoder.
        initial: the same encoder before that training.
        experiment: the configuration it came from, kept for the reader.
    """
    contents = contents_of(encoder, preprocessing)
    return publish_package(
        store, contents, dataset=dataset, initial=initial, about={"experiment": experiment}
    )


def contents_of(encoder: Encoder, preprocessing: PreprocessingConfig) -> Contents:
    """The contents of a package for an encoder."""
    weights = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    # Where the first weights came from does not decide what the package computes, and names a local path.
    backbone = encoder.config.backbone.model_dump(mode="json", exclude={"weights", "pretrained"})
    config = {**encoder.config.model_dump(mode="json"), "backbone": backbone}
    return Contents("torch", config, preprocessing, {WEIGHTS: save(weights)}, encoder.config.dim)


def publish_package(
    store: str,
    contents: Contents,
    *,
    dataset: DatasetRef | None = None,
    initial: PackageRef | None = None,
    source: str = "",
    license: str = "",
    about: Mapping[str, Any] | None = None,
) -> PackageRef:
    """Publish a package in the store; the same contents give the same package.

    Args:
        store: the store's URI.
        contents: all that decides an embedding.
        dataset: what it was trained on.
        initial: the same encoder before that training.
        source: where a network that was not trained here comes from, as `timm:resnet50`.
        license: of its weights, as its authors say.
        about: more for the reader, which decides nothing.
    """
    description = {
        "format_version": FORMAT_VERSION,
        "runtime": contents.runtime,
        "encoder": dict(contents.encoder),
        "preprocessing": contents.preprocessing.model_dump(mode="json"),
    }
    if contents.detector is not None:
        description["detector"] = contents.detector.model_dump(mode="json")
    digests = {name: storage.digest_of_bytes(content) for name, content in contents.files.items()}
    fingerprint = storage.digest_of(description, digests)
    uri = storage.join(store, "packages", fingerprint[:12])
    ref = PackageRef(
        uri=uri,
        fingerprint=fingerprint,
        dim=contents.dim,
        dataset=dataset,
        initial=initial,
        source=source,
        license=license,
    )
    if storage.is_intact(uri):
        return ref
    with storage.staged(uri) as staged:
        for name, content in contents.files.items():
            storage.write_bytes(storage.join(staged, name), content)
        storage.write_json(storage.join(staged, _DESCRIPTION), {**description, **(about or {})})
        storage.publish(staged, uri, {"ref": ref.model_dump(mode="json", exclude={"uri"})})
    return ref


def find_package(uri: str) -> PackageRef:
    """The ref of a published package; raises MissingArtifact where there is none."""
    if not storage.is_complete(uri):
        raise MissingArtifact(
            f"The package of a model must be in the store, or nothing can be embedded by it; {uri} has none. "
            "Restore that folder from a copy; or train or import the model again, and index by it: "
            "dml index NAME."
        )
    return PackageRef(uri=uri, **storage.read_manifest(uri)["ref"])


def read_preprocessing(ref: PackageRef) -> PreprocessingConfig:
    """The preprocessing of a package, without loading its weights."""
    description = _read_description(ref.uri)
    return PreprocessingConfig.model_validate(description["preprocessing"])


def runtime_of(ref: PackageRef) -> str:
    """What computes a package, by the name of its file in `dml.models.runtimes`, without loading it."""
    return str(_read_description(ref.uri)["runtime"])


def has_detector(ref: PackageRef) -> bool:
    """Whether a package detects faces, without loading it."""
    return "detector" in _read_description(ref.uri)


def requirements_of(ref: PackageRef) -> tuple[str, ...]:
    """Distributions that a package's runtime needs beside those of every package."""
    description = _read_description(ref.uri)
    of_detector = ("opencv-python-headless",) if "detector" in description else ()
    return *runtime(description["runtime"]).requirements(description["encoder"]), *of_detector


def load_package(uri: str, *, device: str | None = None, precision: Precision = "auto") -> Package:
    """Load a published package from its URI.

    Args:
        uri: the package's folder.
        device: a torch device; None takes a GPU where there is one.
        precision: as of training; whatever it is, embeddings are float32 and of unit length.

    Raises:
        MissingArtifact: there is no package.
        CorruptArtifact: its weights are not those that were published.
        IncompatibleArtifact: it was made by another version of this project.
    """
    ref = find_package(uri)
    folder = storage.fetch(uri, ref.fingerprint)
    return read_package(str(folder), ref, device=device, precision=precision)


def _read_description(folder: str) -> dict[str, Any]:
    description = storage.read_json(storage.join(folder, _DESCRIPTION))
    version = description.get("format_version")
    if isinstance(version, int) and version != FORMAT_VERSION:
        raise IncompatibleArtifact(
            f"The package in {folder} must have format version {FORMAT_VERSION}; got {version}. Train it "
            "again, or install the version of this project that made it."
        )
    missing = [key for key in _DECISIVE if key not in description]
    if missing or not isinstance(version, int):
        raise CorruptArtifact(
            f"{storage.join(folder, _DESCRIPTION)} must say {', '.join(_DECISIVE)}; it was changed. Publish "
            "the package again."
        )
    return description


def read_package(
    folder: str,
    ref: PackageRef | None = None,
    *,
    device: str | None = None,
    precision: Precision = "auto",
) -> Package:
    """Load a package from the files of a local folder, such as a copy inside a model registry.

    Raises:
        MissingArtifact, CorruptArtifact, IncompatibleArtifact: as `load_package`.
    """
    ref = ref or find_package(folder)
    description = _read_description(folder)
    decisive = {key: description[key] for key in (*_DECISIVE, *_DECISIVE_IF_PRESENT) if key in description}
    digests = {}
    for name in storage.read_manifest(folder)["files"]:
        if not storage.exists(storage.join(folder, name)):
            raise MissingArtifact(f"A package must hold {name}; {folder} does not. Publish it again.")
        if name != _DESCRIPTION:
            digests[name] = storage.file_digest(storage.join(folder, name))
    if storage.digest_of(decisive, digests) != ref.fingerprint:
        raise CorruptArtifact(
            f"The package in {folder} must have fingerprint {ref.fingerprint}; its files have another. "
            "They were changed or cut short: publish it again."
        )
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    stored = StoredNetwork(
        folder=Path(folder),
        settings=description["encoder"],
        preprocessing=PreprocessingConfig.model_validate(description["preprocessing"]),
        device=torch.device(chosen),
        precision=precision,
    )
    ready = runtime(description["runtime"])(stored)
    if ready.dim != ref.dim:
        raise CorruptArtifact(
            f"The package in {folder} must give embeddings of {ref.dim} numbers, as its ref says; its "
            f"encoder gives {ready.dim}. Its manifest was changed: publish it again."
        )
    detector = None
    if "detector" in description:
        detector = DetectorConfig.model_validate(description["detector"]).open(Path(folder) / DETECTOR)
    return Package(ref, ready, detector)
