"""A loss, a sampler and a metric of `dml` in a plain torch training loop.

    python examples/plain_torch_loop.py --steps 200

It needs only torch and NumPy. The classes of evaluation and of training are disjoint.
"""

import argparse

import torch
from shapes import shapes
from torch import Tensor, nn

from dml.data.sampling import PKBatchSampler, Stream
from dml.losses import MultiSimilarity
from dml.metrics.retrieval import retrieval_metrics


def make_encoder(dim: int) -> nn.Module:
    """Four convolutions; images (B, 1, 32, 32) in, embeddings (B, dim) out."""
    layers: list[nn.Module] = []
    for channels_in, channels_out in [(1, 32), (32, 64), (64, 64), (64, 64)]:
        layers += [nn.Conv2d(channels_in, channels_out, 3, padding=1), nn.GroupNorm(8, channels_out)]
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(256, dim))


@torch.no_grad()
def recall_at_1(encoder: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose nearest neighbor has the same class."""
    encoder.eval()
    embeddings = nn.functional.normalize(encoder(images))
    encoder.train()
    return retrieval_metrics(embeddings, labels, recall_at=[1]).recall_at[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=200)
    steps = parser.parse_args().steps

    torch.manual_seed(0)
    images, labels = shapes(100, 10, seed=1)
    test_images, test_labels = shapes(50, 10, seed=2)  # other classes

    encoder = make_encoder(dim=64)
    loss_function = MultiSimilarity()  # any loss of dml.losses; it normalizes the embeddings
    optimizer = torch.optim.Adam([*encoder.parameters(), *loss_function.parameters()], lr=1e-3)
    # Every batch: 16 classes with 4 images each.
    batches = PKBatchSampler(
        labels.numpy(), classes_per_batch=16, samples_per_class=4, stream=Stream(num_steps=steps)
    )

    print(f"Recall@1 before training {recall_at_1(encoder, test_images, test_labels):.3f}")
    for step, rows in enumerate(batches, start=1):
        loss = loss_function(encoder(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    print(f"Recall@1 after training {recall_at_1(encoder, test_images, test_labels):.3f}")


if __name__ == "__main__":
    main()
