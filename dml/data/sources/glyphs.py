"""`glyphs:`, images for a machine without any: characters of many scripts drawn from matplotlib's own fonts.

Every image is a pure function of (seed, class, number): a random affine change and noise over one of the
fonts' renderings. Characters that look the same, such as Latin A and Greek Alpha, are one class too many and
left out.
"""

import hashlib
import importlib.util
import io
import unicodedata
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from dml.config import ClassSplit
from dml.data.sources.sample import Listing, Sample
from dml.errors import InvalidSetting

PREFIX = "glyphs:"
SIDE = 32
_FONT_SIZE, _CANVAS = 46, 64
_STYLES = {
    "sans": "DejaVuSans.ttf",
    "sans bold": "DejaVuSans-Bold.ttf",
    "sans oblique": "DejaVuSans-Oblique.ttf",
    "serif": "DejaVuSerif.ttf",
    "serif bold": "DejaVuSerif-Bold.ttf",
    "mono": "DejaVuSansMono.ttf",
}
# Blocks whose letters the fonts draw in at least two styles.
_SCRIPTS = {
    "Latin": [(0x41, 0x5A), (0x61, 0x7A), (0xDE, 0xDF), (0x180, 0x24F), (0x250, 0x2AF)],
    "Digits": [(0x30, 0x39)],
    "Greek": [(0x391, 0x3A9), (0x3B1, 0x3C9)],
    "Cyrillic": [(0x410, 0x44F), (0x460, 0x481)],
    "Armenian": [(0x531, 0x556), (0x561, 0x586)],
    "Georgian": [(0x10D0, 0x10F6)],
    "Hebrew": [(0x5D0, 0x5EA)],
    "Arabic": [(0x621, 0x64A)],
    "Mathematics": [(0x2200, 0x22FF)],
    "Arrows": [(0x2190, 0x21FF)],
}


@dataclass(frozen=True)
class GlyphsSource:
    classes: int = 400
    per_class: int = 20
    seed: int = 0

    def scan(self) -> Listing:
        drawable = _characters()
        if not 2 <= self.classes <= len(drawable) or self.per_class < 1:
            raise InvalidSetting(
                f"glyphs: has 2 to {len(drawable)} classes and at least one image of each; "
                f"got classes={self.classes}, per_class={self.per_class}."
            )
        # Spread over the scripts, and in an order in which the held-out half is as mixed as the other.
        order = sorted(drawable, key=lambda c: hashlib.sha256(f"{self.seed} {ord(c)}".encode()).digest())
        samples = []
        for rank, character in enumerate(order[: self.classes]):
            label = f"{rank:03d} U+{ord(character):04X} {unicodedata.name(character)}"
            styles = drawable[character]
            for number in range(self.per_class):
                style = styles[number % len(styles)]
                attributes = {"script": _script_of(character), "style": style}
                locator = f"{ord(character)}/{style}/{number}"
                samples.append(
                    Sample(f"U+{ord(character):04X}/{number:03d}", locator, label, None, attributes)
                )
        return Listing(samples, ClassSplit())

    def read(self, locator: str) -> bytes:
        code, style, _ = locator.split("/")
        chance = hashlib.sha256(f"{self.seed} {locator}".encode()).digest()
        image = _distort(_render(chr(int(code)), style), np.random.default_rng(list(chance)))
        out = io.BytesIO()
        image.save(out, "PNG")
        return out.getvalue()


def parse_glyphs(uri: str) -> GlyphsSource:
    """`glyphs:` or `glyphs:classes=200,per_class=10,seed=1`; raises InvalidSetting for anything else."""
    settings = {}
    for assignment in filter(None, uri.removeprefix(PREFIX).split(",")):
        name, _, value = assignment.partition("=")
        if name not in ("classes", "per_class", "seed") or not value.isdigit():
            raise InvalidSetting(
                f"glyphs: takes classes=N, per_class=N and seed=N, with commas between; got {assignment!r}."
            )
        settings[name] = int(value)
    return GlyphsSource(**settings)


@lru_cache(maxsize=len(_STYLES))
def _font(style: str) -> ImageFont.FreeTypeFont:
    matplotlib = importlib.util.find_spec("matplotlib")
    assert matplotlib is not None
    assert matplotlib.origin is not None
    folder = Path(matplotlib.origin).parent / "mpl-data" / "fonts" / "ttf"
    return ImageFont.truetype(str(folder / _STYLES[style]), _FONT_SIZE)


def _render(character: str, style: str) -> Image.Image:
    """The character in the middle of a white canvas, by its own bounds."""
    font = _font(style)
    left, top, right, bottom = font.getbbox(character)
    image = Image.new("L", (_CANVAS, _CANVAS), 255)
    offset = ((_CANVAS - right - left) / 2, (_CANVAS - bottom - top) / 2)
    ImageDraw.Draw(image).text(offset, character, font=font, fill=0)
    return image


def _distort(image: Image.Image, chance: np.random.Generator) -> Image.Image:
    """A random rotation, shear, scale and shift, then noise, at the final size."""
    angle, shear = chance.uniform(-0.35, 0.35), chance.uniform(-0.25, 0.25)
    scale_x, scale_y = chance.uniform(0.75, 1.15, 2)
    cos, sin = np.cos(angle), np.sin(angle)
    matrix = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, shear], [0, 1]]) / [[scale_x], [scale_y]]
    centre = np.full(2, _CANVAS / 2)
    offset = centre - matrix @ centre + chance.uniform(-4, 4, 2)
    coefficients = (matrix[0, 0], matrix[0, 1], offset[0], matrix[1, 0], matrix[1, 1], offset[1])
    moved = image.transform(
        image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR, fillcolor=255
    )
    small = np.asarray(moved.resize((SIDE, SIDE), Image.Resampling.BOX), dtype=np.float64)
    noisy = small * chance.uniform(0.6, 1.0) + chance.normal(0, 24, small.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@lru_cache(maxsize=1)
def _characters() -> dict[str, list[str]]:
    """Every character with a look of its own, and the styles that draw it."""
    missing = {style: _shape("\U000fffff", style) for style in _STYLES}
    seen: set[bytes] = set()
    found: dict[str, list[str]] = {}
    for ranges in _SCRIPTS.values():
        for code in (code for first, last in ranges for code in range(first, last + 1)):
            character = chr(code)
            if not unicodedata.name(character, "") or unicodedata.combining(character):
                continue
            shapes = {style: _shape(character, style) for style in _STYLES}
            styles = [style for style, shape in shapes.items() if shape != missing[style]]
            look = shapes["sans"]
            if len(styles) >= 2 and "sans" in styles and look not in seen:
                seen.add(look)
                found[character] = styles
    return found


def _shape(character: str, style: str) -> bytes:
    """What a rendering looks like, wherever it stands: the pixels in its bounds, and their size."""
    mask = _font(style).getmask(character)
    return bytes(mask) + repr(mask.size).encode()


def _script_of(character: str) -> str:
    code = ord(character)
    return next(
        script for script, ranges in _SCRIPTS.items() if any(first <= code <= last for first, last in ranges)
    )
