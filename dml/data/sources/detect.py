"""From what a user typed to a source: the layout is named, or recognised by its files."""

import re
from collections.abc import Callable
from typing import NamedTuple

from dml import storage
from dml.data.sources import (
    cars196,
    cub200,
    folder,
    glyphs,
    in_shop,
    manifest,
    market1501,
    mnist,
    omniglot,
    sop,
    tiny_imagenet,
)
from dml.data.sources.access import SOURCE_FOLDER_ONLY, Access, without_query
from dml.data.sources.cars196 import Cars196Source
from dml.data.sources.cub200 import Cub200Source
from dml.data.sources.files import Files, Tree, open_files
from dml.data.sources.folder import FolderSource
from dml.data.sources.in_shop import InShopSource
from dml.data.sources.manifest import ManifestSource
from dml.data.sources.market1501 import Market1501Source
from dml.data.sources.mnist import MnistSource
from dml.data.sources.omniglot import OmniglotSource
from dml.data.sources.sample import Source
from dml.data.sources.sop import SopSource
from dml.data.sources.tiny_imagenet import TinyImagenetSource
from dml.errors import InvalidData, InvalidSetting
from dml.names import SourceLayout


class _Layout(NamedTuple):
    source: Callable[[Files], Source]
    recognize: Callable[[Tree], bool]
    marks: str


# In the order they are tried: class folders fit almost everything, so they come last.
_LAYOUTS: dict[str, _Layout] = {
    "cub200": _Layout(Cub200Source, cub200.recognize, "image_class_labels.txt"),
    "cars196": _Layout(
        Cars196Source, cars196.recognize, "cars_annos.mat, or cars_meta.mat with cars_train_annos.mat"
    ),
    "sop": _Layout(SopSource, sop.recognize, "Ebay_train.txt"),
    "in-shop": _Layout(InShopSource, in_shop.recognize, "list_eval_partition.txt"),
    "market1501": _Layout(
        Market1501Source, market1501.recognize, "bounding_box_train, bounding_box_test and query"
    ),
    "mnist": _Layout(MnistSource, mnist.recognize, "train-images-idx3-ubyte, or .gz"),
    "omniglot": _Layout(OmniglotSource, omniglot.recognize, "ALPHABET/characterNN/*.png"),
    "tiny-imagenet": _Layout(TinyImagenetSource, tiny_imagenet.recognize, "val_annotations.txt"),
    "folder": _Layout(FolderSource, folder.recognize, "CLASS/* that are images, whatever their names"),
}


def open_source(uri: str, layout: SourceLayout = "auto", access: Access = SOURCE_FOLDER_ONLY) -> Source:
    """The source at a place.

    Args:
        uri: a folder, zip, manifest file or `s3://` folder, or `glyphs:`.
        layout: how it is laid out; "auto" recognises it by its files.
        access: where its images may lie, and how patiently they are fetched.

    Raises:
        MissingArtifact: there is nothing.
        InvalidData: what is there is not laid out so, or in no known way.
        InvalidSetting: a `glyphs:` that cannot be followed.
    """
    _require_readable_scheme(uri)
    if layout == "glyphs" or (layout == "auto" and uri.startswith(glyphs.SCHEME)):
        return glyphs.open_glyphs(uri)
    if layout == "manifest" or (layout == "auto" and manifest.recognize(uri)):
        return ManifestSource(storage.resolve(uri), access)
    files = open_files(uri, access)
    tree = files.tree()
    candidates = _LAYOUTS if layout == "auto" else {layout: _LAYOUTS[layout]}
    for candidate in candidates.values():
        if candidate.recognize(tree):
            return candidate.source(files)
    beside = [path for path in tree.files if "/" not in path and folder.is_named_as_image(path)]
    if beside and layout in ("auto", "folder"):
        raise InvalidData(
            f"The images of each class must be in a folder of its name; in {files.uri} {len(beside)} are in "
            f"no folder, such as {beside[:3]}. Sort them into folders, or write a manifest (.csv) with the "
            "columns image and label."
        )
    if not tree.files and not tree.problems:
        raise InvalidData(
            f"A source must hold images; {files.uri} holds no file, hidden ones apart. Check the path."
        )
    wanted = "; ".join(f"{name}: {candidate.marks}" for name, candidate in candidates.items())
    what = f"its {len(tree.files)} files are none of these, such as {tree.files[:3]}" if tree.files else ""
    unread = "".join(
        f"{len(tree.problems)} entries cannot be read, such as {each.locator}: {each.reason}, {each.detail}"
        for each in tree.problems[:1]
    )
    raise InvalidData(
        f"{files.uri} must hold images in a known layout ({wanted}, or be a .csv, .tsv or .parquet "
        f"manifest); {'. '.join(part for part in (what, unread) if part)}. "
        "Check the path, or write a manifest."
    )


def absolute(uri: str) -> str:
    """A source's place as any folder's processes find it; raises InvalidSetting for an address on the web."""
    _require_readable_scheme(uri)
    return uri if uri.startswith(glyphs.SCHEME) else storage.resolve(uri)


def _require_readable_scheme(uri: str) -> None:
    if storage.is_remote(uri) and not re.match("s3://.", uri):
        raise InvalidSetting(
            "A source must be a folder, zip or manifest on this machine, or a folder or manifest on s3://; "
            f"got {without_query(uri)}. Images on the web are named by a manifest, see allowed_prefixes."
        )
