"""The encoder lands on the unit sphere, from any backbone, and its weights follow from the seed alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from torchvision.models.feature_extraction import create_feature_extractor

from dml.config import Conv4Config, EncoderConfig, TimmConfig, TorchvisionConfig
from dml.errors import IncompatibleArtifact, InvalidSetting, MissingArtifact
from dml.models.backbones import _TORCHVISION_TRUNKS, _FeatureMap
from dml.models.encoder import Encoder, GeneralizedMeanPooling


@pytest.mark.parametrize("pooling", ["avg", "max", "avg+max", "gem"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_embeddings_have_length_one_also_under_autocast(pooling, precision):
    encoder = Encoder(EncoderConfig(pooling=pooling, dim=24, layer_norm=True), channels=1)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        embeddings = encoder(torch.randn(5, 1, 28, 28))
    assert embeddings.shape == (5, 24)
    assert embeddings.dtype == torch.float32
    torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(5), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "backbone",
    [
        TorchvisionConfig(name="squeezenet1_1"),
        TorchvisionConfig(name="googlenet"),
        TorchvisionConfig(name="resnet50"),
        TimmConfig(name="resnet18"),
    ],
    ids=lambda config: config.name,
)
def test_library_backbones_give_feature_maps(backbone):
    encoder = Encoder(EncoderConfig(backbone=backbone, dim=8), channels=3).eval()
    assert encoder(torch.randn(2, 3, 64, 64)).shape == (2, 8)


def test_tokens_need_the_backbones_own_pooling():
    vit = TimmConfig(name="vit_tiny_patch16_224")
    images = torch.randn(1, 3, 224, 224)
    assert Encoder(EncoderConfig(backbone=vit, pooling="own", dim=8), channels=3)(images).shape == (1, 8)
    with pytest.raises(InvalidSetting, match="own"):
        Encoder(EncoderConfig(backbone=vit, dim=8), channels=3)(images)


def test_weights_follow_from_the_seed_and_leave_the_callers_generator_alone():
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    first = Encoder(EncoderConfig(), channels=1, seed=5)
    assert torch.equal(torch.rand(1), expected)
    second, other = (Encoder(EncoderConfig(), channels=1, seed=seed) for seed in (5, 6))
    assert torch.equal(first.head.weight, second.head.weight)
    assert not torch.equal(first.head.weight, other.head.weight)


def test_frozen_batch_norm_keeps_its_statistics_while_training():
    encoder = Encoder(EncoderConfig(freeze_batch_norm=True), channels=1).train()
    before = {k: v.clone() for k, v in encoder.state_dict().items() if "running" in k}
    assert before
    encoder(torch.randn(8, 1, 28, 28) * 5 + 3)
    assert all(torch.equal(encoder.state_dict()[k], v) for k, v in before.items())


def test_local_weights_load_strictly(tmp_path):
    source = Encoder(EncoderConfig(backbone=TorchvisionConfig(), dim=8), channels=3, seed=1)
    weights = {k: v.contiguous() for k, v in source.backbone.extractor.state_dict().items()}
    path = tmp_path / "weights.safetensors"
    save_file({**weights, "classifier.1.weight": torch.zeros(2)}, path)
    loaded = Encoder(EncoderConfig(backbone=TorchvisionConfig(weights=path), dim=8), channels=3, seed=2)
    for key, value in weights.items():
        assert torch.equal(loaded.backbone.extractor.state_dict()[key], value)

    weights.pop(next(iter(weights)))
    save_file(weights, path)
    with pytest.raises(IncompatibleArtifact, match="missing"):
        Encoder(EncoderConfig(backbone=TorchvisionConfig(weights=path)), channels=3)
    with pytest.raises(MissingArtifact, match="safetensors"):
        Encoder(EncoderConfig(backbone=TimmConfig(weights=tmp_path / "none")), channels=3)


def test_the_shared_squeezenet_weights_load(shared_data):
    path = shared_data / "weights" / "squeezenet1_1_imagenet_features.safetensors"
    config = EncoderConfig(backbone=TorchvisionConfig(weights=path), dim=8)
    features = Encoder(config, channels=3).eval().features(torch.zeros(1, 3, 96, 96))
    assert features.shape == (1, 512)
    assert features.std() > 0.01


def test_only_timm_brings_its_own_pooling():
    with pytest.raises(InvalidSetting, match="timm"):
        Encoder(EncoderConfig(backbone=Conv4Config(), pooling="own"), channels=1)


def test_generalised_mean_pooling_begins_at_power_three_and_is_the_plain_formula():
    features = torch.rand(2, 5, 3, 4, generator=torch.Generator().manual_seed(0))
    pooling = GeneralizedMeanPooling()
    assert float(pooling.power.detach()) == 3, "as published"
    plain = [[(channel**3).mean() ** (1 / 3) for channel in image] for image in features]
    torch.testing.assert_close(pooling(features).detach(), torch.tensor(plain))
    assert float(pooling(-features).max().detach()) == pytest.approx(1e-6)  # of negatives


@pytest.mark.parametrize("pooling", ["avg", "max", "avg+max"])
def test_poolings_are_the_mean_the_maximum_and_their_sum_over_positions(pooling):
    encoder = Encoder(EncoderConfig(pooling=pooling), channels=1).eval()
    images = torch.randn(2, 1, 48, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        flat = encoder.backbone(images).flatten(2)
        expected = {"avg": flat.mean(2), "max": flat.amax(2), "avg+max": flat.mean(2) + flat.amax(2)}
        torch.testing.assert_close(encoder.features(images), expected[pooling])


def test_lengths_are_kept_in_training_mode_alone():
    kept = Encoder(EncoderConfig(dim=8, unit_length=False, freeze_batch_norm=True), channels=1, seed=3)
    plain = Encoder(EncoderConfig(dim=8, freeze_batch_norm=True), channels=1, seed=3)
    images = torch.randn(5, 1, 28, 28)
    expected = plain.train()(images)
    lengths = kept.train()(images).norm(dim=1, keepdim=True)
    assert (lengths - 1).abs().min() > 1e-3
    torch.testing.assert_close(kept(images) / lengths, expected)
    assert torch.equal(kept.eval()(images), plain.eval()(images))
    assert torch.equal(kept.head_output(images), plain.head_output(images))


@pytest.mark.parametrize("training", [True, False])
def test_an_encoder_of_unit_length_is_the_normalized_head_of_its_features(training):
    encoder = Encoder(EncoderConfig(dim=8, freeze_batch_norm=True), channels=1).train(training)
    images = torch.randn(5, 1, 28, 28)
    expected = torch.nn.functional.normalize(encoder.head(encoder.features(images)).float(), dim=1)
    assert torch.equal(encoder(images), expected)


@pytest.mark.parametrize("name", ["squeezenet1_1", "googlenet", "resnet18", "resnet50"])
def test_a_torchvision_network_gives_the_feature_map_that_its_own_extractor_gives(name):
    options = {"aux_logits": False, "init_weights": False, "transform_input": True}
    options = options if name == "googlenet" else {}
    last, _ = _TORCHVISION_TRUNKS[name]
    network = models.get_model(name, weights=None, **options)
    ours, traced = _FeatureMap(network, last).eval(), create_feature_extractor(network, {last: "map"}).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours(images), traced(images)["map"])
    assert list(ours.extractor.state_dict()) == list(traced.state_dict()), "so that weights fit"


def test_a_network_is_built_while_another_thread_runs_one():
    """Tracing patches the modules of the whole process: requests failed while a new model was loaded."""
    config = EncoderConfig(backbone=TorchvisionConfig(name="squeezenet1_1"), dim=8)
    running, images = Encoder(config, channels=3, seed=0).eval(), torch.randn(1, 3, 48, 48)
    with torch.inference_mode():
        expected = running(images)
    with ThreadPoolExecutor(1) as pool:
        builds = [pool.submit(Encoder, config, channels=3, initialize=False) for _ in range(10)]
        while not all(build.done() for build in builds):
            with torch.inference_mode():
                assert torch.equal(running(images), expected)
