"""Which layout a source has."""

from collections.abc import Callable

from dml import storage
from dml.config import SourceLayout
from dml.data.sources.cars196 import Cars196Source
from dml.data.sources.cub200 import Cub200Source
from dml.data.sources.files import Files, open_files
from dml.data.sources.folder import FolderSource
from dml.data.sources.glyphs import PREFIX, parse_glyphs
from dml.data.sources.manifest import SUFFIXES, ManifestSource
from dml.data.sources.mnist import PARTS, MnistSource
from dml.data.sources.omniglot import ROOTS, OmniglotSource
from dml.data.sources.sample import IMAGE_SUFFIXES, Source
from dml.data.sources.sop import LISTS, SopSource
from dml.errors import InvalidData, MissingArtifact

_OF_FILES: dict[str, Callable[[Files], Source]] = {
    "omniglot": OmniglotSource,
    "cars196": Cars196Source,
    "cub200": Cub200Source,
    "sop": SopSource,
    "mnist": MnistSource,
    "folder": FolderSource,
}


def open_source(uri: str, layout: SourceLayout = "auto") -> Source:
    """The source at a URI.

    Args:
        uri: a folder (local or s3://), a zip, a manifest (.csv, .parquet), or `glyphs:`.
        layout: how it is laid out; "auto" looks at the names of its files.

    Raises:
        MissingArtifact: there is nothing.
        InvalidData: no layout fits.
    """
    if layout == "glyphs" or (layout == "auto" and uri.startswith(PREFIX)):
        return parse_glyphs(uri)
    if layout == "manifest" or (layout == "auto" and uri.lower().endswith(SUFFIXES)):
        resolved = storage.resolve(uri)
        if not storage.exists(resolved):
            raise MissingArtifact(f"The manifest must be a file; there is none at {resolved}.")
        return ManifestSource(resolved)
    files = open_files(uri)
    return _OF_FILES[_detect(files) if layout == "auto" else layout](files)


def _detect(files: Files) -> str:
    names = files.names()
    ends = {name.rsplit("/", 1)[-1] for name in names}
    folders = {folder for name in names for folder in name.split("/")[:-1]}
    if ends & {"cars_annos.mat", "cars_train_annos.mat", "cars_test_annos_withlabels.mat"}:
        return "cars196"
    if {"images.txt", "image_class_labels.txt", "classes.txt"} <= ends:
        return "cub200"
    if ends & set(LISTS):
        return "sop"
    if any(end.startswith(f"{part}-images-idx3") for end in ends for part in PARTS):
        return "mnist"
    if folders & set(ROOTS):
        return "omniglot"
    if any("/" in name and name.lower().endswith(IMAGE_SUFFIXES) for name in names):
        return "folder"
    raise InvalidData(
        f"{files.uri} must be laid out as class folders with images, or as CARS196, CUB200, SOP, MNIST or "
        f"Omniglot are published; none of that is there among {names[:5]}. Name the layout with --layout."
    )
