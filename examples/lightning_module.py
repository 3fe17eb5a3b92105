"""The losses of `dml` under Lightning, exact on any number of workers.

    pip install lightning
    python examples/lightning_module.py --steps 200 --workers 2

Each worker has a part of the batch. `gather` adds the embeddings of the other workers as references, with
gradients; DDP takes the mean over workers. So value and gradient equal those of one worker with the whole
batch. If the encoder has batch norm, synchronize it as well: `sync_batchnorm=True` on GPUs.
"""

import argparse
import os

import torch
from plain_torch_loop import make_encoder, recall_at_1
from shapes import shapes
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from dml.data.sampling import PKBatchSampler, Stream
from dml.losses import ProxyAnchor
from dml.training.gather import gather

try:
    import lightning
except ModuleNotFoundError:
    raise SystemExit("This example needs Lightning. Do: pip install lightning") from None

NUM_CLASSES, DIM = 100, 64


class MetricLearner(lightning.LightningModule):
    """An encoder and a loss; the loss is a module, so its proxies are trained and saved in checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = make_encoder(DIM)
        self.loss = ProxyAnchor(num_classes=NUM_CLASSES, dim=DIM)

    def training_step(self, batch: tuple[Tensor, Tensor], step: int) -> Tensor:
        images, labels = batch
        embeddings = self.encoder(images)
        return self.loss(embeddings, labels, gather(embeddings, labels))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [
            {"params": self.encoder.parameters(), "lr": 1e-3},
            {"params": self.loss.parameters(), "lr": 1e-1},  # proxies learn faster than the encoder
        ]
        return torch.optim.Adam(groups)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()

    lightning.seed_everything(0)
    images, labels = shapes(NUM_CLASSES, 10, seed=1)
    stream = Stream(
        num_steps=options.steps,
        rank=int(os.environ.get("LOCAL_RANK", "0")),
        world_size=options.workers,
    )
    batches = PKBatchSampler(labels.numpy(), classes_per_batch=16, samples_per_class=4, stream=stream)
    trainer = lightning.Trainer(
        max_steps=options.steps,
        accelerator="cpu",
        devices=options.workers,
        strategy="ddp" if options.workers > 1 else "auto",
        use_distributed_sampler=False,  # PKBatchSampler already gives each rank its part of the batch
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    model = MetricLearner()
    trainer.fit(model, DataLoader(TensorDataset(images, labels), batch_sampler=batches))
    if trainer.is_global_zero:
        print(f"Recall@1 after training {recall_at_1(model.encoder, *shapes(50, 10, seed=2)):.3f}")


if __name__ == "__main__":
    main()
