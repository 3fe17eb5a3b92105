"""A memory adds the loss against former batches, remembers in order and survives a restart."""

import copy

import pytest
import torch
from torch import nn

from dml import losses
from tests.losses.cases import DIM, balanced, scattered, uneven


def memory(loss: nn.Module | None = None, **settings) -> losses.CrossBatchMemory:
    made = losses.CrossBatchMemory(loss or losses.Contrastive(), dim=DIM, **{"start_after": 0, **settings})
    return made.double()


def batches(num: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(scattered(seed), (balanced, uneven)[seed % 2]()) for seed in range(num)]


def by_hand(x, labels, former, former_labels) -> torch.Tensor:
    """The contrastive loss of the batch against former rows, each kind's mean over its active pairs."""
    hinges = {True: [], False: []}
    for i in range(len(x)):
        for j in range(len(former)):
            distance = (2 - 2 * (x[i] * former[j]).sum()).clamp_min(0).sqrt()
            same = bool(labels[i] == former_labels[j])
            hinge = distance if same else 1.0 - distance
            if hinge > 0:
                hinges[same].append(hinge.square())
    return sum(torch.stack(kind).mean() if kind else 0 for kind in hinges.values())


def test_the_loss_is_the_batch_s_and_the_weighted_loss_against_what_came_before():
    plain = losses.Contrastive(normalize=False)
    module = memory(plain, size=18, weight=0.5)
    rows, labels = torch.zeros(0, DIM, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    for x, y in batches(4):
        x = x.requires_grad_()
        value = module(x, y)
        expected = plain(x, y)
        if len(rows):
            expected = expected + 0.5 * by_hand(x, y, rows[-18:], labels[-18:])
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(*(torch.autograd.grad(v, x)[0] for v in (value, expected)))
        rows, labels = torch.cat([rows, x.detach()]), torch.cat([labels, y])


def test_nothing_is_used_before_its_time_and_nothing_is_remembered_in_evaluation():
    module, plain = memory(size=100, start_after=2), losses.Contrastive()
    used = [not torch.equal(module(x, y), plain(x, y)) for x, y in batches(4)]
    assert used == [False, False, True, True]
    module.eval()
    before = copy.deepcopy(module.state_dict())
    module(*batches(1)[0])
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_a_resumed_memory_continues_as_if_never_stopped():
    undisturbed, stopped = memory(size=30), memory(size=30)
    for x, y in batches(3):
        undisturbed(x, y), stopped(x, y)
    resumed = memory(size=30)
    resumed.load_state_dict(stopped.state_dict())
    for x, y in batches(6)[3:]:
        assert torch.equal(resumed(x, y), undisturbed(x, y))


def test_a_batch_larger_than_the_memory_leaves_its_last_rows():
    module = memory(size=5)
    x, y = batches(1)[0]
    module(x, y)
    order = module.labels.argsort(stable=True)
    assert module.labels[order].tolist() == sorted(y[-5:].tolist())


WITHIN_BATCH = {
    "n_pair": losses.NPair(),
    "lifted structure": losses.LiftedStructure(),
    "n-pair mining": losses.TripletMargin(mining="n_pair"),
    "proxies": losses.ProxyAnchor(12, DIM),
}


@pytest.mark.parametrize("loss", WITHIN_BATCH.values(), ids=WITHIN_BATCH)
def test_losses_that_learn_within_the_batch_are_refused_before_the_first_step(loss):
    with pytest.raises(ValueError, match="uses pairs within the batch"):
        memory(loss)


@pytest.mark.parametrize("loss", WITHIN_BATCH.values(), ids=WITHIN_BATCH)
def test_losses_that_learn_within_the_batch_refuse_references_that_are_other_samples(loss):
    (x, y), (former, former_labels) = ((x.float(), y) for x, y in batches(2))
    with pytest.raises(ValueError, match="anchors must be among the references"):
        loss(x, y, losses.References(former, former_labels, contain_anchors=False))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_memory_in_float32_serves_batches_of_any_precision(dtype):
    module = losses.CrossBatchMemory(losses.Contrastive(), dim=DIM, size=24, start_after=0)
    for x, y in batches(3):
        rows = x.to(dtype).requires_grad_()
        value = module(rows, y)
        value.backward()
        assert rows.grad.isfinite().all()
    assert value.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert module.embeddings.dtype == torch.float32


class Squares(nn.Module):
    """Somebody's own loss, of which autograd keeps the references until backward."""

    def forward(self, embeddings, labels, references=None):
        return (embeddings @ references.embeddings.T).square().sum()


def test_a_users_loss_may_keep_the_memory_until_backward():
    module = memory(Squares(), size=30)
    values, inputs = [], []
    for x, y in batches(3):
        inputs.append(x.requires_grad_())
        values.append(module(x, y))
    gradient = torch.autograd.grad(sum(values), inputs)[2]
    former = torch.cat([x.detach() for x in inputs[:2]])
    batch = inputs[2].detach().requires_grad_()
    expected = (batch @ batch.T).square().sum() + (batch @ former.T).square().sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, batch)[0])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=["NaN", "infinity"])
@pytest.mark.parametrize("size", [7, 30, 100])
def test_a_row_that_is_not_finite_is_never_remembered(size, bad):
    """One bad batch gives one bad loss; the memory goes on as if its bad rows had not been there."""
    module = memory(size=size)
    rows, labels = torch.zeros(0, DIM, dtype=torch.float64), torch.zeros(0, dtype=torch.int64)
    for number, (x, y) in enumerate(batches(6)):
        if number in (0, 3):
            x[[0, 5, 11]] = bad
        value = module(x, y)
        assert value.isfinite() == (number not in (0, 3))
        fine = x.isfinite().all(1)
        rows, labels = torch.cat([rows, x[fine]])[-size:], torch.cat([labels, y[fine]])[-size:]
        kept = module.embeddings[: min(int(module.num_seen), size)]
        order, expected = (t.sum(1).argsort() for t in (kept, rows))
        torch.testing.assert_close(kept[order], rows[expected], rtol=0, atol=1e-15)
        assert torch.equal(module.labels[: len(kept)][order], labels[expected])


def test_a_batch_without_a_finite_row_leaves_the_memory_as_it_was():
    module = memory(size=20)
    module(*batches(1)[0])
    before = copy.deepcopy(module.state_dict())
    module(torch.full((12, DIM), torch.nan, dtype=torch.float64), balanced())
    after = module.state_dict()
    assert after.pop("num_calls") == before.pop("num_calls") + 1
    assert after.pop("loss.num_calls") > before.pop("loss.num_calls")
    torch.testing.assert_close(after, before, rtol=0, atol=0)


def test_the_memory_is_written_in_place():
    module = memory(size=20)
    places = [buffer.data_ptr() for buffer in (module.embeddings, module.labels)]
    for x, y in batches(3):
        module(x, y)
    assert places == [buffer.data_ptr() for buffer in (module.embeddings, module.labels)]


def test_a_full_memory_that_loads_an_emptier_state_uses_no_more_than_that_has():
    full, young = memory(size=20), memory(size=20)
    for x, y in batches(4):
        full(x, y)
    young(*batches(1)[0])
    full.load_state_dict(young.state_dict())
    x, y = batches(5)[4]
    assert torch.equal(full(x, y), young(x, y))


def test_a_memory_around_a_memory_is_refused():
    with pytest.raises(ValueError, match="Use one CrossBatchMemory with a larger size"):
        memory(memory())


@pytest.mark.parametrize("length", [1e-60, 1e39, 1e300])
def test_rows_beyond_the_memory_s_type_are_remembered_by_their_direction(length):
    """The default loss divides rows by their length, so no row is too long or too short."""
    far, near = (losses.CrossBatchMemory(losses.SupCon(), dim=DIM, size=24, start_after=0) for _ in range(2))
    for x, y in batches(3):
        torch.testing.assert_close(far(x * length, y), near(x, y), rtol=1e-5, atol=1e-6)
    assert far.num_seen == 36


@pytest.mark.parametrize("normalize", [False, True])
def test_a_row_that_a_memory_cannot_hold_is_refused_and_never_silently_forgotten(normalize):
    loss = Squares() if normalize else losses.SupCon(normalize=False)
    module = losses.CrossBatchMemory(loss, dim=DIM, size=24)
    x, y = batches(1)[0]
    x[3] *= 1e39
    with pytest.raises(
        ValueError, match=r"must fit the memory bank's torch.float32; got torch.float64 up to"
    ):
        module(x, y)
    assert not module.num_seen
    assert memory(loss, size=24)(x, y).dtype == torch.float64, "a memory in float64 holds it"


@pytest.mark.parametrize("loss", [losses.SupCon, None, "sup_con"])
def test_a_memory_around_what_is_no_loss_is_refused(loss):
    with pytest.raises(ValueError, match="Create the loss first"):
        losses.CrossBatchMemory(loss, dim=4)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_wider_row_that_is_not_finite_is_left_out_and_not_refused(bad):
    module = losses.CrossBatchMemory(losses.SupCon(normalize=False), dim=DIM, size=24)
    x, y = batches(1)[0]
    x[3, 0] = bad
    assert module(x, y).isnan()
    assert module.num_seen == 11
