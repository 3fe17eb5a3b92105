"""The picture of queries and answers: everything is on it, whatever the images and their names are."""

import io

import numpy as np
import pytest
from PIL import Image, ImageColor

from dml.report import gallery
from dml.report.gallery import GalleryRow, Tile, draw_gallery


def png(size=(20, 20), color="white", mode="RGB"):
    out = io.BytesIO()
    Image.new(mode, size, color).save(out, "PNG")
    return out.getvalue()


def drawn(rows):
    return Image.open(io.BytesIO(draw_gallery(rows)))


def pixels_of(picture, color):
    return int((np.asarray(picture) == ImageColor.getrgb(color)).all(axis=2).sum())


def test_frames_show_right_wrong_and_unknown():
    for right, color in gallery._COLORS.items():
        picture = drawn([GalleryRow(Tile(png(), "query"), [Tile(png(), "answer", right=right)])])
        others = set(gallery._COLORS.values()) - {color}
        frame = (128 + 2 * 4) ** 2 - 128**2  # 4 pixels on each side of a tile
        assert pixels_of(picture, color) == pixels_of(picture, gallery._QUERY_COLOR) == frame
        assert [pixels_of(picture, other) for other in others] == [0, 0]
        of_answer = (np.asarray(picture) == ImageColor.getrgb(color)).all(axis=2).any(axis=0)
        assert of_answer.argmax() == 14 + 136 + 2 * 14, "a gap, the query, and a gap beside each tile"


def test_many_answers_continue_in_the_next_line():
    tile = Tile(png(), "an answer", similarity=0.5)
    widths = {count: drawn([GalleryRow(tile, [tile] * count)]).size for count in (1, 10, 11, 25)}
    assert widths[10][0] == widths[11][0] == widths[25][0] > widths[1][0]
    assert widths[1][1] == widths[10][1] < widths[11][1] < widths[25][1]


def test_a_second_row_for_a_query_is_titled_and_shows_no_query_again():
    tile, color = Tile(png(), "an answer", right=True), "#6a3d9a"
    plain = drawn([GalleryRow(tile, [tile]), GalleryRow(tile, [tile])])
    titled = drawn([GalleryRow(tile, [tile], "one", color), GalleryRow(None, [tile], "other", color)])
    assert pixels_of(titled, gallery._QUERY_COLOR) == pixels_of(plain, gallery._QUERY_COLOR) / 2
    assert pixels_of(titled, gallery._COLORS[True]) == pixels_of(plain, gallery._COLORS[True])
    assert pixels_of(titled, color) == 2 * 12 * 12
    assert titled.size == (plain.width, plain.height + 2 * gallery._TITLE_HEIGHT)


def test_on_a_page_tiles_are_marked_and_labels_are_not_obeyed():
    hostile = '<script>alert(1)</script> "x" \' & \x1b[31m'
    rows = [
        GalleryRow(
            Tile(png(), hostile), [Tile(png(), hostile, 0.5, right=True), Tile(png(), "b", 0.25, right=False)]
        )
    ]
    html = gallery.gallery_html(rows)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") == 2
    assert [html.count(f'class="tile {kind}"') for kind in ("query", "right", "wrong")] == [1, 1, 1]
    assert html.count("data:image/") == 3
    assert "✓ 0.50" in html
    assert "✗ 0.25" in html


@pytest.mark.parametrize("rows", [[], [GalleryRow(Tile(png(), "nobody found"), [])]])
def test_no_answers_are_a_picture_too(rows):
    assert drawn(rows).format == "PNG"


@pytest.mark.parametrize("size", [(1, 1), (4000, 3), (3, 4000), (105, 105)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "1"])
def test_images_of_any_shape_fit_into_their_tile(size, mode):
    tile = gallery._fitted(png(size, "white", mode))
    assert tile.size == (gallery._SIDE, gallery._SIDE)


@pytest.mark.parametrize(
    "text", ["", "cat", "Cyrillic capital letter Zhe with breve", "x" * 200, "日本 Ж " * 40, " spaced  out\n"]
)
def test_text_stays_within_its_tile(text):
    font = gallery._font(11)
    lines = gallery._wrapped(text, font, 136)
    assert len(lines) <= 2
    assert all(font.getlength(line) <= 136 for line in lines)
    kept = "".join(lines).replace(" ", "")
    assert kept.endswith("…") or kept == "".join(text.split())


def test_words_are_not_broken_where_they_need_not_be():
    lines = gallery._wrapped("Georgian capital letter Las", gallery._font(11), 136)
    assert lines == ["Georgian capital letter", "Las"]
