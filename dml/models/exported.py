"""A package's torch network exported to ONNX: the same package, computed by ONNX Runtime on a CPU.

It takes about half of torch's time. The package keeps its fingerprint, since its embeddings agree with
torch's: that is measured each time it is loaded, and a network for which they do not is refused.
"""

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from dml.errors import CorruptArtifact, IncompatibleArtifact
from dml.models.package import Package
from dml.models.runtimes import Runtime
from dml.models.runtimes.onnx import open_session
from dml.models.runtimes.torch import TorchRuntime
from dml.storage import cache_dir

MOST_DIFFERENCE = 1e-4
"""Of one component of an embedding of unit length; what is measured is below 1e-6."""
_OPSET = 18
_BATCHES = (1, 5)


class ExportedRuntime(Runtime):
    """A session of ONNX Runtime over an exported encoder.

    Args:
        former: the encoder's own runtime.
        session: of the exported file.
    """

    def __init__(self, former: TorchRuntime, session: Any) -> None:
        self.config, self.preprocessing, self.dim = former.config, former.preprocessing, former.dim
        self.device = torch.device("cpu")
        self._session = session

    def embed(self, prepared: Sequence[Tensor], *, unit_length: bool = True) -> Tensor:
        (output,) = self._session.run(None, {"images": torch.stack(list(prepared)).numpy()})
        embeddings = torch.from_numpy(output)
        return normalize(embeddings, dim=1) if unit_length else embeddings


class _HeadOutput(nn.Module):
    """An encoder whose embeddings keep their lengths, which a quality gate reads."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.encoder.head_output(images)  # type: ignore[operator]
        return output


def exported(package: Package, *, folder: Path | None = None) -> Package:
    """The package with its network in ONNX Runtime.

    Args:
        package: loaded on a CPU. What torch does not compute stays as it is.
        folder: of the exported files, one for each fingerprint; None: in the cache.

    Raises:
        ModuleNotFoundError: ONNX Runtime is not installed.
        IncompatibleArtifact: the network cannot be exported, or its embeddings differ by more than
            MOST_DIFFERENCE.

    Example:
        package = exported(load_package(uri, device="cpu"))
    """
    former = package.runtime
    if not isinstance(former, TorchRuntime):
        return package
    import onnxruntime  # noqa: F401  (before the network is exported)

    path = (folder or cache_dir() / "onnx") / f"{package.ref.fingerprint}-torch-{torch.__version__}.onnx"
    try:
        runtime = ExportedRuntime(former, open_session(path.read_bytes(), str(path), torch.device("cpu")))
        if difference(former, runtime) <= MOST_DIFFERENCE:
            return Package(package.ref, runtime, package.detector)
    except (FileNotFoundError, CorruptArtifact):
        pass  # it is exported, again if it was damaged
    _export(former, path)
    runtime = ExportedRuntime(former, open_session(path.read_bytes(), str(path), torch.device("cpu")))
    found = difference(former, runtime)
    if not found <= MOST_DIFFERENCE:
        path.unlink()
        raise IncompatibleArtifact(
            f"Embeddings by ONNX Runtime must differ from torch's by at most {MOST_DIFFERENCE:g}; those of "
            f"package {package.ref.version} differ by {found:.2g}. Serve it with encoder=torch."
        )
    return Package(package.ref, runtime, package.detector)


def difference(first: Runtime, second: Runtime) -> float:
    """The largest difference of a component, of embeddings of random images one at a time and in a batch."""
    random = torch.Generator().manual_seed(0)
    preprocessing = first.preprocessing
    width, height = preprocessing.size
    found = 0.0
    for size in _BATCHES:
        images = list(torch.randn((size, preprocessing.channels, height, width), generator=random))
        apart = (first.embed(images) - second.embed(images)).abs().max()
        found = max(found, float(apart.nan_to_num(nan=float("inf"))))
    return found


def _export(runtime: TorchRuntime, path: Path) -> None:
    """Write a file of the runtime's encoder; whole or not at all."""
    preprocessing = runtime.preprocessing
    if preprocessing.crop_mode == "none":
        raise IncompatibleArtifact(
            "An exported network must take images of one size; this one takes any. Serve it with "
            "encoder=torch."
        )
    width, height = preprocessing.size
    example = torch.zeros(2, preprocessing.channels, height, width)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporter by tracing: the other one needs onnxscript
            torch.onnx.export(
                _HeadOutput(runtime.encoder).eval(),
                (example,),
                str(temporary),
                input_names=["images"],
                output_names=["embeddings"],
                dynamic_axes={"images": {0: "batch"}, "embeddings": {0: "batch"}},
                opset_version=_OPSET,
                dynamo=False,
            )
        temporary.replace(path)
    except (RuntimeError, ValueError) as error:  # torch's, for an operation that ONNX has not
        first_line = str(error).strip().partition("\n")[0]
        raise IncompatibleArtifact(
            f"A network must be exported to ONNX to be computed by ONNX Runtime; torch cannot: {first_line}. "
            "Serve it with encoder=torch."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
