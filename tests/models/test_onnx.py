"""An ONNX file gives in a package what ONNX Runtime gives for it alone; what it does not say must be said."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dml.errors import CorruptArtifact, InvalidData, InvalidSetting, MissingArtifact
from dml.models.external import Options, import_embedder, read_embedder
from dml.models.package import load_package
from tests.models.photos import photo, png_of

D = 8


def network(
    path,
    *,
    side=112,
    batch="N",
    layout="NCHW",
    channels=3,
    external=False,
    outputs=("embedding",),
    kind=TensorProto.FLOAT,
):
    """A face-type network of random weights: transpose where it must, convolution, pooling, a linear head."""
    rng = np.random.default_rng(0)
    weights = {
        "kernel": rng.standard_normal((6, channels, 5, 5)).astype(np.float32),
        "head": rng.standard_normal((6, D)).astype(np.float32),
    }
    plane = list(side) if isinstance(side, tuple) else [side, side]
    shape = [batch, channels, *plane] if layout == "NCHW" else [batch, *plane, channels]
    nodes = [
        helper.make_node("Cast", ["data"], ["cast"], to=TensorProto.FLOAT),
        helper.make_node(
            "Transpose", ["cast"], ["planes"], perm=[0, 1, 2, 3] if layout == "NCHW" else [0, 3, 1, 2]
        ),
        helper.make_node("Conv", ["planes", "kernel"], ["maps"], strides=[3, 3]),
        helper.make_node("Relu", ["maps"], ["rectified"]),
        helper.make_node("GlobalAveragePool", ["rectified"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "head"], ["embedding"]),
    ]
    made = {
        "embedding": helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, D]),
        "maps": helper.make_tensor_value_info("maps", TensorProto.FLOAT, None),
    }
    graph = helper.make_graph(
        nodes,
        "face",
        [helper.make_tensor_value_info("data", kind, shape)],
        [made[name] for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, path, save_as_external_data=external, location="weights.bin", size_threshold=0)
    return path


def expected_of(path, images, *, bgr=False, mean=127.5, std=127.5, layout="NCHW"):
    """What the file gives by ONNX Runtime alone, by hand; the images have the network's size."""
    pixels = np.stack([np.asarray(image, dtype=np.float32) for image in images])
    pixels = ((pixels[..., ::-1] if bgr else pixels) - mean) / std
    pixels = pixels.transpose(0, 3, 1, 2) if layout == "NCHW" else pixels
    session = onnxruntime.InferenceSession(str(path))
    vectors = np.concatenate(
        [session.run(["embedding"], {"data": image[None].astype(np.float32)})[0] for image in pixels]
    )
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def embed(store, path, images, settings=None):
    if settings is not None:
        (path.parent / f"{path.name}.json").write_text(json.dumps(settings))
    package = import_embedder(str(store), f"onnx:{path}", Options())
    return load_package(package.uri).embed([png_of(image) for image in images])


@pytest.fixture
def faces():
    return [photo(112, 112, seed=seed) for seed in range(5)]


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_a_face_network_embeds_as_its_own_runtime_does(tmp_path, faces, layout):
    path = network(tmp_path / "face.onnx", layout=layout)
    expected = expected_of(path, faces, layout=layout)
    np.testing.assert_allclose(embed(tmp_path / "s", path, faces), expected, atol=1e-5)


def test_bgr_and_pixels_up_to_255_are_said_in_the_file_beside_it(tmp_path, faces):
    path = network(tmp_path / "face.onnx")
    embeddings = embed(
        tmp_path / "s", path, faces, {"color": "BGR", "scale": 1, "mean": [104, 117, 123], "std": 128}
    )
    expected = expected_of(path, faces, bgr=True, mean=np.array([104, 117, 123]), std=128)
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)
    assert np.abs(embeddings - expected_of(path, faces)).max() > 1e-3


def test_a_file_that_fixes_its_batch_takes_any_number_of_images(tmp_path, faces):
    one, two = (network(tmp_path / f"{n}.onnx", batch=n) for n in (1, 2))
    np.testing.assert_allclose(
        embed(tmp_path / "s", two, faces), embed(tmp_path / "s", one, faces), atol=1e-5
    )


def test_bytes_go_in_as_bytes(tmp_path, faces):
    path = network(tmp_path / "face.onnx", kind=TensorProto.UINT8)
    plain = network(tmp_path / "plain.onnx")
    embeddings = embed(tmp_path / "s", path, faces, {"scale": 1, "mean": 0, "std": 1})
    np.testing.assert_allclose(embeddings, expected_of(plain, faces, mean=0, std=1), atol=1e-5)


def test_weights_beside_the_file_are_taken_into_the_package(tmp_path, faces):
    folder = tmp_path / "given"
    folder.mkdir()
    path = network(folder / "face.onnx", external=True)
    expected = expected_of(path, faces)
    package = import_embedder(str(tmp_path / "s"), f"onnx:{path}", Options())
    (folder / "weights.bin").unlink()
    embeddings = load_package(package.uri).embed([png_of(face) for face in faces])
    np.testing.assert_allclose(embeddings, expected, atol=1e-5)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/hostname"])
def test_weights_outside_the_files_folder_are_refused(tmp_path, location):
    folder = tmp_path / "given"
    folder.mkdir()
    path = network(folder / "face.onnx", external=True)
    (tmp_path / "secret.bin").write_bytes((folder / "weights.bin").read_bytes())
    model = onnx.load(path, load_external_data=False)
    for tensor in model.graph.initializer:
        (entry,) = (each for each in tensor.external_data if each.key == "location")
        entry.value = location
    path.write_bytes(model.SerializeToString())
    with pytest.raises(CorruptArtifact, match="files of its own folder"):
        read_embedder(f"onnx:{path}", Options())


def test_what_was_concluded_is_said_and_so_is_the_alignment(tmp_path):
    said = "\n".join(read_embedder(f"onnx:{network(tmp_path / 'face.onnx')}", Options()).notes)
    assert "color, mean, std: the file does not say" in said
    assert "five landmarks" in said
    (tmp_path / "face.onnx.json").write_text('{"color": "RGB", "mean": 0.5, "std": 0.5, "alignment": ""}')
    said = "\n".join(read_embedder(f"onnx:{tmp_path / 'face.onnx'}", Options()).notes)
    assert "does not say" not in said
    assert "landmarks" not in said


@pytest.mark.parametrize(
    ("made", "settings", "error", "message"),
    [
        ({"side": "S"}, {}, InvalidSetting, '"size": 224'),
        ({"side": 96}, {"size": 112}, InvalidSetting, r"\(96, 96\), height and width; got size 112"),
        ({}, {"layout": "NHWC"}, InvalidSetting, "layout must fit"),
        ({"channels": 1}, {"color": "RGB", "mean": 0, "std": 1}, InvalidSetting, '"color": "L"'),
        ({"channels": 2}, {"layout": "NCHW"}, InvalidData, "1 or 3 channels"),
        ({"outputs": ("maps", "embedding")}, {}, InvalidSetting, "one of the outputs"),
        ({"outputs": ("maps", "embedding")}, {"output": "maps"}, InvalidData, "one row of numbers"),
        ({}, {"output": "nothing"}, InvalidSetting, "one of the outputs"),
        ({}, {"input": "nothing"}, InvalidData, "must have one input"),
        ({}, {"mean": "x"}, InvalidSetting, "mean"),
        ({}, {"std": 0}, InvalidSetting, "greater than 0"),
    ],
)
def test_what_does_not_fit_the_file_is_refused_with_what_to_say(tmp_path, made, settings, error, message):
    path = network(tmp_path / "face.onnx", **made)
    (tmp_path / "face.onnx.json").write_text(json.dumps(settings))
    with pytest.raises(error, match=message):
        read_embedder(f"onnx:{path}", Options())


@pytest.mark.parametrize("content", [b"", b"no network", b"\x08\x07"])
def test_a_file_that_is_no_network_is_refused(tmp_path, content):
    (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises((CorruptArtifact, InvalidData), match=r"x\.onnx"):
        read_embedder(f"onnx:{tmp_path / 'x.onnx'}", Options())
    with pytest.raises(MissingArtifact, match="there is none"):
        read_embedder(f"onnx:{tmp_path / 'nothing.onnx'}", Options())


def test_a_grey_network_sees_grey(tmp_path, faces):
    path = network(tmp_path / "grey.onnx", channels=1)
    embeddings = embed(tmp_path / "s", path, faces)
    np.testing.assert_allclose(
        embeddings, embed(tmp_path / "s", path, [face.convert("L") for face in faces]), atol=1e-5
    )


def test_a_network_for_people_sees_them_taller_than_wide(tmp_path):
    path = network(tmp_path / "person.onnx", side=(256, 128))
    people = [photo(128, 256, seed=seed) for seed in range(2)]
    embeddings = embed(tmp_path / "s", path, people, {"mean": 0.5, "std": 0.5})
    np.testing.assert_allclose(embeddings, expected_of(path, people), atol=1e-5)


POOLED = [helper.make_node("GlobalAveragePool", ["x"], ["p"]), helper.make_node("Flatten", ["p"], ["flat"])]


def model_of(path, nodes, *, batch="N", kind=TensorProto.FLOAT, constants=None):
    """A network of 32 pixels whose output `y` these nodes make of `flat`, three numbers for each image."""
    graph = helper.make_graph(
        [*POOLED, *nodes],
        "any",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 32, 32])],
        [helper.make_tensor_value_info("y", kind, None)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8),
        path,
    )
    return f"onnx:{path}"


NODES = {
    "one number for all": [helper.make_node("ReduceMean", ["flat"], ["y"], keepdims=0)],
    "no axis of numbers": [helper.make_node("ReduceMean", ["flat"], ["y"], axes=[1], keepdims=0)],
    "no numbers": [helper.make_node("Slice", ["flat", "zero", "zero", "one"], ["y"])],
}
CONSTANTS = {"zero": np.array([0]), "one": np.array([1]), "shape": np.array([1, 3])}


@pytest.mark.parametrize("nodes", NODES.values(), ids=NODES)
def test_an_output_that_is_no_row_of_numbers_for_each_image_is_refused(tmp_path, nodes):
    with pytest.raises(
        InvalidData, match=r"must be one row of numbers for each image; the output y .* shape"
    ):
        read_embedder(model_of(tmp_path / "x.onnx", nodes, constants=CONSTANTS), Options())


def test_an_output_that_is_no_array_is_refused(tmp_path):
    graph = helper.make_graph(
        [*POOLED, helper.make_node("SequenceConstruct", ["flat"], ["y"])],
        "sequence",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "x.onnx")
    with pytest.raises(InvalidData, match="no array of numbers"):
        read_embedder(f"onnx:{tmp_path / 'x.onnx'}", Options())


def test_a_network_without_an_input_is_refused(tmp_path):
    value = numpy_helper.from_array(np.ones((1, 8), np.float32))
    graph = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=value)],
        "constant",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]), tmp_path / "x.onnx")
    with pytest.raises(InvalidData, match=r"must have one input, of images; .* has \[\]"):
        read_embedder(f"onnx:{tmp_path / 'x.onnx'}", Options())


UNFIT = {
    "one image at a time, though its batch is said to be of any size": (
        [helper.make_node("Reshape", ["flat", "shape"], ["y"])],
        "must take any number of images",
    ),
    "the mean of the batch": (
        [helper.make_node("ReduceMean", ["flat"], ["y"], axes=[0], keepdims=1)],
        r"one embedding of 3 numbers for each image",
    ),
    "normalized by the batch": (
        [
            helper.make_node("ReduceMean", ["flat"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["flat", "mean"], ["difference"]),
            helper.make_node("Add", ["difference", "small"], ["y"]),
        ],
        "must depend on its image alone",
    ),
    "random": ([helper.make_node("RandomNormalLike", ["flat"], ["y"])], "must depend on its image alone"),
    "one embedding for all images": (
        [helper.make_node("Mul", ["flat", "none"], ["m"]), helper.make_node("Add", ["m", "small"], ["y"])],
        "must tell images apart",
    ),
}


@pytest.mark.parametrize(("nodes", "message"), UNFIT.values(), ids=UNFIT)
def test_a_network_that_gives_images_no_embedding_of_their_own_is_refused(tmp_path, nodes, message):
    constants = {"shape": CONSTANTS["shape"], "small": np.float32([0.01]), "none": np.float32([0])}
    with pytest.raises(InvalidData, match=message):
        import_embedder(
            str(tmp_path / "s"), model_of(tmp_path / "x.onnx", nodes, constants=constants), Options()
        )
    assert not (tmp_path / "s").exists()
