"""A plain loop of pytorch-metric-learning (PML), as its users write it, for `benchmarks.equal_budget`."""

import time
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.losses import Mined
from dml.config import ExperimentConfig
from dml.data.dataset import read_images
from dml.data.transforms import augment
from dml.models.encoder import Encoder
from dml.preprocessing import decode
from dml.refs import DatasetRef
from dml.training.initial import initial_encoder
from dml.training.optimizer import build_optimizer, rate_factor, set_rates
from dml.training.train_data import read_training_rows

Choice = tuple[float, dict[str, Any]]
"""A factor of all learning rates, and settings of a loss."""


def peer_loss(name: str, num_classes: int, dim: int, settings: dict[str, Any]) -> nn.Module:
    """A loss of PML behind its miner."""
    from pytorch_metric_learning import losses, miners

    match name:
        case "triplet_margin":  # the miner's default margin is 0.2, the loss's 0.05; a chosen one is for both
            miner = miners.TripletMarginMiner(settings.get("margin", 0.2), "semihard")
            return Mined(losses.TripletMarginLoss(**settings), miner)
        case "multi_similarity":
            return Mined(losses.MultiSimilarityLoss(), miners.MultiSimilarityMiner())
        case "proxy_anchor":
            return Mined(losses.ProxyAnchorLoss(num_classes, dim), None)
        case "margin":
            betas = num_classes if settings.get("per_class") else None
            learn_beta = settings.get("learn_beta", False)
            return Mined(
                losses.MarginLoss(learn_beta=learn_beta, num_classes=betas), miners.DistanceWeightedMiner()
            )
    raise ValueError(f"loss must be triplet_margin, multi_similarity, proxy_anchor or margin; got {name!r}.")


class TrainingImages(Dataset[tuple[Tensor, int]]):
    """The train split decoded into memory, augmented as by the trainer; one random generator per worker."""

    def __init__(self, dataset: DatasetRef, config: ExperimentConfig) -> None:
        rows = read_training_rows(dataset)
        self.class_ids, self.num_classes, self.config = rows.class_ids, rows.num_classes, config
        files = read_images(dataset, rows.positions.tolist())
        self.images: list[Image.Image] = [decode(file, config.preprocessing.color) for file in files]
        self.generator: np.random.Generator | None = None

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> tuple[Tensor, int]:
        if self.generator is None:
            self.generator = np.random.default_rng(torch.initial_seed())  # another one in every worker
        view = augment(self.images[row], self.config.augmentation, self.config.preprocessing, self.generator)
        return view, int(self.class_ids[row])


def train_theirs(
    config: ExperimentConfig,
    dataset: DatasetRef,
    loss_name: str,
    settings: dict[str, Any],
    *,
    num_loaders: int,
    device: torch.device,
) -> tuple[Encoder, float]:
    """The plain loop: (encoder, images per second), with the images decoded before the clock starts."""
    from pytorch_metric_learning.samplers import MPerClassSampler

    num_steps, batch_size = config.training.num_steps, config.sampler.batch_size
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)  # what MPerClassSampler draws from
    images = TrainingImages(dataset, config)
    sampler = MPerClassSampler(
        images.class_ids, config.sampler.samples_per_class, batch_size, num_steps * batch_size
    )
    loader = DataLoader(images, batch_size, sampler=sampler, num_workers=num_loaders)
    encoder = initial_encoder(config).to(device, memory_format=torch.channels_last).train()
    loss = peer_loss(loss_name, images.num_classes, config.encoder.dim, settings).to(device)
    optimizer = build_optimizer(config.optimizer, encoder, loss)
    start = time.perf_counter()
    for step, (pixels, labels) in enumerate(loader):
        set_rates(optimizer, rate_factor(config.optimizer, step, num_steps))
        optimizer.zero_grad(set_to_none=True)
        pixels = pixels.to(device, memory_format=torch.channels_last)
        loss(encoder(pixels), labels.to(device)).backward()
        optimizer.step()
    return encoder, num_steps * batch_size / (time.perf_counter() - start)
