"""Queries and their answers as a picture: green is right, red is wrong, grey nobody knows."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

from dml.preprocessing import decode

_SIDE, _FRAME, _GAP, _TEXT = 112, 4, 12, 32
_COLOURS = {True: "#2e9e4f", False: "#d03b3b", None: "#9aa0a6"}
_QUERY_COLOUR = "#2962b8"
_CHARACTERS_PER_LINE = 18


@dataclass(frozen=True)
class Tile:
    """One picture with what is written below it."""

    image: bytes
    text: str
    right: bool | None = None
    """Whether it is of the query's class; None where that is not known."""


@dataclass(frozen=True)
class GalleryRow:
    """A query and its answers, the most similar first."""

    query: Tile
    answers: Sequence[Tile]


def draw_gallery(rows: Sequence[GalleryRow]) -> bytes:
    """One line per query, the query at the left; a PNG file's bytes."""
    columns = 1 + max((len(row.answers) for row in rows), default=0)
    cell = _SIDE + 2 * _FRAME + _GAP
    height = cell + _TEXT
    picture = Image.new("RGB", (columns * cell + 2 * _GAP, max(len(rows), 1) * height + _GAP), "white")
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(11)
    for number, row in enumerate(rows):
        top = _GAP + number * height
        for column, tile in enumerate([row.query, *row.answers]):
            left = _GAP + column * cell + (_GAP if column else 0)
            colour = _COLOURS[tile.right] if column else _QUERY_COLOUR
            outer = _SIDE + 2 * _FRAME
            draw.rectangle((left, top, left + outer - 1, top + outer - 1), fill=colour)
            picture.paste(_fitted(tile.image), (left + _FRAME, top + _FRAME))
            draw.text((left, top + outer + 3), _two_lines(tile.text), fill="#202124", font=font, spacing=2)
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def _fitted(content: bytes) -> Image.Image:
    """The whole image inside the tile, on light grey."""
    image = decode(content, "RGB")
    scale = _SIDE / max(image.size)
    width, height = (max(round(side * scale), 1) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    tile = Image.new("RGB", (_SIDE, _SIDE), "#f1f3f4")
    tile.paste(image, ((_SIDE - width) // 2, (_SIDE - height) // 2))
    return tile


def _two_lines(text: str) -> str:
    """The end of a text says most (`MAKER MODEL 2012 0.93`): keep it when there is too much."""
    room = 2 * _CHARACTERS_PER_LINE
    text = text if len(text) <= room else "…" + text[-(room - 1) :]
    return text[:_CHARACTERS_PER_LINE] + "\n" + text[_CHARACTERS_PER_LINE:]
