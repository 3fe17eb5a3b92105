"""A network in an ONNX file, computed by ONNX Runtime."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize

from dml.config import Part
from dml.errors import CorruptArtifact
from dml.models.runtimes.base import Runtime, StoredNetwork, require_embeddings

NETWORK = "network.onnx"
TYPES = {
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
    "tensor(double)": np.float64,
    "tensor(uint8)": np.uint8,
}
"""Of inputs, ONNX Runtime's name to NumPy's."""


class OnnxConfig(Part):
    """Input format and embedding output of a network in an ONNX file."""

    input: str
    output: str
    layout: Literal["NCHW", "NHWC"]
    batch_size: int | None = Field(None, gt=0, description="that the file fixes; None: any")
    dim: int = Field(gt=0, description="length of one embedding")
    alignment: str = Field("", description="what must be done to an image before, such as to a face")


class OnnxRuntime(Runtime):
    """A session of ONNX Runtime."""

    config: OnnxConfig

    @classmethod
    def requirements(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return ("onnxruntime",)

    def __init__(self, stored: StoredNetwork) -> None:
        self.config = OnnxConfig.model_validate(stored.settings)
        self.dim, self.preprocessing = self.config.dim, stored.preprocessing
        self.session = open_session((stored.folder / NETWORK).read_bytes(), str(stored.folder), stored.device)
        on_gpu = "CUDAExecutionProvider" in self.session.get_providers()
        self.device = stored.device if on_gpu else torch.device("cpu")
        self._type = TYPES[self.session.get_inputs()[0].type]

    def embed(self, prepared: Sequence[Tensor], *, unit_length: bool = True) -> Tensor:
        pixels = torch.stack(list(prepared)).numpy()
        if self.config.layout == "NHWC":
            pixels = np.ascontiguousarray(pixels.transpose(0, 2, 3, 1))
        if self._type is np.uint8:
            pixels = np.rint(pixels)
        pixels = pixels.astype(self._type, copy=False)
        size = self.config.batch_size or len(pixels)
        parts = [self._run(pixels[start : start + size], size) for start in range(0, len(pixels), size)]
        output = torch.from_numpy(np.concatenate(parts))
        return normalize(output, dim=1) if unit_length else output

    def _run(self, pixels: "np.ndarray[Any, Any]", size: int) -> "np.ndarray[Any, Any]":
        """Embeddings of at most `size` images; a smaller batch is padded with its last image."""
        filled = np.concatenate([pixels, np.repeat(pixels[-1:], size - len(pixels), axis=0)])
        (embeddings,) = self.session.run([self.config.output], {self.config.input: filled})
        if embeddings.size != size * self.dim:
            require_embeddings(embeddings.shape, size, self.dim)
        return np.asarray(embeddings, dtype=np.float32).reshape(size, self.dim)[: len(pixels)]


def open_session(content: bytes, name: str, device: torch.device) -> Any:
    """A session of ONNX Runtime.

    Args:
        content: of an ONNX file that holds its own weights.
        name: for the message.
        device: a GPU where this and ONNX Runtime's installation have one.

    Raises:
        CorruptArtifact: ONNX Runtime cannot open it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 4  # an error is raised, and need not be printed, too
    wanted = (["CUDAExecutionProvider"] if device.type == "cuda" else []) + ["CPUExecutionProvider"]
    there_are = onnxruntime.get_available_providers()
    providers = [each for each in wanted if each in there_are]
    try:
        return onnxruntime.InferenceSession(content, options, providers=providers)
    except Exception as error:  # a class for each status code, without a common one
        first_line = str(error).strip().partition("\n")[0]
        raise CorruptArtifact(
            f"ONNX Runtime {onnxruntime.__version__} must open the network in {name}; it does not: "
            f"{first_line}. Export it again, with an opset that it knows."
        ) from error
