"""Detect, align and crop: a picture in, its regions out, each ready for an encoder.

A package can hold a detector (`DetectorConfig` and the model's file), which then comes before what embeds:
the same before an ingest, an enrolment and a query, or their vectors mean different things. Several faces in
one picture are several regions, and none is an empty list; neither is an error. Nothing is downloaded: you
name the model's file.
"""

import hashlib
import io
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from dml.config import Part
from dml.errors import InvalidData, InvalidSetting, MissingArtifact
from dml.preprocessing import Encoded, decode

LANDMARKS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""(5, 2) where an aligned crop of 112 x 112 has the left eye, the right eye (of the picture), the nose and
the corners of the mouth. Source: Deng et al. 2019, arXiv:1801.07698, as InsightFace publishes them."""
_SIDE = 112
_LONGEST = 640
_STRIDE = 32
"""Of YuNet's coarsest cells, in pixels."""


class NoFace(InvalidData):
    """A picture without a face, for an embedder of faces."""

    reason = "no face"


class DetectorConfig(Part):
    """How a package detects, aligns and crops; the model's file is beside it in the package."""

    kind: Literal["opencv"] = "opencv"
    side: int = Field(_SIDE, ge=16, description="of a crop, in pixels")
    longest: int = Field(
        _LONGEST, ge=32, description="side of the picture in which is detected, at most, in pixels"
    )
    score: float = Field(0.8, gt=0, lt=1, description="of a face, at least")
    overlap: float = Field(
        0.3, gt=0, lt=1, description="of two regions of one face, at most, as intersection over union"
    )

    def open(self, model: Path) -> "OpenCVDetector":
        """The detector; raises as `OpenCVDetector`."""
        return OpenCVDetector(model, **self.model_dump(exclude={"kind"}))


@dataclass(frozen=True)
class Region:
    """A part of a picture that shows one face or thing."""

    box: tuple[float, float, float, float]
    """Left, top, width and height, pixels of the picture upright."""
    landmarks: NDArray[np.float64]
    """(5, 2) eyes, nose, corners of the mouth; (0, 2) where a detector has none."""
    score: float
    """Of the detector, [0, 1]."""
    crop: NDArray[np.uint8]
    """(S, S, 3) RGB, aligned."""

    def encoded(self) -> bytes:
        """The crop as a PNG file's bytes: what an ingest, an enrolment or a search takes."""
        out = io.BytesIO()
        Image.fromarray(self.crop).save(out, "PNG")
        return out.getvalue()


class Detector(Protocol):
    """What finds regions."""

    @property
    def fingerprint(self) -> str:
        """Of everything that decides the crops: model file, thresholds, alignment."""

    @property
    def side(self) -> int | None:
        """S, pixels of a crop's side; None: crops have any size."""

    def regions(self, image: Encoded) -> list[Region]:
        """The regions of an image file, the largest first; empty where there is none.

        Raises:
            UnreadableImage: it is no image.
        """

    def regions_in(self, pixels: NDArray[np.uint8]) -> list[Region]:
        """The same of a decoded picture, (H, W, 3) RGB."""


def all_regions(detector: Detector, pixels: NDArray[np.uint8]) -> list[Region]:
    """The regions of a picture, the largest first; a crop itself, S x S, is the one region, as it is.

    Args:
        detector: finds the regions.
        pixels: (H, W, 3) RGB.
    """
    if pixels.shape[:2] == (detector.side, detector.side):
        return WholePicture().regions_in(pixels)
    return detector.regions_in(pixels)


def main_region(detector: Detector, pixels: NDArray[np.uint8]) -> Region:
    """The region that stands for a picture: its largest; a crop itself, S x S, stays as it is.

    Args:
        detector: finds the regions.
        pixels: (H, W, 3) RGB.

    Raises:
        NoFace: the detector finds nothing.
    """
    regions = all_regions(detector, pixels)
    if not regions:
        raise NoFace(
            f"A picture must show a face to be embedded by it; in this one of {pixels.shape[1]} x "
            f"{pixels.shape[0]} pixels none is found. Take another, or a detector with a lower score."
        )
    return regions[0]


class WholePicture:
    """A detector whose only region is the whole picture: no detection."""

    fingerprint = "whole picture"
    side = None

    def regions(self, image: Encoded) -> list[Region]:
        return self.regions_in(np.asarray(decode(image, "RGB")))

    def regions_in(self, pixels: NDArray[np.uint8]) -> list[Region]:
        height, width = pixels.shape[:2]
        return [Region((0.0, 0.0, float(width), float(height)), np.empty((0, 2)), 1.0, pixels)]


class OpenCVDetector:
    """OpenCV's face detector (`cv2.FaceDetectorYN`, the YuNet family), with crops aligned by five landmarks.

    Can be shared between threads.

    Args:
        model: its ONNX file, which you bring, such as `face_detection_yunet_2023mar.onnx` of OpenCV's model
            zoo.
        side: S, pixels of a crop.
        longest: a picture with a longer side is made smaller to be detected in, since YuNet finds faces of
            10 to 300 pixels; crops are of the picture as it is.
        score: of a region, at least, (0, 1).
        overlap: of two regions of one face, at most, as intersection over union, (0, 1).

    Raises:
        MissingArtifact: there is no such file.
        InvalidSetting: a value outside its bounds, or a file that OpenCV does not read as a face detector.
        ModuleNotFoundError: opencv is not installed; the extra `faces` has it.

    Source: Wu, Peng and Yu 2023, YuNet: A Tiny Millisecond-level Face Detector.

    Example:
        detector = OpenCVDetector(Path("face_detection_yunet_2023mar.onnx"))
        crops = [region.encoded() for region in detector.regions(Path("party.jpg").read_bytes())]
        answers = searcher.search(crops)
    """

    def __init__(
        self,
        model: Path,
        *,
        side: int = _SIDE,
        longest: int = _LONGEST,
        score: float = 0.8,
        overlap: float = 0.3,
    ) -> None:
        import cv2

        for name, value in (("score", score), ("overlap", overlap)):
            if not 0 < value < 1:
                raise InvalidSetting(f"{name} must be in (0, 1); got {value}.")
        if side < 16:
            raise InvalidSetting(f"side must be 16 pixels or more; got {side}. {_SIDE} is usual.")
        if longest < _STRIDE:
            raise InvalidSetting(
                f"longest must be {_STRIDE} pixels or more; got {longest}. {_LONGEST} is usual."
            )
        if not model.is_file():
            raise MissingArtifact(
                f"A face detector must have its model file; there is none at {model}. Nothing is downloaded: "
                "bring one, such as face_detection_yunet_2023mar.onnx of OpenCV's model zoo."
            )
        self._cv2, self.side, self._longest = cv2, side, longest
        self._score, self._overlap = score, overlap
        self._network = np.frombuffer(model.read_bytes(), np.uint8)
        self._of_thread = threading.local()
        try:
            self._detector().detect(np.zeros((_STRIDE, _STRIDE, 3), np.uint8))
        except cv2.error as error:
            raise InvalidSetting(
                f"{model} must be an ONNX face detector that OpenCV reads; it does not: {error}."
            ) from error
        digest = hashlib.sha256(self._network.tobytes()).hexdigest()
        self.fingerprint = f"opencv {digest} side={side} longest={longest} score={score} overlap={overlap}"

    def _detector(self) -> Any:
        """This thread's own, since the size of the picture is a state of it."""
        if not hasattr(self._of_thread, "detector"):
            log = self._cv2.utils.logging
            level = log.setLogLevel(log.LOG_LEVEL_ERROR)  # it warns of every network of its new engine
            try:
                self._of_thread.detector = self._cv2.FaceDetectorYN.create(
                    "onnx",
                    self._network,
                    np.empty(0, np.uint8),
                    (_STRIDE, _STRIDE),
                    self._score,
                    self._overlap,
                )
            finally:
                log.setLogLevel(level)
        return self._of_thread.detector

    def regions(self, image: Encoded) -> list[Region]:
        return self.regions_in(np.asarray(decode(image, "RGB")))

    def regions_in(self, pixels: NDArray[np.uint8]) -> list[Region]:
        height, width = pixels.shape[:2]
        scale = min(self._longest / max(height, width), 1.0)
        size = (max(round(width * scale), 1), max(round(height * scale), 1))
        seen = pixels if scale == 1 else self._cv2.resize(pixels, size, interpolation=self._cv2.INTER_AREA)
        detector = self._detector()
        detector.setInputSize(size)
        _, found = detector.detect(np.ascontiguousarray(seen[:, :, ::-1]))
        rows = np.empty((0, 15)) if found is None else np.asarray(found, np.float64)
        rows[:, :14] *= np.tile(np.array([width, height]) / size, 7)
        regions = [self._region(pixels, row) for row in rows]
        return sorted(regions, key=lambda region: (-region.box[2] * region.box[3], region.box))

    def _region(self, pixels: NDArray[np.uint8], row: NDArray[np.float64]) -> Region:
        left, top, width, height = map(float, row[:4])
        landmarks = row[4:14].reshape(5, 2)
        transform = similarity_transform(landmarks, LANDMARKS * (self.side / _SIDE))
        crop = self._cv2.warpAffine(pixels, transform, (self.side, self.side), flags=self._cv2.INTER_LINEAR)
        return Region((left, top, width, height), landmarks, float(row[14]), np.asarray(crop, np.uint8))


def similarity_transform(points: NDArray[np.float64], targets: NDArray[np.float64]) -> NDArray[np.float64]:
    """The rotation, scale and shift that bring points nearest to targets, in least squares.

    Args:
        points: (N, 2), not all the same.
        targets: (N, 2).

    Returns:
        (2, 3): target = transform @ (x, y, 1).

    Source: Umeyama 1991, Least-squares estimation of transformation parameters, eq. 40-42.
    """
    mean, target_mean = points.mean(axis=0), targets.mean(axis=0)
    centred, target_centred = points - mean, targets - target_mean
    u, sizes, v = np.linalg.svd(target_centred.T @ centred / len(points))
    signs = np.array([1.0, np.sign(np.linalg.det(u) * np.linalg.det(v))])
    rotation = u @ np.diag(signs) @ v
    scale = float(sizes @ signs) / centred.var(axis=0).sum()
    return np.concatenate([scale * rotation, (target_mean - scale * rotation @ mean)[:, None]], axis=1)
