"""A network from elsewhere gives in a package what its own library gives, and says what it misses."""

import json

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch.nn.functional import normalize

from dml.errors import IncompatibleArtifact, InvalidData, InvalidSetting, MissingArtifact
from dml.models.external import Options, import_embedder, read_embedder
from dml.models.package import load_package, read_preprocessing
from tests.models.photos import photo, png_of

TINY = "test_vit.r160_in1k"  # of timm, 0.4 million weights, made for tests


@pytest.fixture
def tiny_weights(tmp_path):
    """A whole checkpoint of the tiny network, with its classifier."""
    torch.manual_seed(0)
    save_file(timm.create_model(TINY).state_dict(), tmp_path / "tiny.safetensors")
    return tmp_path / "tiny.safetensors"


@pytest.fixture
def squeezenet(shared_data):
    return shared_data / "weights" / "squeezenet1_1_imagenet_features.safetensors"


def test_a_timm_network_embeds_as_timm_does(tmp_path, tiny_weights):
    package = import_embedder(str(tmp_path), f"timm:{TINY}", Options(weights=tiny_weights))
    network = timm.create_model(TINY, checkpoint_path=str(tiny_weights)).eval()
    network.reset_classifier(0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
    image = photo(168, 168)  # of the size that is resized to, where nothing is interpolated
    with torch.inference_mode():
        expected = normalize(network(transform(image)[None]), dim=1)
    np.testing.assert_allclose(load_package(package.uri).embed([png_of(image)]), expected, atol=1e-5)
    assert (package.dim, package.source) == (network.num_features, f"timm:{TINY}")


def test_the_preprocessing_is_timms_own(tmp_path, tiny_weights):
    package = import_embedder(str(tmp_path), f"timm:{TINY}", Options(weights=tiny_weights))
    preprocessing = read_preprocessing(package)
    assert (preprocessing.resize, preprocessing.crop, preprocessing.interpolation) == (168, 160, "bicubic")


@pytest.mark.parametrize("form", ["safetensors:{}@torchvision:squeezenet1_1", "safetensors:{}"])
def test_a_weights_file_becomes_the_same_package_in_every_form(tmp_path, squeezenet, form):
    named = read_embedder("torchvision:squeezenet1_1", Options(weights=squeezenet))
    embedder = read_embedder(form.format(squeezenet), Options())
    assert embedder.contents == named.contents
    assert embedder.source == "torchvision:squeezenet1_1"


def test_a_torchvision_network_embeds_as_its_averaged_features(tmp_path, squeezenet):
    from safetensors.torch import load_file
    from torchvision.models import SqueezeNet1_1_Weights, squeezenet1_1

    package = import_embedder(str(tmp_path), "torchvision:squeezenet1_1", Options(weights=squeezenet))
    network = squeezenet1_1()
    network.load_state_dict(load_file(squeezenet), strict=False)
    image = photo(256, 256)  # of the size that is resized to
    pixels = SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()(image)[None]
    with torch.inference_mode():
        expected = normalize(network.eval().features(pixels).mean((2, 3)), dim=1)
    np.testing.assert_allclose(load_package(package.uri).embed([png_of(image)]), expected, atol=1e-5)


def test_the_package_knows_no_folder_of_the_machine(tmp_path, tiny_weights):
    store = tmp_path / "store"
    package = import_embedder(str(store), f"timm:{TINY}", Options(weights=tiny_weights, license="MIT"))
    assert package.license == "MIT"
    for name in ("package.json", "manifest.json"):
        assert str(tmp_path) not in (store / "packages" / package.version / name).read_text()


def test_a_preprocessing_file_speaks_of_pixels_from_0_to_255(tmp_path, tiny_weights):
    file = tmp_path / "wanted.json"
    file.write_text(
        json.dumps({"color": "BGR", "scale": 1, "mean": [1, 2, 3], "std": 128, "crop_mode": "squash"})
    )
    options = Options(weights=tiny_weights, preprocessing=file)
    preprocessing = read_embedder(f"timm:{TINY}", options).contents.preprocessing
    assert (preprocessing.channel_order, preprocessing.crop_mode, preprocessing.crop) == (
        "BGR",
        "squash",
        160,
    )
    np.testing.assert_allclose(np.multiply(preprocessing.mean, 255), [1, 2, 3])
    np.testing.assert_allclose(np.multiply(preprocessing.std, 255), [128, 128, 128])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "cannot be read"),
        ("[1]", "JSON object"),
        ('{"colour": "BGR"}', "colour is not a setting"),
        ('{"std": 0}', "greater than 0"),
        ('{"mean": [1, 2]}', "one value for each"),
        ('{"color": "L"}', "mean must be given"),
        ('{"crop_mode": "none"}', "crop_mode must be one of center, squash, border"),
        ("[" * 100_000, "cannot be read"),
    ],
)
def test_a_preprocessing_file_that_cannot_be_followed_says_why(tmp_path, tiny_weights, content, message):
    (tmp_path / "wanted.json").write_text(content)
    options = Options(weights=tiny_weights, preprocessing=tmp_path / "wanted.json")
    with pytest.raises(InvalidSetting, match=message):
        read_embedder(f"timm:{TINY}", options)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("resnet50", "must be one of"),
        ("tim:resnet50", "Did you mean 'timm'"),
        ("timm:", "must be one of"),
        ("base:x", "must be one of"),
        ("timm:resnet5", "Did you mean 'resnet50'"),
        ("timm:resnet50.a1_in1", "Did you mean 'a1_in1k'"),
        ("torchvision:resnet51", "Did you mean 'resnet50'"),
    ],
)
def test_an_address_that_leads_nowhere_names_what_there_is(address, message):
    with pytest.raises(InvalidSetting, match=message):
        read_embedder(address, Options())


@pytest.mark.parametrize(
    ("address", "file"),
    [("timm:resnet50.a1_in1k", "model.safetensors"), ("torchvision:resnet18", "resnet18-f37072fd.pth")],
)
def test_weights_that_cannot_be_fetched_are_named_with_their_address(address, file, no_network):
    with pytest.raises(
        MissingArtifact, match=rf"must be on this machine.* https://\S+{file} .*--weights FILE"
    ):
        read_embedder(address, Options())


def test_weights_of_another_network_are_refused(tiny_weights):
    with pytest.raises(IncompatibleArtifact, match="must belong to this backbone"):
        read_embedder(f"safetensors:{tiny_weights}@timm:test_resnet.r160_in1k", Options())
    with pytest.raises(IncompatibleArtifact, match=r"safetensors:.*@timm:NAME"):
        read_embedder(f"safetensors:{tiny_weights}", Options())
    with pytest.raises(InvalidSetting, match="named once"):
        read_embedder(f"safetensors:{tiny_weights}", Options(weights=tiny_weights))


@pytest.mark.parametrize("content", ['{"size": 5}', '{"color": "L", "mean": 0.5, "std": 0.5}'])
def test_images_that_the_network_cannot_take_are_refused_before_they_are_published(
    tmp_path, squeezenet, content
):
    (tmp_path / "wanted.json").write_text(content)
    options = Options(preprocessing=tmp_path / "wanted.json")
    with pytest.raises(InvalidData, match="must take any number of images, as its preprocessing makes them"):
        import_embedder(str(tmp_path / "store"), f"safetensors:{squeezenet}", options)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("kind", [torch.int8, torch.bool, torch.complex64])
def test_weights_that_are_no_floating_point_numbers_are_refused(tmp_path, kind):
    weights = {name: value.to(kind) for name, value in timm.create_model(TINY).state_dict().items()}
    save_file(weights, tmp_path / "quantized.safetensors")
    with pytest.raises(IncompatibleArtifact, match=f"must be floating-point numbers.*{kind}"):
        read_embedder(f"timm:{TINY}", Options(weights=tmp_path / "quantized.safetensors"))


def test_a_json_file_may_begin_with_the_mark_of_its_encoding(tmp_path, tiny_weights):
    (tmp_path / "wanted.json").write_text('{"size": 64}', "utf-8-sig")
    options = Options(weights=tiny_weights, preprocessing=tmp_path / "wanted.json")
    assert read_embedder(f"timm:{TINY}", options).contents.preprocessing.crop == 64


def test_weights_that_give_no_numbers_are_refused_before_they_are_published(tmp_path):
    network = timm.create_model(TINY)
    torch.nn.init.constant_(network.norm.weight, torch.nan)
    save_file(network.state_dict(), tmp_path / "nan.safetensors")
    with pytest.raises(InvalidData, match="must give numbers"):
        import_embedder(
            str(tmp_path / "store"), f"timm:{TINY}", Options(weights=tmp_path / "nan.safetensors")
        )
    assert not (tmp_path / "store").exists()
