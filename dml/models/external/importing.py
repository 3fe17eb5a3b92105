"""Import of the network at an address as a package of the store."""

import io
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dml.errors import DmlError, InvalidData, InvalidSetting, did_you_mean
from dml.faces import DetectorConfig
from dml.models import external
from dml.models.external.base import External, Options, Source
from dml.models.package import DETECTOR, Package, load_package, publish_package
from dml.refs import PackageRef

_NO_SOURCES = ("base", "importing", "preprocessing")
_LENGTH_TOLERANCE = 1e-3
_COMPANY_TOLERANCE = 0.1
"""Of an image's embeddings, alone and beside others; dynamic quantization has one scale for a batch."""
_SAME = 1e-6
_SIDE = 112
"""Of a drawn picture; a detector takes one of this size for a crop."""


def sources() -> list[str]:
    """The kinds of addresses."""
    return sorted(f.name for f in pkgutil.iter_modules(external.__path__) if f.name not in _NO_SOURCES)


def read_embedder(address: str, options: Options) -> External:
    """The network at an address.

    Args:
        address: KIND:ADDRESS, as `timm:resnet50`.
        options: what the user says beside it.

    Raises:
        InvalidSetting: no such address, or options that it does not take.
        MissingArtifact, CorruptArtifact, IncompatibleArtifact: its weights are not there, or are others.
    """
    if options.detector is None and options.config.detector != DetectorConfig():
        raise InvalidSetting(
            "Settings of a detector belong to its file; got them and no file. Name it: --detector yunet.onnx."
        )
    network = _read(address, options)
    if options.detector is None:
        return network
    return _detecting_faces(network, options.detector, options.config.detector)


def _detecting_faces(network: External, model: Path, detector: DetectorConfig) -> External:
    """A network that is given the largest face of an image instead of the image."""
    fingerprint = detector.open(model).fingerprint
    files = {**network.contents.files, DETECTOR: model.read_bytes()}
    return replace(
        network,
        contents=replace(network.contents, files=files, detector=detector),
        about={**network.about, "detector": model.name},
        notes=(
            *network.notes,
            f"of each image the largest face is detected by {model.name}, aligned, and cropped to "
            f"{detector.side} x {detector.side} pixels; an image without a face is refused, and one of this "
            f"size is taken for a crop ({fingerprint})",
        ),
    )


def _read(address: str, options: Options) -> External:
    kind, colon, rest = address.partition(":")
    if kind not in sources() or not colon or not rest:
        examples = ", ".join(_source(kind).example for kind in sources())
        raise InvalidSetting(
            f"An embedder must be one of {examples}; got {address!r}.{did_you_mean(kind, sources())} A "
            "registered model is named by --model."
        )
    return _source(kind).read(rest, options, _read)


def _source(kind: str) -> Source:
    module = import_module(f"{external.__name__}.{kind}")
    return next(
        member()
        for member in vars(module).values()
        if isinstance(member, type) and issubclass(member, Source) and member.__module__ == module.__name__
    )


def import_embedder(store: str, address: str, options: Options) -> PackageRef:
    """Publish the network at an address as a package, and check it by embedding drawn pictures.

    Args:
        store: the store's URI.
        address: as `read_embedder`.
        options: what the user says beside it.

    Raises:
        InvalidData: it gives something else than one embedding for each image, by that image alone.
        InvalidSetting, MissingArtifact, CorruptArtifact, IncompatibleArtifact: as `read_embedder`.
    """
    network = read_embedder(address, options)
    with preview(network):
        pass
    return publish_package(
        store,
        network.contents,
        source=network.source,
        license=options.license or network.license,
        about={"from_elsewhere": network.about},
    )


@contextmanager
def preview(network: External) -> Iterator[Package]:
    """An external network as a package in a temporary folder, before it is published.

    Raises:
        InvalidData: as `import_embedder`.
    """
    with TemporaryDirectory() as folder:
        package = load_package(publish_package(folder, network.contents, source=network.source).uri)
        _require_embeddings(package)
        yield package


def _require_embeddings(package: Package) -> None:
    """Raise InvalidData for a network that does not give each image an embedding of its own."""
    rows, columns = np.indices((_SIDE, _SIDE))
    grey = _drawn(rows + columns, rows + columns, rows + columns)
    colored = _drawn(255 - 2 * columns, rows // 2, 20 + columns // 8)
    source = package.ref.source
    try:
        alone = package.embed([grey])
        together = package.embed([colored, grey, grey])
    except DmlError:
        raise
    except Exception as error:  # torch's and ONNX Runtime's, of whatever class
        first_line = str(error).strip().partition("\n")[0]
        raise InvalidData(
            f"An embedder must take any number of images, as its preprocessing makes them; {source} does "
            f"not: {first_line}. Say their size and color by --preprocessing FILE, or export it for batches "
            "of any size."
        ) from error
    vectors = np.concatenate([alone, together])
    if not (np.abs(np.linalg.norm(vectors, axis=1) - 1) <= _LENGTH_TOLERANCE).all():
        raise InvalidData(
            f"An embedder must give numbers; {source} gives {vectors[0, :3]}... of a drawn picture. Check "
            "its weights and its preprocessing."
        )
    if (distance := float(np.linalg.norm(together[1:] - alone, axis=1).max())) > _COMPANY_TOLERANCE:
        raise InvalidData(
            f"An embedding must depend on its image alone; {source} gives a picture two that are "
            f"{distance:.2g} apart, by itself and beside others. Take it as it is for inference: "
            "network.eval() before it is exported."
        )
    if np.abs(together[0] - together[1]).max() < _SAME:
        raise InvalidData(
            f"An embedder must tell images apart; {source} gives two different pictures the same embedding. "
            "Check its weights, and that the output is not a class or a constant."
        )


def _drawn(*channels: NDArray[np.int64]) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.stack(channels, axis=2).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()
