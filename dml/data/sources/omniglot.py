"""Omniglot: handwritten characters, `images_background/ALPHABET/characterNN/*.png`.

Source: Lake, Salakhutdinov and Tenenbaum 2015, Science 350(6266). Whole alphabets are held out, so
that training has no character of a test alphabet: those of `images_evaluation` if both halves exist, else the
last ten alphabets.
"""

import re
from dataclasses import dataclass

from dml.config import AttributeSplit, OfficialSplit
from dml.data.sources.files import FilesSource, Tree
from dml.data.sources.sample import Listing, Sample

_DRAWING = re.compile(
    r"(?P<above>.*/)?(?P<alphabet>[^/]+)/(?P<character>character\d+)/(?P<drawing>[^/]+)\.png"
)
_PART = re.compile(r"(?:.*/)?images_(?P<part>background|evaluation)/")
_SPLITS = {"background": "train", "evaluation": "test"}


@dataclass(frozen=True)
class OmniglotSource(FilesSource):
    """One class per character, labelled `ALPHABET/characterNN`; attribute `alphabet`.

    If both halves exist, the attribute `part` is "background" or "evaluation".
    """

    def listing(self, tree: Tree) -> Listing:
        drawings = [(path, match) for path in tree.files if (match := _DRAWING.fullmatch(path))]
        alphabets: dict[str | None, set[str]] = {}
        for _, match in drawings:
            alphabets.setdefault(_find_part(match), set()).add(match["alphabet"])
        both = set(alphabets) == set(_SPLITS)
        repeated = set.intersection(*alphabets.values()) if both else set()
        samples = []
        for path, match in drawings:
            part, (_, alphabet, character, drawing) = _find_part(match), match.groups()
            label = f"{alphabet}/{character}"
            if part == "evaluation" and alphabet in repeated:
                label = f"{part}/{label}"
            attributes = {"alphabet": alphabet, **({"part": part} if both else {})}
            split = _SPLITS[part] if both and part else None
            samples.append(Sample(f"{label}/{drawing}", path, label, split, attributes))
        return Listing(samples, OfficialSplit() if both else AttributeSplit(name="alphabet", test_values=10))


def _find_part(drawing: re.Match[str]) -> str | None:
    match = _PART.fullmatch(drawing["above"] or "")
    return match["part"] if match else None


def recognize(tree: Tree) -> bool:
    return any(_DRAWING.fullmatch(path) for path in tree.files)
