"""Picture files that a verb writes: checked before its work begins, and written."""

from pathlib import Path

from dml.errors import InvalidSetting


def require_picture(picture: Path, *, query: Path | None = None) -> None:
    """Raise InvalidSetting for what must not be written over, before the search takes its seconds."""
    wrong = ""
    if picture.is_dir():
        wrong = "it is a folder"
    elif query is not None and picture.exists() and picture.samefile(query):
        wrong = "it is the query, which would be lost"
    elif picture.exists() and not picture.is_file():
        wrong = "it is no regular file"
    elif picture.suffix.lower() != ".png":
        wrong = "its name does not end in .png"
    elif not picture.parent.is_dir():
        wrong = f"there is no folder {picture.parent}"
    if wrong:
        raise InvalidSetting(f"--picture must be a PNG file to write; got {picture}: {wrong}. Name another.")


def write_picture(target: Path, content: bytes) -> None:
    """Write a PNG; raises InvalidSetting where it cannot be."""
    try:
        target.write_bytes(content)
    except OSError as error:
        raise InvalidSetting(
            f"--picture must be a file that can be written; {target}: {error.strerror}."
        ) from error
