"""An `Encoder`, or any torch network wrapped in one, from safetensors."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dml.config import EncoderConfig
from dml.models.encoder import Encoder
from dml.models.precision import autocast, choose_precision, convolutions_in
from dml.models.runtimes.base import Runtime, StoredNetwork

logger = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"


class TorchRuntime(Runtime):
    """An encoder on a torch device."""

    config: EncoderConfig

    @classmethod
    def requirements(cls, settings: Mapping[str, Any]) -> tuple[str, ...]:
        return ("transformers",) if settings["backbone"]["kind"] == "transformers" else ()

    def __init__(self, stored: StoredNetwork) -> None:
        self.config = EncoderConfig.model_validate(stored.settings)
        self.dim, self.preprocessing, self.device = self.config.dim, stored.preprocessing, stored.device
        self.precision, why = choose_precision(stored.precision, self.device)
        if self.device.type == "cuda":
            logger.info("embedding in %s, %s", self.precision, why)
        encoder = Encoder(self.config, channels=self.preprocessing.channels, initialize=False)
        encoder.load_state_dict(load_file(stored.folder / WEIGHTS))
        self.encoder = encoder.eval().to(self.device).to(memory_format=torch.channels_last)

    def embed(self, prepared: Sequence[Tensor], *, unit_length: bool = True) -> Tensor:
        pixels = torch.stack(list(prepared))
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        on_device = pixels.to(self.device, non_blocking=True)
        on_gpu = convolutions_in(self.precision) if self.device.type == "cuda" else nullcontext()
        with torch.inference_mode(), on_gpu, autocast(self.precision, self.device):
            network = self.encoder if unit_length else self.encoder.head_output
            embeddings: Tensor = network(on_device.to(memory_format=torch.channels_last))
        return embeddings
