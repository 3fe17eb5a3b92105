"""A face detector with YuNet's outputs, to which each bright cell of 32 x 32 is a face; its pictures."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from dml.faces import LANDMARKS

EYES_AND_MOUTH = (LANDMARKS - 56) / 112
"""Landmarks of an upright face, in sides of its box from its centre."""


def encoded(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def picture(*cells: tuple[int, int]) -> np.ndarray:
    """White cells, (row, column), on black."""
    pixels = np.zeros((128, 192, 3), np.uint8)
    for row, column in cells:
        pixels[32 * row : 32 * row + 32, 32 * column : 32 * column + 32] = 255
    return pixels


def write_detector(path: Path) -> Path:
    """The detector as an ONNX file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, outputs, constants = [], [], []

    def constant(name: str, values: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(values, name))
        return name

    channels = constant("channels", np.full((1, 3, 1, 1), 1 / 765, np.float32))
    shape = constant("shape", np.array([1, -1, 1], np.int64))
    nodes.append(helper.make_node("Conv", ["input", channels], ["grey"]))
    for stride in (8, 16, 32):
        nodes.append(
            helper.make_node(
                "AveragePool",
                ["grey"],
                [f"cells_{stride}"],
                kernel_shape=[stride, stride],
                strides=[stride, stride],
            )
        )
        nodes.append(helper.make_node("Reshape", [f"cells_{stride}", shape], [f"flat_{stride}"]))
        factor = constant(f"factor_{stride}", np.full((1, 1, 1), float(stride == 32), np.float32))
        nodes += [
            helper.make_node("Mul", [f"flat_{stride}", factor], [f"{kind}_{stride}"])
            for kind in ("cls", "obj")
        ]
        places = {"bbox": np.array([0.5, 0.5, 0, 0]), "kps": 0.5 + EYES_AND_MOUTH.ravel()}
        for kind, values in places.items():
            zeros = constant(f"zeros_{kind}_{stride}", np.zeros((1, 1, len(values)), np.float32))
            added = constant(f"added_{kind}_{stride}", values.astype(np.float32)[None, None])
            nodes.append(helper.make_node("Mul", [f"flat_{stride}", zeros], [f"no_{kind}_{stride}"]))
            nodes.append(helper.make_node("Add", [f"no_{kind}_{stride}", added], [f"{kind}_{stride}"]))
    for kind, width in (("cls", 1), ("obj", 1), ("bbox", 4), ("kps", 10)):
        outputs += [
            helper.make_tensor_value_info(f"{kind}_{stride}", TensorProto.FLOAT, [1, None, width])
            for stride in (8, 16, 32)
        ]
    given = helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, "height", "width"])
    graph = helper.make_graph(nodes, "bright", [given], outputs, constants)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)
    return path
