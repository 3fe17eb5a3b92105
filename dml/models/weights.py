"""A backbone's weights in a local file: name to tensor, from safetensors or PyTorch's own format."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dml.errors import CorruptArtifact, MissingArtifact

_PYTORCH = (b"PK\x03\x04", b"\x80\x02")
_STAND_INS = {
    b"version https://git-lfs": ("a Git LFS pointer", "Fetch what it points to: git lfs pull."),
    b"<": ("a web page", "Open the address in a browser: it may ask for a login."),
    b"{": ("JSON", "Name the weights beside it."),
    b"GGUF": ("GGUF", "Convert it to safetensors."),
}
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_HEAD_BYTES = 64


def require_weights_file(path: Path) -> None:
    """Check a file by its first bytes.

    Raises:
        MissingArtifact: there is no such file.
        CorruptArtifact: it is something else, such as a Git LFS pointer or the page of a failed download.
    """
    if not path.is_file():
        raise MissingArtifact(
            f"The backbone's weights must be a safetensors or .pth file; there is none at {path}."
        )
    head = _head(path)
    if head.startswith(_PYTORCH):
        return
    for beginning, (what, advice) in _STAND_INS.items():
        if head.lstrip().startswith(beginning):
            raise CorruptArtifact(
                f"The backbone's weights must be a safetensors or .pth file; {path} is {what}. {advice}"
            )
    # Safetensors begins with the length of a JSON object, then the object.
    if head[8:9] != b"{" or int.from_bytes(head[:8], "little") > path.stat().st_size:
        raise CorruptArtifact(
            f"The backbone's weights must be a safetensors or .pth file; {path} has {path.stat().st_size} "
            f"bytes and begins with {head[:9]!r}. Download it again."
        )


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors in a weights file, on the CPU; nothing else in it is loaded, and no code is run.

    Raises:
        MissingArtifact, CorruptArtifact: as `require_weights_file`; a file cut short, or of other things.
    """
    require_weights_file(path)
    try:
        if not _head(path).startswith(_PYTORCH):
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # both raise whatever the damage hits
        raise _unreadable(path, error) from error
    return _tensors(content, path)


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CorruptArtifact(
            f"A .pth file must hold a state dict, names to tensors; {path} holds {type(content).__name__}. "
            "Save network.state_dict()."
        )
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _unreadable(path: Path, error: Exception) -> CorruptArtifact:
    first_line = str(error).strip().partition("\n")[0]
    return CorruptArtifact(
        f"The backbone's weights {path} must load whole, as tensors alone; they do not: {first_line}. "
        "Download them again, or save the state dict as safetensors."
    )


def _head(path: Path) -> bytes:
    with path.open("rb") as stream:
        return stream.read(_HEAD_BYTES)
