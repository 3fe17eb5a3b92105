"""Detect, align and crop: a picture in, its regions out, each ready for an encoder.

Any detector with this interface can be a step before what embeds: the same before an ingest, an enrolment
and a query, or their vectors mean different things. Its fingerprint says which it was. Several faces in one
picture are several regions, and none is an empty list; neither is an error. Nothing is downloaded: you name
the model's file.
"""

import hashlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from dml.errors import InvalidData, InvalidSetting, MissingArtifact
from dml.preprocessing import Encoded, decode

LANDMARKS = np.array(
    [[38.2946, 51.6963], [73.5318, 51.5014], [56.0252, 71.7366], [41.5493, 92.3655], [70.7299, 92.2041]]
)
"""(5, 2) where an aligned crop of 112 x 112 has the left eye, the right eye (of the picture), the nose and
the corners of the mouth. Source: Deng et al. 2019, arXiv:1801.07698, as InsightFace publishes them."""
_SIDE = 112


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

    def regions(self, image: Encoded) -> list[Region]:
        """The regions of an image file, the largest first; empty where there is none.

        Raises:
            UnreadableImage: it is no image.
        """

    def regions_in(self, pixels: NDArray[np.uint8]) -> list[Region]:
        """The same of a decoded picture, (H, W, 3) RGB."""


def main_region(detector: Detector, pixels: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """The crop that stands for a picture: of its largest region; a crop itself, S x S, stays as it is.

    Args:
        detector: finds the regions.
        pixels: (H, W, 3) RGB.
        side: S of the detector's crops.

    Raises:
        InvalidData: the detector finds nothing.
    """
    if pixels.shape[:2] == (side, side):
        return pixels
    regions = detector.regions_in(pixels)
    if not regions:
        raise InvalidData(
            f"A picture must show a face to be embedded by it; in this one of {pixels.shape[1]} x "
            f"{pixels.shape[0]} pixels none is found. Take another, or a lower score."
        )
    return regions[0].crop


class WholePicture:
    """A detector whose only region is the whole picture: no detection."""

    fingerprint = "whole picture"

    def regions(self, image: Encoded) -> list[Region]:
        return self.regions_in(np.asarray(decode(image, "RGB")))

    def regions_in(self, pixels: NDArray[np.uint8]) -> list[Region]:
        height, width = pixels.shape[:2]
        return [Region((0.0, 0.0, float(width), float(height)), np.empty((0, 2)), 1.0, pixels)]


class OpenCVDetector:
    """OpenCV's face detector (`cv2.FaceDetectorYN`, the YuNet family), with crops aligned by five landmarks.

    Args:
        model: its ONNX file, which you bring, such as `face_detection_yunet_2023mar.onnx` of OpenCV's model
            zoo.
        side: S, pixels of a crop.
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

    def __init__(self, model: Path, *, side: int = _SIDE, score: float = 0.8, overlap: float = 0.3) -> None:
        import cv2

        for name, value in (("score", score), ("overlap", overlap)):
            if not 0 < value < 1:
                raise InvalidSetting(f"{name} must be in (0, 1); got {value}.")
        if side < 16:
            raise InvalidSetting(f"side must be 16 pixels or more; got {side}. {_SIDE} is usual.")
        if not model.is_file():
            raise MissingArtifact(
                f"A face detector must have its model file; there is none at {model}. Nothing is downloaded: "
                "bring one, such as face_detection_yunet_2023mar.onnx of OpenCV's model zoo."
            )
        self._cv2, self._side = cv2, side
        try:
            self._detector = cv2.FaceDetectorYN.create(str(model), "", (320, 320), score, overlap)
        except cv2.error as error:
            raise InvalidSetting(
                f"{model} must be an ONNX face detector that OpenCV reads; it does not: {error}."
            ) from error
        digest = hashlib.sha256(model.read_bytes()).hexdigest()
        self.fingerprint = f"opencv {digest} side={side} score={score} overlap={overlap}"

    def regions(self, image: Encoded) -> list[Region]:
        return self.regions_in(np.asarray(decode(image, "RGB")))

    def regions_in(self, pixels: NDArray[np.uint8]) -> list[Region]:
        height, width = pixels.shape[:2]
        self._detector.setInputSize((width, height))
        _, found = self._detector.detect(np.ascontiguousarray(pixels[:, :, ::-1]))
        rows = np.empty((0, 15)) if found is None else np.asarray(found, np.float64)
        regions = [self._region(pixels, row) for row in rows]
        return sorted(regions, key=lambda region: (-region.box[2] * region.box[3], region.box))

    def _region(self, pixels: NDArray[np.uint8], row: NDArray[np.float64]) -> Region:
        left, top, width, height = map(float, row[:4])
        landmarks = row[4:14].reshape(5, 2)
        transform = similarity_transform(landmarks, LANDMARKS * (self._side / _SIDE))
        crop = self._cv2.warpAffine(pixels, transform, (self._side, self._side), flags=self._cv2.INTER_LINEAR)
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
