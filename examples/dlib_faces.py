"""The face network of dlib, by way of face_recognition, as an embedder in Python.

pip install face_recognition        # with face-recognition-models, which holds the weights
PYTHONPATH=examples dml index faces --embedder python:dlib_faces:embed
"""

from typing import Any

import numpy as np


def embed(images: list[np.ndarray[Any, np.dtype[np.uint8]]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """(N, 128) encodings of N images (H, W, 3); the largest detected face, else the whole image."""
    import face_recognition

    encodings = []
    for image in images:
        height, width = image.shape[:2]
        whole = (0, width, height, 0)  # top, right, bottom, left
        boxes = face_recognition.face_locations(image) or [whole]
        largest = max(boxes, key=lambda box: (box[2] - box[0]) * (box[1] - box[3]))
        encodings += face_recognition.face_encodings(image, known_face_locations=[largest])
    return np.stack(encodings)
