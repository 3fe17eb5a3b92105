"""Low-rank adapters: nothing at first, small in number, and the same network once they are merged."""

import pytest
import torch
from torch.nn.utils import parametrize

from dml.config import Conv4Config, EncoderConfig, LoraConfig, TimmConfig, TorchvisionConfig
from dml.errors import InvalidSetting
from dml.models.encoder import Encoder
from dml.training.lora import LowRankUpdate, add_adapters, merge_adapters

ENCODERS = {
    "conv4": EncoderConfig(backbone=Conv4Config(width=8), dim=8),
    "squeezenet": EncoderConfig(backbone=TorchvisionConfig(name="squeezenet1_1"), dim=8),
    "vit": EncoderConfig(backbone=TimmConfig(name="test_vit"), pooling="own", dim=8),
    "resnet": EncoderConfig(backbone=TimmConfig(name="test_resnet"), dim=8),
    "depthwise": EncoderConfig(backbone=TimmConfig(name="test_efficientnet"), dim=8),
}


def adapted(name: str, *, trained: bool = True) -> Encoder:
    """An encoder with adapters of random weights, as after training."""
    encoder = Encoder(ENCODERS[name], channels=3, seed=0).eval()
    add_adapters(encoder.backbone, LoraConfig(rank=2), seed=1)
    for update in encoder.modules():
        if trained and isinstance(update, LowRankUpdate):
            torch.nn.init.normal_(update.up, std=0.1)
    return encoder


def images(name: str) -> torch.Tensor:
    side = 160 if name == "vit" else 64
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ENCODERS)
def test_the_merged_network_is_a_plain_one_with_the_same_embeddings(name):
    encoder = adapted(name)
    merged = merge_adapters(encoder)
    plain = Encoder(ENCODERS[name], channels=3, seed=0, initialize=False)
    plain.load_state_dict(merged.state_dict())
    with torch.inference_mode():
        torch.testing.assert_close(plain.eval()(images(name)), encoder(images(name)), rtol=0, atol=1e-5)
        first = adapted(name, trained=False)(images(name))
        assert not torch.allclose(encoder(images(name)), first, atol=1e-3)
    assert any(map(parametrize.is_parametrized, encoder.modules()))  # the one that trains is as it was


def test_adapters_change_nothing_at_first():
    with torch.inference_mode():
        before = Encoder(ENCODERS["vit"], channels=3, seed=0).eval()(images("vit"))
        torch.testing.assert_close(adapted("vit", trained=False)(images("vit")), before, rtol=0, atol=1e-6)


def test_only_adapters_train_and_they_are_few():
    encoder = adapted("vit")
    trained = {n: p.numel() for n, p in encoder.backbone.named_parameters() if p.requires_grad}
    assert all(name.endswith((".up", ".down")) for name in trained)
    assert sum(trained.values()) < 0.1 * sum(p.numel() for p in encoder.backbone.parameters())


def test_an_update_is_alpha_over_rank_times_the_product_also_under_autocast():
    weight = torch.randn(6, 4, 3, 3)
    update = LowRankUpdate(weight, LoraConfig(rank=2, alpha=6.0))
    torch.nn.init.normal_(update.up)
    expected = weight + 3 * (update.up @ update.down).reshape(6, 4, 3, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(update(weight), expected)


def test_the_first_weights_depend_on_the_seed_alone():
    torch.manual_seed(3)
    first = adapted("conv4", trained=False).state_dict()
    torch.manual_seed(4)
    second = adapted("conv4", trained=False).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_backbone_without_such_layers_is_refused():
    with pytest.raises(InvalidSetting, match="needs linear layers or convolutions"):
        add_adapters(torch.nn.Sequential(torch.nn.ReLU()), LoraConfig(), seed=0)
