"""Queries and their answers as a picture: green and ✓ is right, red and ✗ wrong, grey unknown."""

import base64
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import accumulate
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from dml.preprocessing import decode

_SIDE, _FRAME, _GAP = 128, 4, 14
_LINE, _NUM_LINES = 15, 2
_CELL_WIDTH = _SIDE + 2 * _FRAME + _GAP
_CELL_HEIGHT = _CELL_WIDTH + _NUM_LINES * _LINE + 6
_TITLE_HEIGHT = 30
_ANSWERS_PER_LINE = 10
_HTML_TEXT = 80  # characters of a label
_COLORS = {True: "#1e8e3e", False: "#d93025", None: "#80868b"}
_MARKS = {True: "✓ ", False: "✗ ", None: ""}  # readable without colour vision
_QUERY_COLOR, _INK, _PAPER, _EMPTY, _RULE = "#1a73e8", "#202124", "white", "#f1f3f4", "#dadce0"

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """One picture with its caption."""

    image: bytes
    text: str
    similarity: float | None = None
    """To the query, written into the corner."""
    right: bool | None = None
    """Whether it is of the query's class; None where that is not known."""


@dataclass(frozen=True)
class GalleryRow:
    """A query and its answers, the most similar first."""

    query: Tile | None
    """None: that of the row above; where no row has one, the answers begin at the left."""
    answers: Sequence[Tile]
    title: str = ""
    """Written above, where several rows answer one query."""
    color: str = _INK
    """Of the title."""


def draw_gallery(rows: Sequence[GalleryRow]) -> bytes:
    """Each query at the left of its answers, ten of them to a line; a PNG file's bytes."""
    lines = [line for row in rows for line in _lines(row)]
    first = int(any(line.query is not None for line in lines))
    columns = max((first + len(line.answers) for line in lines), default=1)
    heights = [_CELL_HEIGHT + (_TITLE_HEIGHT if line.title else 0) for line in lines]
    width = columns * _CELL_WIDTH + 2 * _GAP
    picture = Image.new("RGB", (width, (sum(heights) or _CELL_HEIGHT) + _GAP), _PAPER)
    for line, below in zip(lines, accumulate(heights), strict=True):
        top = _GAP + below - _CELL_HEIGHT
        if line.title:
            _draw_title(picture, top, line, left=2 * _GAP + first * _CELL_WIDTH)
        if line.query is not None:
            _draw_tile(picture, (_GAP, top), line.query, _QUERY_COLOR)
        for column, tile in enumerate(line.answers, start=first):
            _draw_tile(picture, (2 * _GAP + column * _CELL_WIDTH, top), tile, _COLORS[tile.right])
    out = io.BytesIO()
    picture.save(out, "PNG", optimize=True)
    return out.getvalue()


def gallery_html(rows: Sequence[GalleryRow]) -> str:
    """The same for a page: every query and answer a tile with its words; rows wrap, labels are escaped."""
    return "\n".join(_row_html(row) for row in rows)


def _row_html(row: GalleryRow) -> str:
    title = f'<h3 style="border-color: {row.color}">{escape(row.title)}</h3>' if row.title else ""
    query = _tile_html(row.query, "query") if row.query is not None else ""
    names = {True: "right", False: "wrong", None: ""}
    return (
        f'<div class="row">{title}{query}{"".join(_tile_html(t, names[t.right]) for t in row.answers)}</div>'
    )


def _tile_html(tile: Tile, name: str) -> str:
    kind, content = _smallest(_fitted(tile.image))
    source = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    mark = "" if tile.similarity is None else f"<b>{_MARKS[tile.right]}{tile.similarity:.2f}</b> "
    line = " ".join(tile.text.split())
    words = escape(line if len(line) <= _HTML_TEXT else line[:_HTML_TEXT].rstrip() + "…")
    return f'<div class="tile {name}"><img src="{source}" alt="">{mark}{words}</div>'


def _smallest(image: Image.Image) -> tuple[str, bytes]:
    """As PNG or JPEG: drawings are smaller as one, photographs as the other."""
    encoded = {}
    for kind, options in (("png", {"optimize": True}), ("jpeg", {"quality": 88})):
        out = io.BytesIO()
        image.save(out, kind, **options)
        encoded[kind] = out.getvalue()
    kind = min(encoded, key=lambda name: len(encoded[name]))
    return kind, encoded[kind]


def _lines(row: GalleryRow) -> list[GalleryRow]:
    """The answers in lines; query and title lead the first."""
    first, rest = row.answers[:_ANSWERS_PER_LINE], row.answers[_ANSWERS_PER_LINE:]
    return [replace(row, answers=first), *(_lines(GalleryRow(None, rest)) if rest else [])]


def _draw_title(picture: Image.Image, top: int, line: GalleryRow, *, left: int) -> None:
    """Above the answers, and a rule where a query begins."""
    draw, bottom = ImageDraw.Draw(picture), top - 7
    if line.query is not None:
        draw.line((_GAP, top - _TITLE_HEIGHT, picture.width - _GAP, top - _TITLE_HEIGHT), fill=_RULE)
    draw.rectangle((left, bottom - 11, left + 11, bottom), fill=line.color)
    draw.text((left + 18, bottom - 5), " ".join(line.title.split()), fill=_INK, font=_font(13), anchor="lm")


def _draw_tile(picture: Image.Image, corner: tuple[int, int], tile: Tile, color: str) -> None:
    draw, (left, top) = ImageDraw.Draw(picture), corner
    outer = _SIDE + 2 * _FRAME
    draw.rectangle((left, top, left + outer - 1, top + outer - 1), fill=color)
    picture.paste(_fitted(tile.image), (left + _FRAME, top + _FRAME))
    if tile.similarity is not None:
        font, text = _font(12), f"{_MARKS[tile.right]}{tile.similarity:.2f}"
        right, bottom = left + outer - _FRAME, top + outer - _FRAME
        draw.rectangle((right - font.getlength(text) - 8, bottom - 18, right, bottom), fill=color)
        draw.text((right - 4, bottom - 9), text, fill=_PAPER, font=font, anchor="rm")
    for number, line in enumerate(_wrapped(tile.text, _font(11), outer)):
        draw.text((left, top + outer + 4 + number * _LINE), line, fill=_INK, font=_font(11))


def _fitted(content: bytes) -> Image.Image:
    """The whole image inside the tile, on light grey; small ones keep their pixels sharp."""
    image = decode(content, "RGB")
    scale = _SIDE / max(image.size)
    width, height = (max(round(side * scale), 1) for side in image.size)
    image = image.resize((width, height), Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST)
    tile = Image.new("RGB", (_SIDE, _SIDE), _EMPTY)
    tile.paste(image, ((_SIDE - width) // 2, (_SIDE - height) // 2))
    return tile


def _wrapped(text: str, font: _Font, width: int) -> list[str]:
    """At most two lines, broken between words where that is possible; the rest is an ellipsis."""
    lines: list[str] = []
    rest = " ".join(text.split())
    while rest and len(lines) < _NUM_LINES:
        fits = next(n for n in range(len(rest), 0, -1) if n == 1 or font.getlength(rest[:n]) <= width)
        space = rest.rfind(" ", 0, fits + 1)
        cut = space if fits < len(rest) and space > 0 else fits
        lines.append(rest[:cut])
        rest = rest[cut:].lstrip()
    if rest:
        last = lines[-1]
        while last and font.getlength(last + "…") > width:
            last = last[:-1]
        lines[-1] = last.rstrip() + "…"
    return lines


def _font(size: int) -> _Font:
    """DejaVu Sans, which comes with matplotlib and has most alphabets; located without importing it."""
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        return ImageFont.load_default(size)
    return ImageFont.truetype(Path(package.origin).parent / "mpl-data/fonts/ttf/DejaVuSans.ttf", size)
