"""Networks in ONNX files; a JSON file beside it gives the preprocessing that the file lacks."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from pydantic import Field

from dml.config import PreprocessingConfig
from dml.errors import CorruptArtifact, InvalidData, InvalidSetting, MissingArtifact
from dml.models.external.base import External, Options, Source
from dml.models.external.preprocessing import PreprocessingFile
from dml.models.package import Contents
from dml.models.runtimes.onnx import NETWORK, TYPES, OnnxConfig, open_session

_FACE_SIDE = 112
_FACE_ALIGNMENT = (
    "faces whose five landmarks (eyes, nose, corners of the mouth) were moved to ArcFace's positions in "
    "112 x 112 pixels"
)
_CHANNELS = {1: "L", 3: "RGB"}


class OnnxFile(PreprocessingFile):
    """The JSON file beside an ONNX file; every key is optional."""

    layout: Literal["NCHW", "NHWC"] | None = None
    input: str | None = None
    output: str | None = Field(None, description="the embedding's name, where there are several outputs")
    alignment: str | None = Field(None, description="what must be done to an image before")


class OnnxSource(Source):
    """`onnx:FILE`, with the file's settings in FILE.json or in --preprocessing."""

    example = "onnx:FILE"

    def read(self, address: str, options: Options, follow: Callable[[str, Options], External]) -> External:
        file = Path(address).expanduser()
        if options.weights is not None:
            raise InvalidSetting(
                f"An ONNX file holds its weights; got --weights {options.weights}. Leave it out."
            )
        if not file.is_file():
            raise MissingArtifact(f"The network must be an ONNX file; there is none at {file}.")
        beside = Path(f"{file}.json")
        settings_file = options.preprocessing or (beside if beside.exists() else None)
        given = OnnxFile() if settings_file is None else OnnxFile.read(settings_file)
        content = _whole(file)
        session = open_session(content, str(file), torch.device("cpu"))
        image = _image_input(session, given, file)
        preprocessing, notes = _preprocessing(image, given)
        output, dim = _embedding_output(session, given, image, preprocessing, file)
        alignment = given.alignment
        if alignment is None:
            alignment = _FACE_ALIGNMENT if preprocessing.size == (_FACE_SIDE, _FACE_SIDE) else ""
        config = OnnxConfig(
            input=image.name,
            output=output,
            layout=image.layout,
            batch_size=image.batch_size,
            dim=dim,
            alignment=alignment,
        )
        where = f"{settings_file.name}" if settings_file else f"none; write {beside.name} to say it otherwise"
        return External(
            Contents("onnx", config.model_dump(mode="json"), preprocessing, {NETWORK: content}, dim),
            source=f"onnx:{file.name}",
            about={"file": file.name},
            notes=(
                f"settings file: {where}",
                f"input {image.name}: {image.layout}, {image.type}, "
                f"{'any batch' if image.batch_size is None else f'batches of {image.batch_size}'}",
                f"output {output}: {dim} numbers",
                *notes,
                *([f"images must be {alignment}; {_not_done(options)}"] if alignment else []),
            ),
        )


def _not_done(options: Options) -> str:
    return "this is not done here" if options.detector is None else "the detector does it"


def _whole(file: Path) -> bytes:
    """An ONNX file's bytes, including weights from external data files."""
    import onnx

    try:
        model = onnx.load(file, load_external_data=False)
        alone = model.SerializeToString()
        onnx.load_external_data_for_model(model, str(file.parent))  # refuses files outside the folder
        whole = model.SerializeToString()
    except Exception as error:  # protobuf's, ONNX's own and the system's
        first_line = str(error).strip().partition("\n")[0]
        raise CorruptArtifact(
            f"An ONNX file must be whole, its weights in it or in files of its own folder; {file} is not: "
            f"{first_line}. Export it again, into an empty folder."
        ) from error
    return file.read_bytes() if whole == alone else whole


class _Image(NamedTuple):
    """The input that takes images."""

    name: str
    type: str
    layout: Literal["NCHW", "NHWC"]
    channels: int
    size: tuple[int | None, int | None]
    """(height, width); None: any."""
    batch_size: int | None


def _image_input(session: Any, given: OnnxFile, file: Path) -> _Image:
    inputs = {input_.name: input_ for input_ in session.get_inputs()}
    name = given.input or next(iter(inputs), "")
    if name not in inputs or len(inputs) > 1:
        raise InvalidData(f"A network must have one input, of images; {file} has {sorted(inputs)}.")
    image = inputs[name]
    shape, kind = image.shape, image.type
    if len(shape) != 4 or kind not in TYPES:
        raise InvalidData(
            f"An input of images must have 4 dimensions and be one of {sorted(TYPES)}; {name} of {file} has "
            f"{shape} and is {kind}."
        )
    possible = [layout for layout, at in (("NCHW", 1), ("NHWC", 3)) if shape[at] in _CHANNELS]
    layout = given.layout or (possible[0] if len(possible) == 1 else None)
    if layout is None or (possible and layout not in possible):
        raise InvalidSetting(
            f"The layout must fit the input {name} of {file}, {shape}; got {given.layout}. Say "
            f'"layout": "NCHW" or "NHWC" in {file.name}.json.'
        )
    batch, *rest = shape
    channels, height, width = rest if layout == "NCHW" else (rest[2], rest[0], rest[1])
    channels = channels if isinstance(channels, int) else 3
    if channels not in _CHANNELS:
        raise InvalidData(f"An image must have 1 or 3 channels; the input {name} of {file} is {shape}.")
    return _Image(
        name=name,
        type=kind,
        layout="NCHW" if layout == "NCHW" else "NHWC",
        channels=channels,
        size=(height if isinstance(height, int) else None, width if isinstance(width, int) else None),
        batch_size=batch if isinstance(batch, int) else None,
    )


def _preprocessing(image: _Image, given: OnnxFile) -> tuple[PreprocessingConfig, list[str]]:
    """The preprocessing, and how it was determined."""
    size: tuple[int | None, int | None] = image.size
    if given.size is not None:
        size = given.size if isinstance(given.size, tuple) else (given.size, given.size)
    height, width = size
    if height is None or width is None:
        raise InvalidSetting(f'The input {image.name} takes images of any size. Say which: "size": 224.')
    if any(fixed not in (None, side) for fixed, side in zip(image.size, size, strict=True)):
        raise InvalidSetting(
            f"The input {image.name} takes images of {image.size}, height and width; got size {given.size}."
        )
    is_face = height == width == _FACE_SIDE
    color = "L" if image.channels == 1 else "RGB"
    usual = PreprocessingConfig(
        resize=width,
        crop=width,
        height=None if height == width else height,
        crop_mode="squash" if is_face or height != width else "center",
        color=color,
        mean=(0.5,) * image.channels if is_face or color == "L" else (0.485, 0.456, 0.406),
        std=(0.5,) * image.channels if is_face or color == "L" else (0.229, 0.224, 0.225),
    )
    preprocessing = given.over(usual)
    if preprocessing.channels != image.channels:
        raise InvalidSetting(
            f"The color must fit the input's {image.channels} channels; got {given.color}. Say "
            f'"color": "{_CHANNELS[image.channels]}".'
        )
    guessed = [name for name in ("color", "mean", "std") if getattr(given, name) is None]
    why = "as ArcFace's networks have it" if is_face else "as networks for ImageNet have it"
    notes = [f"{', '.join(guessed)}: the file does not say; taken {why}"] if guessed else []
    return preprocessing, notes


def _embedding_output(
    session: Any, given: OnnxFile, image: _Image, preprocessing: PreprocessingConfig, file: Path
) -> tuple[str, int]:
    """The output that is the embedding, and its length, by running it once."""
    import numpy as np

    outputs = [output.name for output in session.get_outputs()]
    wanted = given.output or (outputs[0] if len(outputs) == 1 else None)
    if wanted is None or wanted not in outputs:
        raise InvalidSetting(
            f"The embedding must be one of the outputs {outputs} of {file}; got {given.output}. Say "
            f'"output": "{outputs[0]}" in {file.name}.json.'
        )
    num_images, plane = image.batch_size or 1, preprocessing.size[::-1]
    shape = (
        (num_images, image.channels, *plane)
        if image.layout == "NCHW"
        else (num_images, *plane, image.channels)
    )
    try:
        (output,) = session.run([wanted], {image.name: np.zeros(shape, TYPES[image.type])})
    except Exception as error:  # ONNX Runtime has a class for each status code, without a common one
        first_line = str(error).strip().partition("\n")[0]
        raise InvalidData(
            f"The network must take images of {plane} pixels; {file} does not: {first_line}."
        ) from error
    numbers = isinstance(output, np.ndarray) and output.dtype.kind in "fiu"
    given_shape: tuple[int, ...] = output.shape if numbers else ()
    dim = max(given_shape[1:], default=0)
    if not dim or given_shape[0] != num_images or math.prod(given_shape) != num_images * dim:
        what = f"of shape {given_shape} for {num_images}" if numbers else "no array of numbers"
        raise InvalidData(
            f"An embedding must be one row of numbers for each image; the output {wanted} of {file} is "
            f"{what}. Name another output, or export the network with pooling."
        )
    return wanted, dim
