"""No part of a step waits for the device, or takes another.

Run on torch's meta device, which has shapes and no values: whatever looks at a value, or mixes in a tensor of
another device, raises there. The losses' own waits are in tests/losses/test_waits.py.
"""

import pytest
import torch

from dml.config import EncoderConfig, OptimizerConfig
from dml.losses import NormalizedSoftmax
from dml.models.encoder import Encoder
from dml.training.averages import AveragedEncoder
from dml.training.batch_norm import synchronize_batch_norm
from dml.training.cached_step import cached_train_step
from dml.training.optimizer import build_optimizer
from dml.training.step import Learner, train_step


@pytest.mark.parametrize("chunk_rows", [None, 8], ids=["whole", "in-chunks"])
@pytest.mark.parametrize("kind", ["sgd", "adam", "adamw"])
@pytest.mark.parametrize("pooling", ["avg", "gem"])
def test_a_step_looks_at_no_value_and_at_no_other_device(kind, pooling, chunk_rows):
    with torch.device("meta"):
        encoder = Encoder(EncoderConfig(dim=16, pooling=pooling, dropout=0.1, layer_norm=True), channels=1)
        if chunk_rows is None:
            synchronize_batch_norm(encoder, torch.device("cuda"))
        loss = NormalizedSoftmax(12, 16)
        images, labels = torch.randn(24, 1, 28, 28), torch.arange(24) % 12
    learner = Learner(encoder, loss, "float32").train()
    optimizer = build_optimizer(OptimizerConfig(kind=kind), encoder, loss)
    average = AveragedEncoder(encoder, 0.9)
    for step in range(2):
        if chunk_rows is None:
            value = train_step(learner, optimizer, images, labels, clip_norm=1.0)
        else:
            value = cached_train_step(
                learner, optimizer, images, labels, chunk_rows=chunk_rows, clip_norm=1.0
            )
        average.update(encoder, step)
    assert value.device.type == "meta"
