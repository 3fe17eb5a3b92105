"""Every loss of embeddings: any length of the rows, no number hidden, no batch that is none."""

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dml import losses
from dml.config import loss_kinds
from dml.losses import EmbeddingLoss, References
from dml.training.build import build_loss
from tests.losses.cases import CASES, DIM, NUM_CLASSES, balanced, scattered, uneven, value_and_gradients

every_loss = pytest.mark.parametrize("name", CASES)
NOT_BY_DEFAULT = {"NPair", "Softmax"}  # whose formulas are of inner products, whatever the lengths


def of_any_length(seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scattered(seed) * torch.empty(12, 1, dtype=torch.float64).log_normal_(0, 2, generator=generator)


@every_loss
def test_rows_of_any_length_give_the_loss_of_unit_rows_with_its_exact_gradient(name):
    normalizing, plain = CASES[name].make().double(), CASES[name].make().double()
    normalizing.normalize, plain.normalize = True, False
    actual = value_and_gradients(
        lambda x: normalizing(x, uneven()), of_any_length(), *normalizing.parameters()
    )
    expected = value_and_gradients(
        lambda x: plain(nn.functional.normalize(x), uneven()), of_any_length(), *plain.parameters()
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


@every_loss
@pytest.mark.parametrize(
    ("dtype", "lengths"),
    [(torch.float32, [1e-37, 1e-25, 1.0, 1e20, 1e37]), (torch.float64, [1e-300, 1e-180, 1.0, 1e180, 1e300])],
    ids=["float32", "float64"],
)
def test_lengths_whose_squares_have_no_place_in_their_type_count_as_any(name, dtype, lengths):
    normalizing = CASES[name].make().to(dtype)
    normalizing.normalize = True
    unit = scattered().to(dtype)
    scales = torch.tensor(lengths * 3, dtype=dtype)[:12, None]
    expected, grad_unit = value_and_gradients(lambda x: normalizing(x, uneven()), unit)[:2]
    normalizing = CASES[name].make().to(dtype)
    normalizing.normalize = True
    actual, grad = value_and_gradients(lambda x: normalizing(x, uneven()), unit * scales)[:2]
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(grad * scales, grad_unit, rtol=1e-3, atol=1e-4)


@every_loss
def test_all_losses_but_those_of_inner_products_normalise_by_default(name):
    assert CASES[name].make().normalize == (name.partition(",")[0] not in NOT_BY_DEFAULT)


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].make().within_batch])
def test_references_of_any_length_count_as_unit_rows(name):
    normalizing, plain = CASES[name].make().double(), CASES[name].make().double()
    plain.normalize = False
    others, labels = of_any_length(1), balanced()
    actual = value_and_gradients(
        lambda x: normalizing(x, uneven(), References(others, labels, contain_anchors=False)), of_any_length()
    )
    unit = nn.functional.normalize(others)
    expected = value_and_gradients(
        lambda x: plain(
            nn.functional.normalize(x), uneven(), References(unit, labels, contain_anchors=False)
        ),
        of_any_length(),
    )
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-11)


def test_a_row_of_zeros_gets_a_zero_gradient():
    x = scattered()
    x[3] = 0
    value, gradient = value_and_gradients(lambda x: losses.SupCon()(x, balanced()), x)
    assert value.isfinite()
    assert gradient.isfinite().all()
    assert not gradient[3].any()


@pytest.mark.parametrize("kind", loss_kinds())
def test_the_trainer_s_losses_take_the_encoder_s_rows_as_they_are(kind):
    loss = build_loss(loss_kinds()[kind](), dim=DIM, num_classes=NUM_CLASSES, seed=0)
    assert isinstance(loss, EmbeddingLoss)
    assert not loss.normalize


@every_loss
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf], ids=["NaN", "inf", "-inf"])
def test_one_entry_that_is_not_finite_makes_the_loss_nan(name, bad):
    for normalize in (False, True):
        loss = CASES[name].make().double()
        loss.normalize = normalize
        for row in (0, 3, 11):
            x = scattered()
            x[row, 2] = bad
            assert loss(x, uneven()).isnan()


@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].make().within_batch])
def test_one_reference_that_is_not_finite_makes_the_loss_nan(name):
    loss = CASES[name].make().double()
    for row in (0, 11):
        others = scattered(1)
        others[row, 0] = torch.nan
        assert loss(scattered(), uneven(), References(others, balanced(), contain_anchors=False)).isnan()


@every_loss
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_pair_and_proxy_losses_alike_compute_in_the_precision_of_the_embeddings(name, dtype):
    for made_in in (torch.float32, torch.float64):
        loss = CASES[name].make().to(made_in)
        x = scattered().to(dtype).requires_grad_()
        value = loss(x, uneven())
        value.backward()
        assert value.dtype == dtype or made_in == torch.float64
        assert x.grad.dtype == dtype
        assert all(p.grad.dtype == made_in for p in loss.parameters())


@every_loss
def test_autocast_around_forward_and_backward_changes_neither_value_nor_gradient(name):
    def gradients() -> list[Tensor]:
        loss = CASES[name].make()
        x = scattered().float().requires_grad_()
        value = loss(x, uneven())
        value.backward()
        return [value.detach(), x.grad, *(p.grad for p in loss.parameters())]

    outside = gradients()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = gradients()
    torch.testing.assert_close(inside, outside, rtol=0, atol=0)


@every_loss
@pytest.mark.parametrize("in_memory", [False, True], ids=["alone", "memory"])
def test_labels_whose_elements_lie_apart_are_the_same_labels_and_warn_of_nothing(name, in_memory, recwarn):
    def value(labels: Tensor) -> Tensor:
        loss = CASES[name].make()
        if in_memory and not loss.within_batch:
            loss = losses.CrossBatchMemory(loss, dim=DIM, size=24, start_after=0)
            loss(scattered(1).float(), labels)
        return loss(scattered().float(), labels).detach()

    apart = uneven().repeat_interleave(2)[::2]
    assert not apart.is_contiguous()
    torch.set_warn_always(True)
    try:
        assert torch.equal(value(apart), value(uneven()))
    finally:
        torch.set_warn_always(False)
    assert not recwarn.list


X, Y = scattered().float(), balanced()


@every_loss
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (
            X,
            Y.numpy(),
            r"labels must be a torch int64 tensor; got numpy\.ndarray\. Pass torch\.as_tensor\(labels",
        ),
        (X, Y.tolist(), r"got list\. Pass torch\.as_tensor\(labels"),
        (X.numpy(), Y, r"embeddings must be a torch float tensor; got numpy\.ndarray"),
        (X[0], Y, r"embeddings must be \(B, D\)"),
        (X[None], Y, r"embeddings must be \(B, D\)"),
        (X, Y[:, None], r"Pass one label for each row"),
        (X.long(), Y, r"Pass embeddings\.float"),
        (X.to("meta"), Y, r"must be on one device; got meta and cpu"),
        (X[:, :0], Y, r"D of 1 or more"),
        (X.to_sparse(), Y, r"Pass embeddings\.to_dense"),
    ],
    ids=[
        "numpy labels",
        "list",
        "numpy",
        "1-D",
        "3-D",
        "labels 2-D",
        "integers",
        "devices",
        "D = 0",
        "sparse",
    ],
)
def test_what_is_no_batch_is_refused_with_what_to_do(name, x, y, message):
    with pytest.raises(ValueError, match=message):
        CASES[name].make()(x, y)


def test_references_of_another_model_are_refused():
    others = References(torch.randn(5, DIM + 1), torch.zeros(5, dtype=torch.int64), contain_anchors=False)
    with pytest.raises(ValueError, match="D = 16 and 17"):
        losses.SupCon()(X, Y, others)
    with pytest.raises(ValueError, match="references' labels must be a torch int64 tensor"):
        losses.SupCon()(X, Y, References(X.clone(), np.zeros(12), contain_anchors=False))


@pytest.mark.parametrize("name", [name for name in CASES if hasattr(CASES[name].make(), "proxies")])
def test_embeddings_of_another_length_than_the_proxies_are_refused(name):
    with pytest.raises(ValueError, match=r"must be \(B, 16\), like the proxies; got D = 17"):
        CASES[name].make()(torch.randn(12, DIM + 1), balanced())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: losses.RecallAtK(()), "ks must be a sequence of one or more"),
        (lambda: losses.ProxyNCA(1, DIM), r"num_classes must be an integer in \[2, 2\*\*63\)"),
        (
            lambda: losses.TripletMargin(3.0, squared=False),
            r"margin must be .* \(0, 4\] unless squared is False",
        ),
        (lambda: losses.TripletMargin(4.5), r"margin must be a number in \(0, 2\] or a number in \(0, 4\]"),
        (lambda: losses.TripletMargin(None), r"None unless mining is semi_hard; got None\. Leave it out"),
        (
            lambda: losses.SemiHardMiner(3.0, squared=False),
            r"margin must be .* \(0, 4\] unless squared is False",
        ),
        (lambda: losses.RankedList(1.0, 1.5), r"margin must be a number in \[0, boundary\]; got 1.5"),
        (lambda: losses.RankedList(0.3), r"margin must be .*; got 0.4\. Pass such a value"),
        (lambda: losses.DistanceWeightedMiner(1.5), r"nonzero_loss_cutoff must be a number in \(cutoff, 2\]"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused_when_the_loss_is_made(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_embeddings_of_another_length_than_the_memory_are_refused():
    memory = losses.CrossBatchMemory(losses.SupCon(), dim=DIM)
    with pytest.raises(ValueError, match=r"must be \(B, 16\), like the memory bank; got \(12, 17\)"):
        memory(torch.randn(12, DIM + 1), balanced())
