"""Folders as people leave them, taken in night by night: always what one full ingest gives, byte for byte."""

import io
import os
import shutil
import socket
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pyarrow import parquet

from dml.config import IngestConfig, NoSplit
from dml.data.dataset import read_images, read_rows
from dml.data.ingest import ingest_source
from dml.reports import IngestReport
from tests.data.pictures import picture, write
from tests.data.test_delta import settle


def encoded(image: Image.Image, form: str, **options) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def noise(seed: int, mode: str = "RGB") -> Image.Image:
    return Image.open(io.BytesIO(picture(seed))).convert(mode)


def deep(seed: int) -> bytes:
    """A grey PNG of 16 bits."""
    values = np.random.default_rng(seed).integers(0, 1 << 16, (9, 12), dtype=np.uint16)
    return encoded(Image.fromarray(values), "PNG")


def turned(seed: int) -> bytes:
    """A JPEG that is upright only by its EXIF tag."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(seed), "JPEG", exif=exif)


def animated(seed: int) -> bytes:
    return encoded(noise(seed), "GIF", save_all=True, append_images=[noise(seed + 1)])


def bomb(side: int) -> bytes:
    """A PNG whose header announces side x side pixels."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return picture(0)[:12] + header + struct.pack(">I", zlib.crc32(header)) + picture(0)[33:]


NAMES = {
    "-rf/--name.png": picture(1),
    "-rf/two\nlines.png": picture(2),
    "-rf/tab\tand\rreturn.png": picture(3),
    "-rf/'quotes\" and $(date);.png": picture(4),
    "-rf/100%25 #1?.png": picture(5),
    " spaces /  .png": picture(6),
    "caf\u00e9/1.png": picture(7),
    "cafe\u0301/1.png": picture(8),
    "Cat/1.png": picture(9),
    "cat/1.PNG": picture(10),
    "cat/1.png": picture(11),
    f"long/{'n' * 251}.png": picture(12),
    "\u05d0\u202etxt/\U0001f600.png": picture(13),
    "back\\slash/a\\b.png": picture(14),
}
FORMATS = {
    "kinds/cmyk.jpg": encoded(noise(20, "CMYK"), "JPEG"),
    "kinds/deep.png": deep(21),
    "kinds/animated.gif": animated(22),
    "kinds/turned.jpg": turned(24),
    "kinds/palette.png": encoded(noise(25, "P"), "PNG"),
    "kinds/clear.png": encoded(noise(26, "LA"), "PNG"),
    "kinds/gif-named.jpg": animated(27),
    "kinds/no suffix": picture(28),
}
BROKEN = {
    "broken/zero.png": b"",
    "broken/cut.jpg": encoded(noise(30), "JPEG")[:-20],
    "broken/text.png": b"<html>404</html>",
    "broken/bomb.png": bomb(100_000),
    "broken/good.png": picture(31),
}


@pytest.fixture
def source(tmp_path) -> Path:
    folder = write(tmp_path / "source", {**NAMES, **FORMATS, **BROKEN})
    (folder / "cat" / "loop").symlink_to("..")
    (folder / "cat" / "self").symlink_to("self")
    (folder / "cat" / "twin.png").symlink_to("1.png")
    os.mkfifo(folder / "cat" / "pipe.png")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(os.path.relpath(folder / "cat" / "socket.png"))  # a path of at most 107 bytes
    settle()
    return folder


def taken_in(source: Path, store: Path, **others) -> IngestReport:
    config = IngestConfig(
        name="d",
        source=str(source),
        split=NoSplit(),
        rows_per_fragment=8,
        rows_per_group=3,
        num_workers=1,
        max_quarantined=1,
    )
    return ingest_source(config, str(store), **others)


def content(report: IngestReport) -> tuple[list[dict], list[dict]]:
    """All rows with their images, and all of the quarantine table, in an order of their own."""
    ref = report.dataset
    images = read_images(ref, range(ref.rows))
    rows = [row | {"image": image} for row, image in zip(read_rows(ref).to_pylist(), images, strict=True)]
    for row in rows:
        del row["position"]
    refused = parquet.read_table(report.quarantine).to_pylist()
    return sorted(rows, key=lambda row: row["id"]), sorted(refused, key=str)


def require_as_by_a_full_ingest(source: Path, store: Path, report: IngestReport) -> None:
    full = taken_in(source, store.with_name("full"))
    assert content(report) == content(full)
    assert report.dataset.fingerprint == full.dataset.fingerprint
    shutil.rmtree(store.with_name("full"))


def test_names_and_formats_of_all_kinds_are_rows_and_what_is_broken_is_named(source, tmp_path):
    report = taken_in(source, tmp_path / "store")
    rows, refused = content(report)
    assert {row["id"] for row in rows} == {*NAMES, *FORMATS, "broken/good.png", "cat/twin.png"}
    assert {row["label"] for row in rows if row["id"].startswith("caf")} == {"caf\u00e9"}
    assert {(row["id"], row["width"], row["height"]) for row in rows if "turned" in row["id"]} == {
        ("kinds/turned.jpg", 9, 12)
    }
    assert {row["locator"]: row["reason"] for row in refused} == {
        "broken/zero.png": "empty file",
        "broken/cut.jpg": "truncated or damaged",
        "broken/text.png": "not an image",
        "broken/bomb.png": "too many pixels",
        "cat/loop": "repeated folder",
        "cat/self": "broken link",
        "cat/pipe.png": "not a regular file",
        "cat/socket.png": "not a regular file",
    }
    again = taken_in(source, tmp_path / "store")
    assert (again.outcome, again.changes.files_read) == ("current", 4), "those that are refused"
    require_as_by_a_full_ingest(source, tmp_path / "store", again)


def older(folder: Path) -> None:
    """Other content, and a time before the former one."""
    path = folder / "cat" / "1.png"
    path.write_bytes(picture(40))
    os.utime(path, (1, 1))


def before_1970(folder: Path) -> None:
    path = folder / "cat" / "1.png"
    path.write_bytes(picture(41))
    os.utime(path, (-(10**8), -(10**8)))


def same_size_and_time(folder: Path) -> None:
    path = folder / "kinds" / "palette.png"
    status, changed = path.stat(), bytearray(path.read_bytes())
    changed[-20] ^= 1  # of the last chunks, which Pillow does not check
    path.write_bytes(changed)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def class_removed(folder: Path) -> None:
    shutil.rmtree(folder / "-rf")


def class_moved(folder: Path) -> None:
    (folder / "kinds").rename(folder / "moved")


def classes_swapped(folder: Path) -> None:
    for former, new in (("Cat", "x"), ("cat", "Cat"), ("x", "cat")):
        (folder / former).rename(folder / new)


def name_normalised(folder: Path) -> None:
    """As when a folder is copied from macOS: `e` and an accent become one letter."""
    shutil.rmtree(folder / "caf\u00e9")
    (folder / "cafe\u0301").rename(folder / "caf\u00e9")


def renamed_by_case(folder: Path) -> None:
    (folder / "cat" / "1.PNG").rename(folder / "cat" / "one.Png")


def broken_mended(folder: Path) -> None:
    write(folder, {"broken/cut.jpg": encoded(noise(30), "JPEG"), "broken/zero.png": picture(42)})


def good_broken(folder: Path) -> None:
    write(folder, {"broken/good.png": picture(31)[:60], "Cat/1.png": b""})


def file_became_folder(folder: Path) -> None:
    (folder / "Cat" / "1.png").unlink()
    write(folder, {"Cat/1.png/inside.png": picture(43)})


def file_became_link(folder: Path) -> None:
    (folder / "Cat" / "1.png").unlink()
    (folder / "Cat" / "1.png").symlink_to("../cat/1.png")


def link_leads_elsewhere(folder: Path) -> None:
    (folder / "cat" / "twin.png").unlink()
    (folder / "cat" / "twin.png").symlink_to("1.PNG")


def link_target_changed(folder: Path) -> None:
    (folder / "cat" / "1.png").write_bytes(picture(44))


def outer_folder_appears(folder: Path) -> None:
    """Everything one folder deeper: ids are paths below the outer folders, so nothing changes."""
    folder.rename(folder.with_name("inner"))
    folder.mkdir()
    folder.with_name("inner").rename(folder / "outer")


def everything_replaced(folder: Path) -> None:
    shutil.rmtree(folder)
    write(folder, {f"other{number % 3}/{number}.png": picture(60 + number) for number in range(12)})


CHANGES: list[Callable[[Path], None]] = [
    older,
    before_1970,
    same_size_and_time,
    class_removed,
    class_moved,
    classes_swapped,
    name_normalised,
    renamed_by_case,
    broken_mended,
    good_broken,
    file_became_folder,
    file_became_link,
    link_leads_elsewhere,
    link_target_changed,
    outer_folder_appears,
    everything_replaced,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_after_a_change_a_version_is_as_by_a_full_ingest(source, tmp_path, change):
    taken_in(source, tmp_path / "store")
    change(source)
    settle()
    require_as_by_a_full_ingest(source, tmp_path / "store", taken_in(source, tmp_path / "store"))


def test_a_folder_that_changes_while_it_is_read_is_taken_in_whole_the_next_time(source, tmp_path):

    def meanwhile(done: int, total: int) -> None:
        write(source, {f"kinds/late{done}.png": picture(70 + done), "Cat/1.png": picture(80 + done)})
        (source / "long" / f"{'n' * 251}.png").unlink(missing_ok=True)
        write(source, {"kinds/deep.png": deep(90 + done)})

    taken_in(source, tmp_path / "store", progress=meanwhile)
    settle()
    require_as_by_a_full_ingest(source, tmp_path / "store", taken_in(source, tmp_path / "store"))
