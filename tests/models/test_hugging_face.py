"""A Hugging Face model gives in a package what transformers gives, with its own preprocessing."""

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from dml.errors import CorruptArtifact, IncompatibleArtifact, InvalidSetting, MissingArtifact
from dml.models.encoder import Encoder
from dml.models.external import Options, import_embedder, read_embedder
from dml.models.package import load_package, read_preprocessing
from tests.models.photos import photo, png_of

transformers = pytest.importorskip("transformers")

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 32,
    "patch_size": 8,
}
CENTER = {
    "size": {"shortest_edge": 32},
    "do_center_crop": True,
    "crop_size": {"height": 32, "width": 32},
    "resample": 3,
    "image_mean": [0.48, 0.46, 0.41],
    "image_std": [0.27, 0.26, 0.28],
}
SQUASH = {"size": {"height": 32, "width": 32}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def clip():
    text = {
        key: value
        for key, value in SMALL.items()
        if "size" in key and key not in ("image_size", "patch_size")
    }
    text |= {"num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 99}
    config = transformers.CLIPConfig(
        vision_config={**SMALL, "projection_dim": 12},
        text_config={**text, "projection_dim": 12},
        projection_dim=12,
    )
    return transformers.CLIPModel(config)


def vit():
    return transformers.ViTForImageClassification(transformers.ViTConfig(**SMALL))


def dinov2():
    return transformers.Dinov2Model(transformers.Dinov2Config(**SMALL))


def siglip():
    return transformers.SiglipVisionModel(transformers.SiglipVisionConfig(**SMALL))


def convnext():
    return transformers.ConvNextModel(
        transformers.ConvNextConfig(hidden_sizes=[4, 8, 12, 16], depths=[1] * 4)
    )


EXPECTED = {
    clip: lambda model, pixels: model.visual_projection(model.vision_model(pixels).pooler_output),
    vit: lambda model, pixels: model.vit(pixels).last_hidden_state[:, 0],
    dinov2: lambda model, pixels: model(pixels).last_hidden_state[:, 0],
    siglip: lambda model, pixels: model(pixels).pooler_output,
    convnext: lambda model, pixels: model(pixels).pooler_output,
}


def saved(folder, make, processor=CENTER):
    torch.manual_seed(0)
    model = make().eval()
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return model


@pytest.mark.parametrize("make", EXPECTED, ids=lambda make: make.__name__)
def test_a_model_embeds_as_transformers_does(tmp_path, make):
    model = saved(tmp_path / "model", make, SQUASH)
    package = import_embedder(str(tmp_path / "s"), f"hf:{tmp_path / 'model'}", Options())
    image = photo(32, 32)
    pixels = torch.from_numpy((np.asarray(image) / 255 - 0.5) / 0.5).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        expected = normalize(EXPECTED[make](model, pixels), dim=1)
    assert package.dim == expected.shape[1]
    np.testing.assert_allclose(load_package(package.uri).embed([png_of(image)]), expected, atol=1e-5)


def test_the_preprocessing_is_its_image_processors(tmp_path):
    saved(tmp_path / "model", clip)
    preprocessing = read_preprocessing(
        import_embedder(str(tmp_path / "s"), f"hf:{tmp_path / 'model'}", Options())
    )
    assert (preprocessing.resize, preprocessing.crop, preprocessing.interpolation) == (32, 32, "bicubic")
    np.testing.assert_allclose(preprocessing.mean, CENTER["image_mean"])


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"size": {"shortest_edge": 40}}, {"resize": 40, "crop": 32, "crop_mode": "center"}),
        ({"size": 32, "crop_size": 32}, {"resize": 32, "crop": 32}),
        ({"do_center_crop": False, "crop_pct": 0.8}, {"resize": 40, "crop": 32}),
        (
            {"size": {"height": 32, "width": 32}, "do_center_crop": False},
            {"crop_mode": "squash", "resize": 32},
        ),
        ({"size": {"height": 64, "width": 32}, "do_center_crop": False}, {"height": 64, "crop": 32}),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        ({"rescale_factor": 2 / 255, "image_mean": [1.0] * 3}, {"mean": (0.5, 0.5, 0.5)}),
    ],
)
def test_every_form_of_an_image_processor_is_understood(tmp_path, changes, expected):
    saved(tmp_path, dinov2, {**CENTER, **changes})
    preprocessing = read_embedder(f"hf:{tmp_path}", Options()).contents.preprocessing
    assert {name: getattr(preprocessing, name) for name in expected} == expected


def test_a_package_of_one_is_an_encoder_to_train(tmp_path):
    saved(tmp_path / "model", dinov2)
    package = import_embedder(str(tmp_path / "s"), f"hf:{tmp_path / 'model'}", Options())
    encoder = load_package(package.uri).encoder
    assert isinstance(encoder, Encoder)
    encoder(torch.zeros(2, 3, 32, 32)).sum().backward()


def test_the_package_names_no_folder_of_the_machine(tmp_path):
    saved(tmp_path / "model", vit)
    contents = read_embedder(f"hf:{tmp_path / 'model'}", Options()).contents
    assert str(tmp_path) not in json.dumps(dict(contents.encoder))


def test_a_text_model_and_an_unknown_one_are_refused(tmp_path):
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=9
    )
    saved(tmp_path, lambda: transformers.BertModel(config))
    with pytest.raises(InvalidSetting, match="vision model"):
        read_embedder(f"hf:{tmp_path}", Options())
    (tmp_path / "config.json").write_text('{"model_type": "unheard-of"}')
    with pytest.raises(InvalidSetting, match="'unheard-of'"):
        read_embedder(f"hf:{tmp_path}", Options())


def test_weights_that_are_not_whole_or_not_safetensors_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    saved(tmp_path, dinov2)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(dict(list(weights.items())[1:]), tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(IncompatibleArtifact, match="lacks"):
        read_embedder(f"hf:{tmp_path}", Options())
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CorruptArtifact, match="safetensors"):
        read_embedder(f"hf:{tmp_path}", Options())


def test_what_a_folder_lacks_is_named(tmp_path):
    with pytest.raises(MissingArtifact, match=r"config\.json"):
        read_embedder(f"hf:{tmp_path}", Options())
    saved(tmp_path, vit)
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(MissingArtifact, match=r"preprocessor_config\.json"):
        read_embedder(f"hf:{tmp_path}", Options())
    (tmp_path / "preprocessor_config.json").write_text("{}")
    with pytest.raises(CorruptArtifact, match="image processor"):
        read_embedder(f"hf:{tmp_path}", Options())


def test_a_model_that_cannot_be_fetched_is_named_with_its_address(no_network):
    with pytest.raises(
        MissingArtifact, match=r"https://\S+/openai/clip-vit-base-patch32/\S+config\.json .*hf:FOLDER"
    ):
        read_embedder("hf:openai/clip-vit-base-patch32", Options())
    with pytest.raises(MissingArtifact, match="OWNER/NAME"):
        read_embedder("hf:nothing", Options())
