"""Small image files for the tests of the data room."""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int = 0, size: tuple[int, int] = (12, 9), mode: str = "RGB", form: str = "PNG") -> bytes:
    """An image file of noise; equal arguments give equal bytes."""
    values = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    encoded = io.BytesIO()
    Image.fromarray(values).convert(mode).save(encoded, form)
    return encoded.getvalue()


def huge_png(side: int) -> bytes:
    """A valid black PNG of side x side pixels in about side * side / 8000 bytes, made row by row."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    packer, row = zlib.compressobj(9), bytes(1 + (side + 7) // 8)
    packed = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def write(root: Path, files: dict[str, bytes | str]) -> Path:
    """Write files below a folder; returns it."""
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return root


def class_folders(root: Path, *, classes: int = 4, per_class: int = 5) -> Path:
    """`class0/0.png` and so on, all different."""
    return write(
        root,
        {
            f"class{label}/{number}.png": picture(label * 100 + number)
            for label in range(classes)
            for number in range(per_class)
        },
    )
