"""The package: the model we ship. Safetensors weights, encoder and preprocessing in JSON, no pickle anywhere.

It loads without training code, and its fingerprint covers all that decides an embedding: the weights, the
encoder's configuration and the preprocessing.
"""

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save
from torch import Tensor

from dml import storage
from dml.config import EncoderConfig, PreprocessingConfig
from dml.config.training import Precision
from dml.errors import CorruptArtifact, IncompatibleArtifact, MissingArtifact
from dml.models.encoder import Encoder
from dml.models.precision import autocast, choose_precision, convolutions_in
from dml.preprocessing import preprocess, preprocess_batch
from dml.refs import DatasetRef, PackageRef

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_DECISIVE = ("format_version", "encoder", "preprocessing")
"""Of the description, what the fingerprint covers."""
_THREADS_AT_MOST = 16
_WEIGHTS, _DESCRIPTION = "weights.safetensors", "package.json"


class Package:
    """A loaded package: image bytes in, unit-length embeddings out."""

    def __init__(
        self,
        ref: PackageRef,
        encoder: Encoder,
        preprocessing: PreprocessingConfig,
        device: torch.device,
        precision: Precision = "auto",
    ) -> None:
        self.ref = ref
        self.preprocessing = preprocessing
        self.device = device
        self.precision, why = choose_precision(precision, device)
        if device.type == "cuda":
            logger.info("embedding in %s, %s", self.precision, why)
        self.encoder = encoder.eval().to(device).to(memory_format=torch.channels_last)

    def embed(
        self, images: Sequence[bytes], *, batch_size: int = 256, num_threads: int | None = None
    ) -> NDArray[np.float32]:
        """Embed encoded images.

        Args:
            images: N files' bytes, in one of `preprocessing.FORMATS`, of at most MAX_PIXELS each.
            batch_size: images decoded and embedded at a time; bounds the memory.
            num_threads: they decode the next batch while this one is embedded; None: this machine's cores for
                a GPU, at most 16, and 0 for a CPU, whose cores embed.

        Returns:
            (N, D) float32, unit length, in the order of the images.

        Raises:
            UnreadableImage: bytes that are no image, or of more pixels.
            ValueError: no sequence of bytes, such as one image alone, paths or arrays.
        """
        _require_encoded(images)
        if num_threads is None:
            num_threads = min(os.cpu_count() or 1, _THREADS_AT_MOST) if self.device.type == "cuda" else 0
        batches = _batches(images, batch_size)
        if num_threads:
            pixels = self._decoded_ahead(batches, num_threads)
        else:
            pixels = (preprocess_batch(batch, self.preprocessing) for batch in batches)
        # They stay on the device until all are made, so that it never waits for the host.
        parts = [self._embed_pixels(batch) for batch in pixels]
        if not parts:
            return np.empty((0, self.ref.dim), dtype=np.float32)
        values: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
        return values

    def _decoded_ahead(self, batches: Iterable[Sequence[bytes]], num_threads: int) -> Iterator[Tensor]:
        with ThreadPoolExecutor(num_threads, thread_name_prefix="embed") as pool:
            begun = ([pool.submit(preprocess, image, self.preprocessing) for image in b] for b in batches)
            current = next(begun, None)
            while current is not None:
                following = next(begun, None)
                pixels = torch.stack([image.result() for image in current])
                yield pixels.pin_memory() if self.device.type == "cuda" else pixels
                current = following

    def _embed_pixels(self, pixels: Tensor) -> Tensor:
        on_device = pixels.to(self.device, non_blocking=True)
        on_gpu = convolutions_in(self.precision) if self.device.type == "cuda" else nullcontext()
        with torch.inference_mode(), on_gpu, autocast(self.precision, self.device):
            embeddings: Tensor = self.encoder(on_device.to(memory_format=torch.channels_last))
        return embeddings


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
    weights = {k: v.detach().cpu().contiguous() for k, v in encoder.state_dict().items()}
    weights_bytes = save(weights)
    # Where the first weights came from does not decide what the package computes, and names a local path.
    backbone = encoder.config.backbone.model_dump(mode="json", exclude={"weights", "pretrained"})
    config = {**encoder.config.model_dump(mode="json"), "backbone": backbone}
    description = {
        "format_version": FORMAT_VERSION,
        "encoder": config,
        "preprocessing": preprocessing.model_dump(mode="json"),
    }
    fingerprint = storage.digest_of(description, storage.digest_of_bytes(weights_bytes))
    uri = storage.join(store, "packages", fingerprint[:12])
    ref = PackageRef(
        uri=uri, fingerprint=fingerprint, dim=encoder.config.dim, dataset=dataset, initial=initial
    )
    if storage.is_intact(uri):
        return ref
    with storage.staged(uri) as staged:
        storage.write_bytes(storage.join(staged, _WEIGHTS), weights_bytes)
        storage.write_json(storage.join(staged, _DESCRIPTION), {**description, "experiment": experiment})
        storage.publish(staged, uri, {"ref": ref.model_dump(mode="json", exclude={"uri"})})
    return ref


def find_package(uri: str) -> PackageRef:
    """The ref of a published package; raises MissingArtifact where there is none."""
    return PackageRef(uri=uri, **storage.read_manifest(uri)["ref"])


def read_preprocessing(ref: PackageRef) -> PreprocessingConfig:
    """What a package makes of an image before embedding it, without loading its weights."""
    description = storage.read_json(storage.join(ref.uri, _DESCRIPTION))
    return PreprocessingConfig.model_validate(description["preprocessing"])


def load_package(uri: str, *, device: str | None = None, precision: Precision = "auto") -> Package:
    """Load a package from wherever it was published.

    Args:
        uri: the package's folder.
        device: a torch device; None takes a GPU where there is one.
        precision: as of training; whatever it is, embeddings are float32 and of unit length.

    Raises:
        MissingArtifact: there is no package.
        CorruptArtifact: its weights are not those that were published.
        IncompatibleArtifact: it was made by a newer version of this project.
    """
    ref = find_package(uri)
    folder = storage.fetch(uri, ref.fingerprint)
    return read_package(str(folder), ref, device=device, precision=precision)


def _read_description(folder: str) -> dict[str, Any]:
    description = storage.read_json(storage.join(folder, _DESCRIPTION))
    missing = [key for key in _DECISIVE if key not in description]
    if missing or not isinstance(description["format_version"], int):
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
    if description["format_version"] > FORMAT_VERSION:
        raise IncompatibleArtifact(
            f"The package in {folder} must have a format version up to {FORMAT_VERSION}; got "
            f"{description['format_version']}. Install the version of this project that made it."
        )
    weights_uri = storage.join(folder, _WEIGHTS)
    if not storage.exists(weights_uri):
        raise MissingArtifact(f"A package must hold {_WEIGHTS}; {folder} does not. Publish it again.")
    decisive = {key: description[key] for key in _DECISIVE}
    if storage.digest_of(decisive, storage.file_digest(weights_uri)) != ref.fingerprint:
        raise CorruptArtifact(
            f"The package in {folder} must have fingerprint {ref.fingerprint}; its files have another. "
            "They were changed or cut short: publish it again."
        )
    preprocessing = PreprocessingConfig.model_validate(description["preprocessing"])
    config = EncoderConfig.model_validate(description["encoder"])
    if config.dim != ref.dim:
        raise CorruptArtifact(
            f"The package in {folder} must give embeddings of {ref.dim} numbers, as its ref says; its "
            f"encoder gives {config.dim}. Its manifest was changed: publish it again."
        )
    encoder = Encoder(config, channels=preprocessing.channels, initialise=False)
    encoder.load_state_dict(load_file(weights_uri))
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Package(ref, encoder, preprocessing, torch.device(chosen), precision)
