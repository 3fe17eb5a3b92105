"""The package: the model we ship. Safetensors weights, encoder and preprocessing in JSON, no pickle anywhere.

It loads without training code, and its fingerprint covers all that decides an embedding: the weights, the
encoder's configuration and the preprocessing.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save

from dml import storage
from dml.config import EncoderConfig, PreprocessingConfig
from dml.errors import CorruptArtifact, IncompatibleArtifact, MissingArtifact
from dml.models.encoder import Encoder
from dml.preprocessing import preprocess_batch
from dml.refs import DatasetRef, PackageRef

FORMAT_VERSION = 1
_WEIGHTS, _DESCRIPTION = "weights.safetensors", "package.json"


class Package:
    """A loaded package: image bytes in, unit-length embeddings out."""

    def __init__(
        self, ref: PackageRef, encoder: Encoder, preprocessing: PreprocessingConfig, device: torch.device
    ) -> None:
        self.ref = ref
        self.preprocessing = preprocessing
        self.device = device
        self.encoder = encoder.eval().to(device).to(memory_format=torch.channels_last)

    def embed(self, images: Sequence[bytes], *, batch_size: int = 256) -> NDArray[np.float32]:
        """Embed encoded images.

        Args:
            images: N files' bytes, in any format Pillow reads.
            batch_size: images decoded and embedded at a time; bounds the memory.

        Returns:
            (N, D) float32, unit length, in the order of the images.

        Raises:
            InvalidData: bytes that are no image.
        """
        parts = [self._embed_batch(batch) for batch in _batches(images, batch_size)]
        return np.concatenate(parts) if parts else np.empty((0, self.ref.dim), dtype=np.float32)

    def _embed_batch(self, images: Sequence[bytes]) -> NDArray[np.float32]:
        pixels = preprocess_batch(images, self.preprocessing)
        with torch.inference_mode():
            embeddings = self.encoder(pixels.to(self.device, memory_format=torch.channels_last))
        values: NDArray[np.float32] = embeddings.cpu().numpy()
        return values


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


def load_package(uri: str, *, device: str | None = None) -> Package:
    """Load a package from wherever it was published.

    Args:
        uri: the package's folder.
        device: a torch device; None takes a GPU where there is one.

    Raises:
        MissingArtifact: there is no package.
        CorruptArtifact: its weights are not those that were published.
        IncompatibleArtifact: it was made by a newer version of this project.
    """
    ref = find_package(uri)
    folder = storage.fetch(uri, ref.fingerprint)
    return read_package(str(folder), ref, device=device)


def read_package(folder: str, ref: PackageRef | None = None, *, device: str | None = None) -> Package:
    """Load a package from the files of a local folder, such as a copy inside a model registry.

    Raises:
        MissingArtifact, CorruptArtifact, IncompatibleArtifact: as `load_package`.
    """
    ref = ref or find_package(folder)
    description = json.loads(storage.read_bytes(storage.join(folder, _DESCRIPTION)))
    if description["format_version"] > FORMAT_VERSION:
        raise IncompatibleArtifact(
            f"The package in {folder} must have a format version up to {FORMAT_VERSION}; got "
            f"{description['format_version']}. Install the version of this project that made it."
        )
    weights_uri = storage.join(folder, _WEIGHTS)
    if not storage.exists(weights_uri):
        raise MissingArtifact(f"A package must hold {_WEIGHTS}; {folder} does not. Publish it again.")
    decisive = {key: description[key] for key in ("format_version", "encoder", "preprocessing")}
    if storage.digest_of(decisive, storage.file_digest(weights_uri)) != ref.fingerprint:
        raise CorruptArtifact(
            f"The package in {folder} must have fingerprint {ref.fingerprint}; its files have another. "
            "They were changed or cut short: publish it again."
        )
    preprocessing = PreprocessingConfig.model_validate(description["preprocessing"])
    config = EncoderConfig.model_validate(description["encoder"])
    encoder = Encoder(config, channels=preprocessing.channels, initialise=False)
    encoder.load_state_dict(load_file(weights_uri))
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Package(ref, encoder, preprocessing, torch.device(chosen))
