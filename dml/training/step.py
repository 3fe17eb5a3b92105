"""Forward pass of one worker on its part of the global batch, and one optimizer step."""

from torch import Tensor, nn
from torch.optim import Optimizer

from dml.config.training import Precision
from dml.losses import sharded_parameters
from dml.models.encoder import Encoder
from dml.models.precision import autocast
from dml.training.gather import gather, mean_over_ranks
from dml.training.optimizer import clip_gradients


class Learner(nn.Module):
    """Encoder and loss in one module, so that DistributedDataParallel synchronizes the gradients of both."""

    def __init__(self, encoder: Encoder, loss: nn.Module, precision: Precision) -> None:
        super().__init__()
        self.encoder = encoder
        self.loss = loss
        self.precision = precision

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """The loss of this worker; the mean over workers is the loss of the global batch.

        Args:
            images: (b, c, H, W) float32, the images of this worker.
            labels: (b,) int64 class ids.
        """
        return self.compute_loss(self.embed(images), labels)

    def embed(self, images: Tensor) -> Tensor:
        """(b, c, H, W) images to (b, D) embeddings, in the precision of training."""
        with autocast(self.precision, images.device):
            embeddings: Tensor = self.encoder(images)
        return embeddings

    def compute_loss(self, embeddings: Tensor, labels: Tensor) -> Tensor:
        """The loss of this worker for embeddings (b, D); every worker must call it."""
        # Samplers give every rank the same number of rows; on a GPU the check would synchronize in every
        # step.
        references = gather(embeddings, labels, equal_rows=embeddings.is_cuda)
        loss: Tensor = self.loss(embeddings, labels, references)
        return loss


def train_step(
    learner: nn.Module, optimizer: Optimizer, images: Tensor, labels: Tensor, *, clip_norm: float | None
) -> Tensor:
    """Forward, backward and update; returns the loss of the global batch, equal on every worker."""
    optimizer.zero_grad()
    loss = learner(images, labels)
    loss.backward()
    clip_gradients(optimizer, clip_norm, sharded_parameters(learner))
    optimizer.step()
    return mean_over_ranks(loss)
