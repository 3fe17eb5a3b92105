"""Synthetic source of drawn characters, which needs only the fonts of matplotlib.

`glyphs:` or `glyphs:classes=300,per_class=20,seed=0`. A class is a character. Its images are drawn with the
twelve DejaVu fonts of matplotlib, each with a random affine transform, contrast and noise.
"""

import hashlib
import importlib.util
import io
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from dml.config import ClassSplit
from dml.data.sources.sample import MAX_BYTES, Listing, Sample, Stamp
from dml.errors import InvalidSetting

SCHEME = "glyphs:"

_FACES = {
    f"{family} {style}".strip(): f"DejaVu{family}{'-' if style else ''}{style.replace(' ', '')}.ttf"
    for family, styles in {
        "Sans": ("", "Bold", "Oblique", "Bold Oblique"),
        "Serif": ("", "Bold", "Italic", "Bold Italic"),
        "SansMono": ("", "Bold", "Oblique", "Bold Oblique"),
    }.items()
    for style in styles
}
_SCRIPTS = {
    "Latin": range(0x21, 0x250),
    "Greek": range(0x370, 0x400),
    "Cyrillic": range(0x400, 0x530),
    "Armenian": range(0x531, 0x590),
    "Hebrew": range(0x5D0, 0x5EB),
    "Arabic": range(0x621, 0x700),
    "Nko": range(0x7C0, 0x800),
    "Lao": range(0xE80, 0xF00),
    "Georgian": range(0x10A0, 0x1100),
    "Canadian": range(0x1400, 0x1680),
    "Ogham": range(0x1680, 0x16A0),
    "Arrows": range(0x2190, 0x2200),
    "Mathematics": range(0x2200, 0x2300),
    "Tifinagh": range(0x2D30, 0x2D70),
}
_CATEGORIES = ("Lu", "Ll", "Lo", "Nd", "Sm", "So")
_NOT_A_CHARACTER = "\uffff"
_SIDE, _FONT_SIZE = 48, 30
_COMPARED_SIDE = 16
# Cosine of two undistorted drawings of one size; above it, people confuse the characters too (o O, x X, - _).
_SAME_LOOK = 0.9


@dataclass(frozen=True)
class GlyphsSource:
    """Characters with labels such as `U+03B1 GREEK SMALL LETTER ALPHA`; attributes `script` and `style`."""

    classes: int = 400
    per_class: int = 20
    seed: int = 0

    def list(self) -> Listing:
        characters = distinct_characters()
        if not 2 <= self.classes <= len(characters) or self.per_class < 1:
            raise InvalidSetting(
                f"glyphs: takes 2 to {len(characters)} classes and at least 1 per_class; "
                f"got {self.classes} and {self.per_class}."
            )
        # Evenly over all scripts, for any number of classes.
        chosen = [characters[i * len(characters) // self.classes] for i in range(self.classes)]
        samples = []
        for character in chosen:
            code = f"U+{ord(character):04X}"
            label, script = f"{code} {unicodedata.name(character)}", _script(character)
            faces = _faces_with(character)
            for number in range(self.per_class):
                face = faces[number % len(faces)]
                samples.append(
                    Sample(
                        id=f"{code}/{number:04d}",
                        locator=f"{code}/{number:04d}/{face}",
                        label=label,
                        attributes={"script": script, "style": face.replace("SansMono", "Mono")},
                    )
                )
        return Listing(samples, ClassSplit())

    def stamps(self, locators: Sequence[str]) -> Sequence[Stamp | None]:
        """None: drawing is all there is to compare."""
        return [None] * len(locators)

    def read(self, locator: str, max_bytes: int = MAX_BYTES) -> bytes:
        code, number, face = locator.split("/")
        digest = hashlib.sha256(f"{self.seed}/{code}/{number}".encode()).digest()
        return _draw(chr(int(code[2:], 16)), face, np.random.default_rng(list(digest)))


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def open_glyphs(uri: str) -> GlyphsSource:
    """The source of a `glyphs:` URI; raises InvalidSetting for anything except its three integers."""
    assignments = [part.split("=", 1) for part in uri.removeprefix(SCHEME).split(",") if part]
    known = ("classes", "per_class", "seed")
    if any(len(pair) != 2 or pair[0] not in known or not _is_count(pair[1]) for pair in assignments):
        raise InvalidSetting(f"{SCHEME} takes whole numbers for {', '.join(known)}; got {uri!r}.")
    return GlyphsSource(**{name: int(value) for name, value in assignments})


@cache
def distinct_characters() -> tuple[str, ...]:
    """The characters that the fonts contain and that look different from all earlier ones, by code point."""
    candidates = [
        chr(code)
        for script in _SCRIPTS.values()
        for code in script
        if unicodedata.category(chr(code)) in _CATEGORIES
    ]
    shown = [character for character in candidates if _has_glyph("Sans", character)]
    looks = np.stack([_look(character) for character in shown])
    alike = np.tril(looks @ looks.T > _SAME_LOOK, k=-1)
    is_distinct = np.ones(len(shown), dtype=bool)
    for row in np.flatnonzero(alike.any(axis=1)):
        is_distinct[row] = not (alike[row] & is_distinct).any()
    return tuple(character for character, keep in zip(shown, is_distinct, strict=True) if keep)


def _script(character: str) -> str:
    return next(script for script, codes in _SCRIPTS.items() if ord(character) in codes)


@cache
def _font(face: str) -> ImageFont.FreeTypeFont:
    spec = importlib.util.find_spec("matplotlib")  # not imported, since that takes longer than drawing
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / _FACES[face]), _FONT_SIZE)


@cache
def _missing_glyph(face: str) -> bytes:
    return bytes(_font(face).getmask(_NOT_A_CHARACTER))


def _has_glyph(face: str, character: str) -> bool:
    drawn = bytes(_font(face).getmask(character))
    return any(drawn) and drawn != _missing_glyph(face)


def _faces_with(character: str) -> list[str]:
    return [face for face in _FACES if _has_glyph(face, character)]


def _ink(character: str, face: str) -> Image.Image:
    """The character in white on black, cropped to its bounding box."""
    font = _font(face)
    left, top, right, bottom = font.getbbox(character)
    ink = Image.new("L", (int(right - left), int(bottom - top)))
    ImageDraw.Draw(ink).text((-left, -top), character, fill=255, font=font)
    return ink.crop(ink.getbbox())


def _look(character: str) -> NDArray[np.float32]:
    """(256,) the character scaled into a small square, unit length."""
    ink = _ink(character, "Sans")
    ink.thumbnail((_COMPARED_SIDE, _COMPARED_SIDE))
    square = Image.new("L", (_COMPARED_SIDE, _COMPARED_SIDE))
    square.paste(ink, ((_COMPARED_SIDE - ink.width) // 2, (_COMPARED_SIDE - ink.height) // 2))
    values = np.asarray(square, dtype=np.float32).ravel()
    unit: NDArray[np.float32] = values / np.linalg.norm(values)
    return unit


def _draw(character: str, face: str, chance: np.random.Generator) -> bytes:
    """One PNG of the character: dark on light, turned, sheared, scaled, shifted, noisy."""
    ink = _ink(character, face)
    canvas = Image.new("L", (_SIDE, _SIDE))
    fit = min(1.0, 0.75 * _SIDE / max(ink.size))
    ink = ink.resize((max(1, round(ink.width * fit)), max(1, round(ink.height * fit))))
    canvas.paste(ink, ((_SIDE - ink.width) // 2, (_SIDE - ink.height) // 2))
    turned = canvas.transform(
        canvas.size, Image.Transform.AFFINE, _random_affine(chance), Image.Resampling.BILINEAR
    )
    paper, contrast = chance.uniform(170, 255), chance.uniform(90, 170)
    noise = chance.normal(0.0, chance.uniform(4, 20), (_SIDE, _SIDE))
    pixels = paper - contrast * np.asarray(turned, dtype=np.float64) / 255 + noise
    encoded = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(encoded, "PNG", compress_level=1)
    return encoded.getvalue()


def _random_affine(chance: np.random.Generator) -> tuple[float, ...]:
    """Pillow's six numbers, from output to input pixels, around the centre."""
    angle, shear = chance.uniform(-0.35, 0.35), chance.uniform(-0.25, 0.25)
    scale = chance.uniform(0.8, 1.25, 2)
    shift = chance.uniform(-4, 4, 2)
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    matrix = rotation @ np.array([[1.0, shear], [0.0, 1.0]]) / scale
    offset = _SIDE / 2 - matrix @ (np.full(2, _SIDE / 2) + shift)
    return (*matrix[0], offset[0], *matrix[1], offset[1])
