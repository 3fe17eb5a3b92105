"""What a sampler of similar classes is shown: proxies, or running means, as they were at the last refresh."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from dml.losses import ProxyAnchor, SupCon
from dml.training.class_vectors import WithClassVectors
from dml.training.gather import gather
from dml.training.spawn import run_ranks

C, D = 6, 4


def batch(seed: int, labels: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    embeddings = nn.functional.normalize(torch.randn(len(labels), D, generator=generator))
    return embeddings, torch.tensor(labels)


def test_running_means_are_what_plain_loops_give():
    loss = WithClassVectors(SupCon(), C, D, momentum=0.25)
    means = np.zeros((C, D))
    for seed, labels in enumerate([[0, 0, 1, 1], [1, 1, 1, 2], [0, 2, 2, 5]]):
        embeddings, classes = batch(seed, labels)
        loss(embeddings, classes)
        for label in set(labels):
            mean = embeddings[classes == label].double().mean(0).numpy()
            means[label] = 0.25 * means[label] + 0.75 * mean if means[label].any() else mean
    loss.freeze()
    np.testing.assert_allclose(loss.class_vectors(), means, atol=1e-6)
    assert not loss.class_vectors()[[3, 4]].any(), "never seen"


def test_value_and_gradient_are_the_losss_own():
    embeddings, labels = batch(0, [0, 0, 1, 1])
    values, gradients = [], []
    for loss in (SupCon(), WithClassVectors(SupCon(), C, D, momentum=0.5)):
        leaf = embeddings.clone().requires_grad_()
        value = loss(leaf, labels)
        value.backward()
        values.append(value)
        gradients.append(leaf.grad)
    torch.testing.assert_close(values[0], values[1], rtol=0, atol=0)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_a_loss_with_proxies_shows_them_as_they_were_when_frozen():
    loss = WithClassVectors(ProxyAnchor(C, D), C, D, momentum=0.5)
    loss.freeze()
    before = loss.loss.proxies.detach().clone()
    with torch.no_grad():
        loss.loss.proxies.add_(1)
    np.testing.assert_array_equal(loss.class_vectors(), before.numpy())
    assert loss.means is None


@pytest.mark.parametrize("make", [SupCon, lambda: ProxyAnchor(C, D)], ids=["means", "proxies"])
def test_the_state_holds_all_that_is_shown_and_remembered(make):
    loss, other = (WithClassVectors(make(), C, D, momentum=0.5) for _ in range(2))
    loss(*batch(0, [0, 0, 1, 1]))
    loss.freeze()
    loss(*batch(1, [0, 0, 2, 2]))
    other.load_state_dict(loss.state_dict())
    np.testing.assert_array_equal(other.class_vectors(), loss.class_vectors())
    for each in (loss, other):
        each(*batch(2, [0, 0, 2, 2]))
        each.freeze()
    np.testing.assert_array_equal(other.class_vectors(), loss.class_vectors())


def test_an_evaluated_loss_remembers_nothing():
    loss = WithClassVectors(SupCon(), C, D, momentum=0.5).eval()
    loss(*batch(0, [0, 0, 1, 1]))
    assert not loss.means.any()


def _vectors_on_this_rank() -> np.ndarray:
    loss = WithClassVectors(SupCon(), C, D, momentum=0.5)
    for seed, labels in enumerate([[0, 0, 1, 1], [1, 0, 2, 2]]):
        embeddings, classes = batch(seed, labels)
        local = slice(2 * dist.get_rank(), 2 * dist.get_rank() + 2)
        loss(embeddings[local], classes[local], gather(embeddings[local], classes[local]))
    loss.freeze()
    return loss.class_vectors()


def test_two_ranks_remember_the_global_batch():
    alone = WithClassVectors(SupCon(), C, D, momentum=0.5)
    for seed, labels in enumerate([[0, 0, 1, 1], [1, 0, 2, 2]]):
        alone(*batch(seed, labels))
    alone.freeze()
    for vectors in run_ranks(2, _vectors_on_this_rank):
        np.testing.assert_array_equal(vectors, alone.class_vectors())
