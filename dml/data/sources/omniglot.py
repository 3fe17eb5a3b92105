"""Omniglot: handwritten characters, `images_background/ALPHABET/characterNN/*.png`.

Source: Lake, Salakhutdinov and Tenenbaum 2015, Science 350(6266). Whole alphabets are held out, so that a
test character's relatives were never seen either.
"""

import re
from dataclasses import dataclass

from dml.config import AttributeSplit
from dml.data.sources.files import Files, Tree
from dml.data.sources.sample import Listing, Sample

_DRAWING = re.compile(r"(?:.*/)?(?P<alphabet>[^/]+)/(?P<character>character\d+)/(?P<drawing>[^/]+)\.png")


@dataclass(frozen=True)
class OmniglotSource:
    """One class per character, labelled `ALPHABET/characterNN`; attribute `alphabet`."""

    files: Files

    def list(self) -> Listing:
        samples = []
        for path in self.files.tree().files:
            if match := _DRAWING.fullmatch(path):
                alphabet, character, drawing = match.groups()
                label = f"{alphabet}/{character}"
                samples.append(Sample(f"{label}/{drawing}", path, label, attributes={"alphabet": alphabet}))
        return Listing(samples, AttributeSplit(name="alphabet", test_values=10))

    def read(self, locator: str) -> bytes:
        return self.files.read(locator)


def recognise(tree: Tree) -> bool:
    return any(_DRAWING.fullmatch(path) for path in tree.files)
