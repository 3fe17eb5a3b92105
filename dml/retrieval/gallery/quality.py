"""The quality gate of enrolment: images and vectors in, or an error that says what is wrong with them."""

from collections.abc import Sequence
from typing import Literal

from dml.errors import InvalidSetting

Quality = Literal["off", "standard", "strict"]


def check_quality(quality: Quality, images: Sequence[bytes]) -> None:
    """Raise for images that are not good enough to be enrolled.

    Args:
        quality: "off" takes every image that can be read.
        images: files' bytes.
    """
    if quality != "off":
        raise InvalidSetting(f"quality must be off; got {quality!r}. Check the images before.")
